"""The ASGI application: routes, errors, and the gate in front of them.

Knows HTTP and the server's life; knows no torch: the model comes through `Serving`.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI

from llm_inference import __version__
from llm_inference.errors import add_handlers
from llm_inference.gate import Gate
from llm_inference.keys import KeyFile
from llm_inference.record import Record
from llm_inference.routes import health, openai
from llm_inference.serving import Serving


def create_app(
    serving: Serving,
    keys: KeyFile | None = None,
    trace: Callable[[Record], str | None] = lambda _: None,
) -> FastAPI:
    """The application for `serving`, for those with one of `keys` or, without, for all.

    Starting it starts loading the model. `trace` is told of each request that is over.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        serving.start_loading()
        yield
        await serving.close()

    app = FastAPI(
        title="llm-inference",
        summary="OpenAI-compatible server for one transformers model",
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
        # FastAPI's own would send the values of what it refuses, which are parts of prompts.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.serving = serving
    app.include_router(health.router)
    app.include_router(openai.router)
    app.add_middleware(Gate, serving=serving, keys=keys, trace=trace)
    add_handlers(app)
    return app
