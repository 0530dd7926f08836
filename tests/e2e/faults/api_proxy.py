"""Stands between an operator and the API server, and can misbehave as networks do.

Plain HTTP towards the operator, whose token it passes on; TLS towards the API server.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import aiohttp
import yaml
from aiohttp import web

_HOP_BY_HOP = {"connection", "content-length", "host", "transfer-encoding"}


class ApiProxy:
    """A proxy in a thread of its own. Use it as a context manager.

    Attributes:
        hang: Take requests and never answer them, and bring nothing on open connections.
        swallow_watches: Keep watches open, and open new ones, and bring nothing on them.
    """

    def __init__(self, kubeconfig: Path) -> None:
        cluster = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]
        self._server: str = cluster["server"]
        if "certificate-authority-data" in cluster:
            pem = base64.b64decode(cluster["certificate-authority-data"]).decode()
            self._tls = ssl.create_default_context(cadata=pem)
        else:
            self._tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
        self.hang = False
        self.swallow_watches = False
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._serving = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()])

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._serving.wait(timeout=10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=10)
        self._loop.close()

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._forward)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        async with aiohttp.ClientSession(connector=connector) as self._session:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._serving.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        with contextlib.suppress(aiohttp.ClientConnectionResetError):  # the operator went away
            await self._pass_on(request, response)
        return response

    async def _pass_on(self, request: web.Request, response: web.StreamResponse) -> None:
        await self._while(lambda: self.hang)
        kept = {key: value for key, value in request.headers.items() if _passes(key)}
        is_watch = "watch" in request.query
        async with self._session.request(
            *(request.method, self._server + request.path_qs),
            headers=kept,
            data=await request.read() or None,
            skip_auto_headers=["Content-Type"],
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        ) as answer:
            response.set_status(answer.status)
            response.headers.extend(
                {key: value for key, value in answer.headers.items() if _passes(key)}
            )
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await self._while(lambda: self.hang)
                if not (is_watch and self.swallow_watches):
                    await response.write(chunk)

    async def _while(self, misbehaving: Callable[[], bool]) -> None:
        while misbehaving():  # noqa: ASYNC110 - turned on and off by another thread
            await asyncio.sleep(0.05)


def _passes(header: str) -> bool:
    return header.lower() not in _HOP_BY_HOP
