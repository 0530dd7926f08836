"""POST /v1/completions: texts and token ids to be continued. Knows no model."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from llm_inference.engine.interface import TextCodec
from llm_inference.routes.answers import answer
from llm_inference.routes.engines import generation_engine
from llm_inference.routes.parameters import Asked, check_tokens, constraint, submit
from llm_inference.routes.shapes import TextShape
from llm_inference.routes.state import Server
from llm_inference.schemas.completions import Completion, CompletionRequest

router = APIRouter()
# OpenAI's default for completions, unlike chat's, is this small.
_MAX_TOKENS = 16


@router.post(
    "/completions",
    response_model=Completion,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def completions(body: CompletionRequest, request: Request, serving: Server) -> Response:
    """Continue texts; choice `prompt * n + i` is the `i`-th continuation of a prompt."""
    engine = generation_engine(serving, body.model)
    given = body.prompts
    for prompt in given:
        if not isinstance(prompt, str):
            check_tokens(prompt, engine.capacity, "prompt")
    prompts = await asyncio.to_thread(_encode, engine.codec, given)
    logprobs = None if body.logprobs is False else body.logprobs
    asked = Asked(
        source="prompt",
        limit=body.max_tokens or _MAX_TOKENS,
        continues=True,
        logprobs=logprobs,
        constraint=await constraint(engine, body),
    )
    stream = submit(serving, request, body, prompts, asked)
    told = _texts(engine.codec, given) if body.echo else [""] * len(prompts)
    shape = TextShape(
        model=serving.model_name,
        codec=engine.codec,
        prompts=[text for text in told for _ in range(body.n or 1)],
        with_usage=body.with_usage,
        logprobs=logprobs,
    )
    return await answer(
        request, serving, shape=shape, stream=stream, prompts=prompts, streamed=body.stream
    )


def _encode(codec: TextCodec, prompts: list[str] | list[list[int]]) -> list[list[int]]:
    return [codec.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]


def _texts(codec: TextCodec, prompts: list[str] | list[list[int]]) -> list[str]:
    return [prompt if isinstance(prompt, str) else codec.decode(prompt) for prompt in prompts]
