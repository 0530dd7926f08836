"""An HTTPS proxy in front of the API server that fails on demand.

It passes everything on, watches included, and can be told at any time to answer with an error,
to break off before or after the API server has done the work, to wait, to cut or to mute watches
and to answer nothing at all: per client, each of which has a port of its own. Callers prove who
they are by a bearer token, for a client certificate ends at the proxy.

Knows HTTP and how a request of Kubernetes reads. Does not know who the clients are.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
from aiohttp import web

from dev.cluster import certificates

T = TypeVar("T")

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_NOT_PASSED_ON = frozenset(
    {"connection", "content-length", "host", "keep-alive", "transfer-encoding", "upgrade"}
)


@dataclass(frozen=True)
class Answer:
    """Answer with an error; the API server never hears of the request."""

    status: int
    retry_after: int | None = None


@dataclass(frozen=True)
class Break:
    """Break the connection off, before the API server hears of the request or once it is done."""

    done: bool


@dataclass(frozen=True)
class Wait:
    """Wait some seconds before the request is passed on."""

    seconds: float


Effect = Answer | Break | Wait


@dataclass
class Fault:
    """What befalls some requests.

    Attributes:
        effect: What happens.
        verbs: Kubernetes' verbs that are hit, such as patch or watch; all if empty.
        resources: Plurals that are hit, a subresource as in llmdeployments/status; all if empty.
        share: Part of the matching requests that is hit, at random.
        times: Most requests to hit; no bound if None.
        hits: Number of requests hit so far.
    """

    effect: Effect
    verbs: frozenset[str] = frozenset()
    resources: frozenset[str] = frozenset()
    share: float = 1.0
    times: int | None = None
    hits: int = 0

    def strikes(self, verb: str, resource: str, dice: random.Random) -> bool:
        """Whether this request is hit; counts it if so."""
        matches = (not self.verbs or verb in self.verbs) and (
            not self.resources or resource in self.resources
        )
        exhausted = self.times is not None and self.hits >= self.times
        if not matches or exhausted or dice.random() >= self.share:
            return False
        self.hits += 1
        return True


@dataclass(frozen=True)
class Request:
    """A request that the API server answered: when it arrived, what it was, the HTTP status."""

    at: float
    verb: str
    path: str
    status: int


@dataclass(eq=False)
class _Watch:
    transport: asyncio.BaseTransport
    source: aiohttp.ClientResponse
    muted: bool = False
    last_word: bytes = b""


@dataclass
class Client:
    """One client's way to the API server, and what is wrong with it.

    Attributes:
        name: Whose way it is.
        port: Where it begins, on 127.0.0.1.
        requests: What came through, watches left out; times are those of `time.monotonic`.
    """

    name: str
    port: int
    loop: asyncio.AbstractEventLoop
    dice: random.Random
    requests: list[Request] = field(default_factory=list)
    _faults: list[Fault] = field(default_factory=list)
    _watches: set[_Watch] = field(default_factory=set)
    _reachable: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        """The API server, for this client."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def writes(self) -> list[Request]:
        """The writes that the API server answered with success."""
        return [r for r in list(self.requests) if r.verb in WRITES and r.status < 400]

    def writes_to(self, resource: str) -> list[Request]:
        """Those of them that went to a kind of objects, given as its plural."""
        return [r for r in self.writes if f"/{resource}" in r.path]

    @contextmanager
    def fault(self, effect: Effect, **which: Any) -> Iterator[Fault]:
        """Let a fault befall this client's requests until the block ends."""
        fault = Fault(effect, **which)
        self._faults.append(fault)
        try:
            yield fault
        finally:
            self._faults.remove(fault)

    def cut_watches(self) -> int:
        """Break every open watch off. Returns how many there were."""

        async def cut() -> int:
            watches = list(self._watches)
            for watch in watches:
                watch.transport.abort()  # type: ignore[attr-defined]
            return len(watches)

        return self._call(cut())

    def mute_watches(self) -> int:
        """Let every open watch stay open and say nothing more. Returns how many there were.

        As when something on the way has forgotten the connections; new ones work.
        """

        async def mute() -> int:
            for watch in self._watches:
                watch.muted = True
            return len(self._watches)

        return self._call(mute())

    def end_watches(self, code: int) -> int:
        """End every open watch with an ERROR event of this code. Returns how many there were."""
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        event = {"type": "ERROR", "object": status | {"code": code, "message": f"injected {code}"}}

        async def end() -> int:
            watches = list(self._watches)
            for watch in watches:
                watch.last_word = json.dumps(event).encode() + b"\n"
                watch.source.close()
            return len(watches)

        return self._call(end())

    def part(self) -> None:
        """Answer nothing any more, not even with a refusal; open watches stay open, silent."""
        self.mute_watches()
        self.loop.call_soon_threadsafe(self._reachable.clear)

    def mend(self) -> None:
        """Answer again. What was asked in between stays without an answer."""
        self.loop.call_soon_threadsafe(self._reachable.set)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=10)


class Proxy:
    """A proxy with any number of clients, in a thread of its own. A context manager.

    Args:
        seed: Of the dice that choose the requests to hit.
    """

    def __init__(self, *, seed: int) -> None:
        self._seed = seed
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._runners: list[web.AppRunner] = []
        self._session: aiohttp.ClientSession

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        self._call(self._open())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Stop; every connection ends."""
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def client(self, name: str) -> Client:
        """A way to the API server for one more client."""
        return self._call(self._listen(name))

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _open(self) -> None:
        trust = ssl.create_default_context(cafile=str(certificates.CLUSTER_CA))
        self._session = aiohttp.ClientSession(
            certificates.API_SERVER,
            connector=aiohttp.TCPConnector(ssl=trust, limit=0),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        )

    async def _close(self) -> None:
        for runner in self._runners:
            await runner.cleanup()
        await self._session.close()

    async def _listen(self, name: str) -> Client:
        client = Client(name, 0, self._loop, random.Random(f"{self._seed} {name}"))
        client._reachable.set()

        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._handle(client, request)

        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", handle)
        # Whoever hangs up takes the request to the API server along.
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await runner.setup()
        shown = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        shown.load_cert_chain(certificates.certificate("serving"), certificates.key("serving"))
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=shown).start()
        self._runners.append(runner)
        client.port = runner.addresses[0][1]
        return client

    async def _handle(self, client: Client, request: web.Request) -> web.StreamResponse:
        """Let befall the request what is to befall it before the API server hears of it."""
        verb, resource = _read(request)
        if not client._reachable.is_set():
            return await _no_answer(client, request)
        effects = [f.effect for f in client._faults if f.strikes(verb, resource, client.dice)]
        for effect in effects:
            match effect:
                case Answer():
                    return _refusal(effect)
                case Break(done=False):
                    return _broken_off(request)
                case Wait():
                    await asyncio.sleep(effect.seconds)
        try:
            return await self._fetch(client, request, verb, lost=Break(done=True) in effects)
        except (aiohttp.ClientError, OSError):
            return _broken_off(request)

    async def _fetch(
        self, client: Client, request: web.Request, verb: str, *, lost: bool
    ) -> web.StreamResponse:
        """Ask the API server, and hand its answer on unless it is to be lost."""
        arrived = time.monotonic()
        async with self._pass_on(request) as answer:
            if verb == "watch" and answer.status == web.HTTPOk.status_code:
                return await _stream(client, request, answer)
            body = await answer.read()
        client.requests.append(Request(arrived, verb, request.path, answer.status))
        if not client._reachable.is_set():
            return await _no_answer(client, request)
        if lost:
            return _broken_off(request)
        return web.Response(status=answer.status, headers=_headers(answer.headers), body=body)

    def _pass_on(self, request: web.Request) -> Any:
        return self._session.request(
            request.method,
            request.rel_url,
            headers=_headers(request.headers),
            data=request.content if request.can_read_body else None,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        )


def _read(request: web.Request) -> tuple[str, str]:
    """Verb and resource of a request, as the API server understands it."""
    parts = request.path.strip("/").split("/")
    parts = parts[3:] if parts[0] == "apis" else parts[2:]  # the group and version
    if len(parts) > 2 and parts[0] == "namespaces":
        parts = parts[2:]
    resource = "/".join(parts[::2])
    named = len(parts) > 1
    if request.query.get("watch") in {"1", "true"}:
        return "watch", resource
    if request.method == "GET":
        return "get" if named else "list", resource
    if request.method == "DELETE" and not named:
        return "deletecollection", resource
    return _VERBS.get(request.method, request.method.lower()), resource


def _headers(headers: Any) -> list[tuple[str, str]]:
    return [(name, text) for name, text in headers.items() if name.lower() not in _NOT_PASSED_ON]


def _refusal(effect: Answer) -> web.Response:
    message = f"injected {effect.status}"
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {}}
    retry = {} if effect.retry_after is None else {"Retry-After": str(effect.retry_after)}
    return web.json_response(
        status | {"message": message, "reason": "Injected", "code": effect.status},
        status=effect.status,
        headers=retry,
    )


def _broken_off(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()  # type: ignore[attr-defined]
    return web.Response()  # nobody is there to read it


async def _no_answer(client: Client, request: web.Request) -> web.Response:
    """Keep the caller waiting until it gives up or the way is mended."""
    await client._reachable.wait()
    return _broken_off(request)


async def _stream(
    client: Client, request: web.Request, answer: aiohttp.ClientResponse
) -> web.StreamResponse:
    """Pass a watch on, chunk by chunk, until either side ends it."""
    assert request.transport is not None
    watch = _Watch(request.transport, answer)
    response = web.StreamResponse(status=answer.status, headers=_headers(answer.headers))
    try:
        await response.prepare(request)
        client._watches.add(watch)
        with suppress(aiohttp.ClientError):
            async for chunk in answer.content.iter_any():
                if not watch.muted:
                    await response.write(chunk)
        if watch.muted:
            # The API server ended it, and the caller never learns of it.
            await asyncio.Event().wait()
        await response.write(watch.last_word)
        await response.write_eof()
    except ConnectionError:
        watch.transport.abort()  # type: ignore[attr-defined]
    finally:
        client._watches.discard(watch)
    return response
