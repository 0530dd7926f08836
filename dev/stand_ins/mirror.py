"""A loopback server with the routes of the model hub and of a package index for torch.

Serves model directories and CPU wheels of torch to builds that cannot reach the real ones. Knows
HTTP and the hub's answers, as huggingface_hub wants them; does not know where directories come
from. Reachable from this machine alone, or from pods too where it listens at the node's address.
"""

import contextlib
import html
import json
import re
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qs, quote, unquote, urlsplit

from dev.stand_ins.repositories import File, Repository

# Fixed: the address is part of what a build is cached by.
PORT = 18470
NAME = "llm-operator-mirror"


class MirrorError(Exception):
    """The mirror cannot serve; the message says why."""


class HubError(Exception):
    """An answer that refuses: status, the hub's code for it, and a sentence."""

    def __init__(self, status: HTTPStatus, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Mirror(ThreadingHTTPServer):
    """The server with what it serves; `port` 0 takes any free one of the address `host`."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self,
        repositories: dict[str, Repository],
        wheels: list[Path],
        port: int = PORT,
        host: str = "127.0.0.1",
    ) -> None:
        self.host = host
        self.repositories = repositories
        self.wheels = {wheel.name: wheel for wheel in wheels}
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise MirrorError(f"port {port} of {host} is taken: {error.strerror}") from None

    @property
    def url(self) -> str:
        """The address, which is also what ``HF_ENDPOINT`` takes."""
        return f"http://{self.host}:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Let a client that goes away in the middle of a download go without a traceback."""

    def repository(self, model_id: str, revision: str, token: str | None) -> Repository:
        """Return a repository that the caller may read at `revision`, or raise a HubError."""
        found = self.repositories.get(model_id)
        if found is None:
            raise HubError(HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found")
        if found.token is not None and token != found.token:
            message = f"Access to model {model_id} is restricted. Please log in."
            raise HubError(HTTPStatus.UNAUTHORIZED, "GatedRepo", message)
        if not found.has_revision(revision):
            raise HubError(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def file(self, repository: Repository, name: str) -> File:
        """Return one file of a repository, or raise a HubError."""
        if name not in repository.files:
            raise HubError(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found")
        return repository.files[name]


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    server: Mirror
    protocol_version = "HTTP/1.1"
    server_version = NAME

    # (pattern, method): the first that matches the whole path answers
    ROUTES = (
        (r"/", "_index"),
        (r"/simple/torch/?", "_wheels"),
        (r"/wheels/(?P<name>[^/]+)", "_wheel"),
        (r"/api/models/(?P<id>[^/]+/[^/]+)(?:/revision/(?P<rev>[^/]+))?", "_model"),
        (r"/api/models/(?P<id>[^/]+/[^/]+)/tree/(?P<rev>[^/]+)/?", "_tree"),
        (r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<name>.+)", "_resolve"),
    )

    def do_GET(self) -> None:
        """Answer a request; HEAD answers the same without a body."""
        try:
            self._route(urlsplit(self.path).path)
        except HubError as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
            self._json({"error": str(error)}, status=error.status, headers=headers)

    do_HEAD = do_GET  # noqa: N815

    def _route(self, path: str) -> None:
        for pattern, method in self.ROUTES:
            if found := re.fullmatch(pattern, path):
                groups = {k: unquote(v or "main") for k, v in found.groupdict().items()}
                getattr(self, method)(**groups)
                return
        raise HubError(HTTPStatus.NOT_FOUND, "NotFound", f"No such page: {path}")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: what downloads tells its user what it does."""

    def _index(self) -> None:
        models = [repository.id for repository in self.server.repositories.values()]
        self._json({"name": NAME, "models": models, "wheels": sorted(self.server.wheels)})

    def _wheels(self) -> None:
        links = "".join(
            f'<a href="/wheels/{quote(name)}">{html.escape(name)}</a><br>\n'
            for name in sorted(self.server.wheels)
        )
        self._body(f"<!DOCTYPE html>\n<html><body>\n{links}</body></html>\n".encode(), "text/html")

    def _wheel(self, name: str) -> None:
        if name not in self.server.wheels:
            raise HubError(HTTPStatus.NOT_FOUND, "NotFound", f"No such wheel: {name}")
        self._send(self.server.wheels[name], {})

    def _model(self, id: str, rev: str) -> None:  # noqa: A002
        repository = self.server.repository(id, rev, self._token())
        with_blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        siblings = []
        for file in repository.files.values():
            sibling: dict[str, object] = {"rfilename": file.name}
            if with_blobs:
                sibling |= _blob(file)
            siblings.append(sibling)
        self._json(
            {
                "id": repository.id,
                "modelId": repository.id,
                "sha": repository.revision,
                "private": False,
                "gated": False,
                "tags": [],
                "siblings": siblings,
            }
        )

    def _tree(self, id: str, rev: str) -> None:  # noqa: A002
        repository = self.server.repository(id, rev, self._token())
        self._json(
            [
                {"type": "file", "path": file.name, "oid": file.sha256[:40], **_blob(file)}
                for file in repository.files.values()
            ]
        )

    def _resolve(self, id: str, rev: str, name: str) -> None:  # noqa: A002
        repository = self.server.repository(id, rev, self._token())
        file = self.server.file(repository, name)
        headers = {"ETag": f'"{file.sha256}"', "X-Repo-Commit": repository.revision}
        if file.is_large:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(file.size)}
        self._send(file.path, headers)

    def _token(self) -> str | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else None

    def _send(self, path: Path, headers: dict[str, str]) -> None:
        """Send a file, or the part of it that a Range header asks for."""
        size = path.stat().st_size
        start, end, status = 0, size, HTTPStatus.OK
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), min(int(asked[2] or size - 1) + 1, size)
            status = HTTPStatus.PARTIAL_CONTENT
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
            if start >= end:
                status, headers = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {}
                start = end = 0
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "GET":
            with path.open("rb") as content:
                content.seek(start)
                _copy(content, self.wfile, end - start)

    def _json(
        self,
        value: object,
        *,
        status: HTTPStatus = HTTPStatus.OK,
        headers: dict[str, str] | None = None,
    ) -> None:
        text = json.dumps(value).encode()
        self._body(text, "application/json", status=status, headers=headers)

    def _body(
        self,
        body: bytes,
        content_type: str,
        *,
        status: HTTPStatus = HTTPStatus.OK,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _blob(file: File) -> dict[str, object]:
    blob: dict[str, object] = {"size": file.size, "blobId": file.sha256[:40]}
    if file.is_large:
        blob["lfs"] = {
            "sha256": file.sha256,
            "oid": file.sha256,
            "size": file.size,
            "pointerSize": 134,
        }
    return blob


def _copy(source: BinaryIO, target: BufferedIOBase, length: int) -> None:
    while length and (chunk := source.read(min(length, 1 << 20))):
        target.write(chunk)
        length -= len(chunk)


@contextlib.contextmanager
def serving(mirror: Mirror) -> Iterator[Mirror]:
    """Serve from a thread for as long as the block runs."""
    thread = threading.Thread(target=mirror.serve_forever, name=NAME, daemon=True)
    thread.start()
    try:
        yield mirror
    finally:
        mirror.shutdown()
        mirror.server_close()
        thread.join()
