"""The OpenAI API: /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models.

Knows how a request of the API becomes a request of the engine. What comes back is put into the
API's shape by `answers`.
"""

import asyncio
import base64
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response

from llm_inference.engine.interface import (
    EmbeddingEngine,
    EngineClosedError,
    EngineError,
    EngineFullError,
    GenerationEngine,
    GenerationRequest,
    SamplingParams,
    TokenStream,
)
from llm_inference.errors import ApiError
from llm_inference.routes.answers import ChatAnswer, TextAnswer, answer
from llm_inference.routes.state import Server
from llm_inference.schemas import (
    ChatCompletion,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    EmbeddingItem,
    EmbeddingList,
    EmbeddingRequest,
    EmbeddingUsage,
    GenerationParameters,
    ModelCard,
    ModelList,
)
from llm_inference.serving import Serving

router = APIRouter(prefix="/v1", tags=["openai"])
T = TypeVar("T")


@router.post("/chat/completions", response_model=ChatCompletion)
async def chat_completions(
    body: ChatCompletionRequest, request: Request, serving: Server
) -> Response:
    """Answer a conversation."""
    engine = _generation_engine(serving, body.model)
    if not engine.codec.has_chat_template:
        raise ApiError(
            400, "The model has no chat template; use /v1/completions.", param="messages"
        )
    messages = [message.for_template() for message in body.messages]
    try:
        prompt = await asyncio.to_thread(engine.codec.encode_chat, messages)
    except ValueError as error:
        raise ApiError(400, f"{error}.".capitalize(), param="messages") from error
    limit = body.max_completion_tokens or body.max_tokens
    asked = _generation_request(engine, body, prompt, limit, "messages", continues=False)
    stream = _submit(serving, engine, asked)
    shape = ChatAnswer(serving.model_name)
    return await answer(request, serving, body, shape=shape, stream=stream, asked=asked)


@router.post("/completions", response_model=Completion)
async def completions(body: CompletionRequest, request: Request, serving: Server) -> Response:
    """Continue a text."""
    engine = _generation_engine(serving, body.model)
    prompt = body.prompt
    if isinstance(prompt, str):
        prompt = await asyncio.to_thread(engine.codec.encode, prompt)
    elif max(prompt) >= engine.capacity.vocabulary:
        raise ApiError(
            400,
            f"A token id is beyond the model's vocabulary of {engine.capacity.vocabulary}.",
            param="prompt",
        )
    # OpenAI's default for completions, unlike chat's, is this small.
    limit = body.max_tokens or 16
    asked = _generation_request(engine, body, prompt, limit, "prompt", continues=True)
    stream = _submit(serving, engine, asked)
    shape = TextAnswer(serving.model_name)
    return await answer(request, serving, body, shape=shape, stream=stream, asked=asked)


@router.post("/embeddings")
async def embeddings(body: EmbeddingRequest, serving: Server) -> EmbeddingList:
    """Turn texts into vectors."""
    engine = _embedding_engine(serving, body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    lengths = await asyncio.to_thread(engine.count_tokens, texts)
    if (longest := max(lengths)) > engine.capacity.max_length:
        raise ApiError(
            400,
            f"An input has {longest} tokens; the model reads {engine.capacity.max_length} at most.",
            param="input",
            code="context_length_exceeded",
        )
    result = await _in_time(serving, lambda: engine.embed(texts))
    return EmbeddingList(
        model=serving.model_name,
        data=[
            EmbeddingItem(index=index, embedding=_encode(vector, body.encoding_format))
            for index, vector in enumerate(result.vectors)
        ],
        usage=EmbeddingUsage(prompt_tokens=result.tokens, total_tokens=result.tokens),
    )


@router.get("/models")
async def models(serving: Server) -> ModelList:
    """The one model that is served."""
    return ModelList(data=[_card(serving)])


@router.get("/models/{name:path}")
async def model(name: str, serving: Server) -> ModelCard:
    """The served model by its name."""
    _check_model(serving, name)
    return _card(serving)


def _card(serving: Serving) -> ModelCard:
    return ModelCard(
        id=serving.model_name,
        created=serving.created,
        owned_by=serving.model_root.partition("/")[0],
        root=serving.model_root,
        max_model_len=_engine(serving).capacity.max_length,
    )


def _engine(serving: Serving) -> GenerationEngine | EmbeddingEngine:
    if serving.engine is None:
        raise ApiError(503, "The model is still loading.", headers={"Retry-After": "1"})
    return serving.engine


def _check_model(serving: Serving, name: str) -> None:
    if name != serving.model_name:
        raise ApiError(
            404,
            f"The model {name} does not exist here; this server serves {serving.model_name}.",
            param="model",
            code="model_not_found",
        )


def _generation_engine(serving: Serving, name: str) -> GenerationEngine:
    _check_model(serving, name)
    engine = _engine(serving)
    if not isinstance(engine, GenerationEngine):
        raise ApiError(400, "The model computes embeddings only; use /v1/embeddings.")
    return engine


def _embedding_engine(serving: Serving, name: str) -> EmbeddingEngine:
    _check_model(serving, name)
    engine = _engine(serving)
    if not isinstance(engine, EmbeddingEngine):
        raise ApiError(400, "The model generates text only; it computes no embeddings.")
    return engine


def _generation_request(
    engine: GenerationEngine,
    body: GenerationParameters,
    prompt: Sequence[int],
    limit: int | None,
    source: str,
    *,
    continues: bool,
) -> GenerationRequest:
    """What the engine is asked for.

    Raises:
        ApiError: 400, the prompt is empty, or prompt and output do not fit the model's context.
    """
    longest = engine.capacity.max_length
    if not prompt:
        raise ApiError(400, "The prompt is empty.", param=source)
    if len(prompt) + (limit or 1) > longest:
        wanted = f" and {limit} for the output" if limit else ""
        raise ApiError(
            400,
            f"The model's context is {longest} tokens, but the request needs {len(prompt)} "
            f"for its {source}{wanted}.",
            param=source if len(prompt) >= longest else "max_tokens",
            code="context_length_exceeded",
        )
    count = body.n or 1
    if count > engine.capacity.max_concurrency:
        raise ApiError(400, f"n is at most {engine.capacity.max_concurrency} here.", param="n")
    return GenerationRequest(
        prompt=prompt,
        max_tokens=limit or longest - len(prompt),
        n=count,
        sampling=_sampling(body),
        stop=body.stops,
        continues_prompt=continues,
    )


def _sampling(body: GenerationParameters) -> SamplingParams:
    return SamplingParams(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        seed=body.seed,
    )


def _submit(serving: Serving, engine: GenerationEngine, asked: GenerationRequest) -> TokenStream:
    try:
        return engine.submit(asked)
    except EngineError as error:
        raise _refused(serving, error) from error


def _refused(serving: Serving, error: EngineError) -> ApiError:
    if isinstance(error, EngineFullError):
        serving.metrics.rejected()
        headers = {"Retry-After": str(error.retry_after)}
        return ApiError(429, str(error), code="queue_full", headers=headers)
    if isinstance(error, EngineClosedError):
        return ApiError(503, str(error), headers={"Retry-After": "1"})
    return ApiError(500, str(error))


async def _in_time(serving: Serving, work: Callable[[], Awaitable[T]]) -> T:
    seconds = serving.settings.request_timeout_seconds
    try:
        async with asyncio.timeout(seconds):
            return await work()
    except TimeoutError:
        raise ApiError(504, f"The request took longer than {seconds:g} s.") from None
    except EngineError as error:
        raise _refused(serving, error) from error


def _encode(vector: list[float], encoding: str | None) -> list[float] | str:
    if encoding != "base64":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
