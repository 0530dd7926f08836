"""The servers that are measured: how each is started, asked whether it is ready, and ended.

Knows commands, ports and processes; everything about them but their addresses ends here. Does not
know what is measured.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.serving import ROOT
from bench.serving.machine import gpu
from bench.serving.stream import Target

START_WITHIN = 180
_STOP_WITHIN = 60
_PROBE_WITHIN = 10
_LOG_SHOWN = 300
_OK = 200


class ServerError(Exception):
    """A server did not do what it takes to be measured; the message says which and what."""


@dataclass(frozen=True)
class Server:
    """One way to serve a model.

    Attributes:
        name: How the tables call it.
        model: What requests call the model; whatever it says it serves if empty.
        command: What starts it, with `{port}` in it; empty for one that runs already.
        url: Address of one that runs already.
        variables: Environment on top of this process's own; `{port}` is filled in here too.
        ready: Path that answers 200 once it says that it is ready.
        phases: Path that tells the phases of its start, if it has one.
        weights: Bytes of the weights that it serves.
    """

    name: str
    model: str = ""
    command: Sequence[str] = ()
    url: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    ready: str = "/health"
    phases: str = ""
    weights: int = 0


@dataclass(frozen=True)
class Running:
    """A server that runs.

    Attributes:
        url: Its address.
        began: `time.perf_counter()` before its process was started, or now if it ran already.
        process: The process; None if it ran already.
        log: What it wrote.
    """

    url: str
    began: float
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None

    def fail_if_ended(self, name: str) -> None:
        """See that the process is still there.

        Raises:
            ServerError: It has ended; the message has the last line of its log.
        """
        if self.process is not None and self.process.poll() is not None:
            said = self.log.read_text("utf-8", "replace") if self.log else ""
            last = (said.strip() or "it said nothing").splitlines()[-1]
            raise ServerError(f"{name} ended with {self.process.returncode}: {last[:_LOG_SHOWN]}")


def llm_inference(directory: Path, model: str, source: Path = ROOT / "inference") -> Server:
    """The server of this checkout, or of another `source`, with its defaults."""
    return Server(
        name="llm-inference",
        model=model,
        command=(sys.executable, "-m", "llm_inference"),
        variables={
            "LLM_MODEL_DIR": str(directory),
            "LLM_MODEL_ID": model,
            "LLM_HOST": "127.0.0.1",
            "LLM_PORT": "{port}",
            "PYTHONPATH": str(source.resolve()),
        },
        ready="/readyz",
        phases="/startupz",
        weights=_bytes(directory.glob("*.safetensors")),
    )


def transformers_serve(directory: Path, streams: int = 16) -> Server:
    """Transformers' own server with continuous batching.

    Its cache is bounded, to two blocks of 256 tokens a stream: by default it takes 60 % of the
    memory.
    """
    return Server(
        name="transformers serve --continuous-batching",
        model=str(directory),
        command=(
            *(str(Path(sys.executable).with_name("transformers")), "serve", str(directory)),
            *("--continuous-batching", "--cb-num-blocks", str(2 * streams)),
            *("--device", "cuda" if gpu() else "cpu"),
            *("--host", "127.0.0.1", "--port", "{port}"),
        ),
        variables={"HF_HUB_OFFLINE": "1"},
        weights=_bytes(directory.glob("*.safetensors")),
    )


def llama_cpp(python: Path, gguf: Path) -> Server:
    """llama-cpp-python's server, in the environment of another Python.

    It answers one request at a time. By default a new request ends the one that runs; here it
    waits for it.
    """
    return Server(
        name=f"llama-cpp-python, {gguf.stem.rpartition('.')[2]}",
        model="",
        command=(
            *(str(python), "-m", "llama_cpp.server", "--model", str(gguf)),
            *("--n_ctx", "2048", "--interrupt_requests", "false"),
            *("--host", "127.0.0.1", "--port", "{port}"),
        ),
        ready="/v1/models",
        weights=_bytes([gguf]),
    )


def _bytes(files: Iterator[Path] | Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


@contextmanager
def running(server: Server) -> Iterator[Running]:
    """Start a server on a free loopback port and end it and its children afterwards.

    One that runs already is left as it is.
    """
    if not server.command:
        yield Running(server.url, time.perf_counter())
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    variables = {k: v.replace("{port}", port) for k, v in server.variables.items()}
    with tempfile.NamedTemporaryFile(prefix="bench-") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            [part.replace("{port}", port) for part in server.command],
            env={**os.environ, **variables},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield Running(f"http://127.0.0.1:{port}", began, process, Path(log.name))
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process, and then what is left of the session that it was started as."""
    process.terminate()
    try:
        process.wait(_STOP_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):  # it left nothing behind
        os.killpg(process.pid, signal.SIGKILL)


def get(url: str, path: str) -> tuple[int, bytes]:
    """Status and body of a page, status 0 where nobody answers."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=_PROBE_WITHIN)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def wait_until_ready(server: Server, at: Running, pause: float = 0.025) -> float:
    """Seconds from the start of the process until it says that it is ready.

    Raises:
        ServerError: It ended before, or is not ready in time.
    """
    while get(at.url, server.ready)[0] != _OK:
        at.fail_if_ended(server.name)
        if time.perf_counter() > at.began + START_WITHIN:
            raise ServerError(f"{server.name} is not ready after {START_WITHIN} s")
        time.sleep(pause)
    return time.perf_counter() - at.began


def target(server: Server, at: Running) -> Target:
    """Where requests to a server go that is ready.

    Raises:
        ServerError: It does not say what it serves.
    """
    if server.model:
        return Target(at.url, server.model)
    try:
        return Target(at.url, json.loads(get(at.url, "/v1/models")[1])["data"][0]["id"])
    except (ValueError, LookupError, TypeError) as error:
        raise ServerError(f"{server.name} does not tell its models: {error!r}") from None
