"""The one HTTP port: /healthz, /readyz and /metrics, on a leader and on a follower alike.

Knows paths and answers. What is answered is asked of the process.
"""

from collections.abc import Awaitable, Callable
from typing import Self

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

Answer = tuple[bool, str]
"""Whether it is so, and what there is to say about it."""


class Endpoints:
    """The server. Use it as an asynchronous context manager.

    It shares the event loop with everything else: if that hangs, there is no answer, which is what
    a probe is there to find.

    Args:
        port: Port on all addresses; 0 for any.
        alive: Whether the process should go on living.
        ready: Whether it does its part; a follower does it by waiting.
        registry: What /metrics shows.
    """

    def __init__(
        self,
        *,
        port: int,
        alive: Callable[[], Answer],
        ready: Callable[[], Answer],
        registry: CollectorRegistry,
    ) -> None:
        self._port = port
        self._registry = registry
        app = web.Application(middlewares=[_close])
        app.add_routes(
            [
                web.get("/healthz", _probe(alive)),
                web.get("/readyz", _probe(ready)),
                web.get("/metrics", self._metrics),
            ]
        )
        self._runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=1)

    @property
    def port(self) -> int:
        """The port it listens on."""
        port: int = self._runner.addresses[0][1]
        return port

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "0.0.0.0", self._port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        body = generate_latest(self._registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


@web.middleware
async def _close(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Close the connection after the answer: kopf, when it stops, waits for every open task."""
    response = await handler(request)
    response.force_close()
    return response


def _probe(ask: Callable[[], Answer]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        good, text = ask()
        return web.Response(status=200 if good else 503, text=f"{text}\n")

    return answer
