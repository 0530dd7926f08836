"""The ASGI application: routes, errors and the gate that decides who gets in.

Knows HTTP and the server's life; knows no torch: the model comes through `Serving`.
"""

import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_inference import __version__
from llm_inference.errors import ApiError, add_handlers
from llm_inference.health import Phase
from llm_inference.keys import KeyFile
from llm_inference.routes import health, openai
from llm_inference.serving import Serving

access_log = logging.getLogger("llm_inference.access")


def create_app(serving: Serving, keys: KeyFile | None = None) -> FastAPI:
    """The application for `serving`, for those with one of `keys` or, without, for all.

    Starting it starts loading the model.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        serving.start_loading()
        yield
        if serving.engine is not None:
            await serving.engine.close()

    app = FastAPI(
        title="llm-inference",
        summary="OpenAI-compatible server for one transformers model",
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.serving = serving
    app.include_router(health.router)
    app.include_router(openai.router)
    app.add_middleware(Gate, serving=serving, keys=keys)
    add_handlers(app)
    return app


class Gate:
    """Lets API requests in only while they would be served, and counts them until they end.

    Where there are keys, only those who have one. Also gives every request an id, and writes one
    line for each API request.
    """

    def __init__(self, app: ASGIApp, serving: Serving, keys: KeyFile | None) -> None:
        self._app = app
        self._serving = serving
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"].startswith("/v1/"):
            await self._serve(scope, receive, self._parting(send))
        else:
            await self._app(scope, receive, self._parting(send))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = uuid.uuid4().hex
        started, status = time.monotonic(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with self._serving.request():
            refusal = self._stranger(scope) or self._refusal()
            if refusal is not None:
                await refusal.response()(scope, receive, send_with_id)
            else:
                await self._app(scope, receive, send_with_id)
        access_log.info(
            "%s %s %d %.0f ms id=%s",
            scope["method"],
            scope["path"],
            status,
            1000 * (time.monotonic() - started),
            request_id,
        )

    def _parting(self, send: Send) -> Send:
        """`send` that asks clients to close their connection once the server is leaving."""

        async def send_and_part(message: Message) -> None:
            if message["type"] == "http.response.start" and self._serving.leaving:
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        return send_and_part

    def _stranger(self, scope: Scope) -> ApiError | None:
        if self._keys is None:
            return None
        given = Headers(scope=scope).get("authorization", "")
        scheme, _, key = given.partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        # Header values are latin-1 to ASGI; keys are the bytes of the file.
        if key and self._keys.accepts(key.encode("latin-1")):
            return None
        return ApiError(
            401,
            "The API key is not one of this server's."
            if key
            else "The request carries no API key: send it as Authorization: Bearer <key>.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _refusal(self) -> ApiError | None:
        if self._serving.serves:
            return None
        phase = self._serving.health.phase
        if phase is Phase.DRAINING:
            return ApiError(503, "The server is shutting down.", headers={"Retry-After": "1"})
        if self._serving.alive and phase is not Phase.SERVING:
            return ApiError(503, "The model is still loading.", headers={"Retry-After": "1"})
        return ApiError(503, "The engine has failed.", headers={"Connection": "close"})
