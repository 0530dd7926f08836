"""The engine behind a route: which one it is, what it refuses, how long it may take.

Knows how the engine's errors become the API's.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from llm_inference.engine.interface import (
    EmbeddingEngine,
    EngineClosedError,
    EngineError,
    EngineFullError,
    GenerationEngine,
)
from llm_inference.errors import ApiError
from llm_inference.serving import Serving

T = TypeVar("T")


def any_engine(serving: Serving) -> GenerationEngine | EmbeddingEngine:
    """The engine.

    Raises:
        ApiError: 503, the model is still loading.
    """
    if serving.engine is None:
        raise ApiError(503, "The model is still loading.", headers={"Retry-After": "1"})
    return serving.engine


def check_model(serving: Serving, name: str) -> None:
    """Compare a request's model with the one that is served.

    Raises:
        ApiError: 404, it is another one.
    """
    if name != serving.model_name:
        raise ApiError(
            404,
            f"The model {name} does not exist here; this server serves {serving.model_name}.",
            param="model",
            code="model_not_found",
        )


def generation_engine(serving: Serving, name: str) -> GenerationEngine:
    """The engine, if the model generates text and is the one that is asked for.

    Raises:
        ApiError: it is not.
    """
    check_model(serving, name)
    engine = any_engine(serving)
    if not isinstance(engine, GenerationEngine):
        raise ApiError(400, "The model computes embeddings only; use /v1/embeddings.")
    return engine


def embedding_engine(serving: Serving, name: str) -> EmbeddingEngine:
    """The engine, if the model computes embeddings and is the one that is asked for.

    Raises:
        ApiError: it is not.
    """
    check_model(serving, name)
    engine = any_engine(serving)
    if not isinstance(engine, EmbeddingEngine):
        raise ApiError(400, "The model generates text only; it computes no embeddings.")
    return engine


def refused(serving: Serving, error: EngineError) -> ApiError:
    """What a client is told when the engine refuses."""
    if isinstance(error, EngineFullError):
        serving.metrics.rejected(error.of)
        headers = {"Retry-After": str(error.retry_after)}
        return ApiError(429, str(error), code="queue_full", headers=headers)
    if isinstance(error, EngineClosedError):
        return ApiError(503, str(error), headers={"Retry-After": "1"})
    return ApiError(500, str(error))


def out_of_time(serving: Serving) -> ApiError:
    """What a client is told whose request has taken too long."""
    seconds = serving.settings.request_timeout_seconds
    return ApiError(504, f"The request took longer than {seconds:g} s.")


async def in_time(serving: Serving, work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`.

    Raises:
        ApiError: the engine refused, failed, or took too long.
    """
    try:
        async with asyncio.timeout(serving.settings.request_timeout_seconds):
            return await work()
    except TimeoutError:
        raise out_of_time(serving) from None
    except EngineError as error:
        raise refused(serving, error) from error
