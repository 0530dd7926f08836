"""POST /v1/chat/completions: conversations, with tools and grammars. Knows no model."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from llm_inference.engine.interface import GenerationEngine
from llm_inference.errors import ApiError
from llm_inference.routes.answers import answer
from llm_inference.routes.engines import generation_engine
from llm_inference.routes.parameters import Asked, constraint, submit
from llm_inference.routes.shapes import ChatShape
from llm_inference.routes.state import Server
from llm_inference.schemas.base import ParameterError
from llm_inference.schemas.chat import ChatCompletion, ChatCompletionRequest, Message, Tool
from llm_inference.tools import check_template, tool_use

router = APIRouter()


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def chat_completions(
    body: ChatCompletionRequest, request: Request, serving: Server
) -> Response:
    """Answer a conversation."""
    engine = generation_engine(serving, body.model)
    if not engine.codec.has_chat_template:
        raise ApiError(
            400, "The model has no chat template; use /v1/completions.", param="messages"
        )
    try:
        tools = tool_use(body, engine.codec)
    except ParameterError as error:
        raise ApiError(400, str(error), param=error.param) from error
    prompt = await encode_chat(engine, body.messages, body.tools if body.offers_tools else None)
    top = (body.top_logprobs or 0) if body.logprobs else None
    asked = Asked(
        source="messages",
        limit=body.max_completion_tokens or body.max_tokens,
        continues=False,
        logprobs=top,
        constraint=await constraint(engine, body, tools),
    )
    stream = submit(serving, request, body, [prompt], asked)
    shape = ChatShape(
        model=serving.model_name,
        codec=engine.codec,
        choices=body.n or 1,
        with_usage=body.with_usage,
        with_logprobs=bool(body.logprobs),
        tools=tools,
    )
    return await answer(
        request, serving, shape=shape, stream=stream, prompts=[prompt], streamed=body.stream
    )


async def encode_chat(
    engine: GenerationEngine,
    messages: list[Message],
    tools: list[Tool] | None,
    *,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Token ids of a conversation.

    Raises:
        ApiError: 400, the model's template refuses the messages or knows no tools.
    """
    codec = engine.codec
    try:
        if tools:
            check_template(codec.chat_template, "tools")
        if any(message.of_tools for message in messages):
            check_template(codec.chat_template, "messages")
        told = [message.for_template() for message in messages]
        return await asyncio.to_thread(
            codec.encode_chat,
            told,
            tools=[tool.for_template() for tool in tools or ()],
            add_generation_prompt=add_generation_prompt,
        )
    except ParameterError as error:
        raise ApiError(400, str(error), param=error.param) from error
    except ValueError as error:
        message = str(error)
        raise ApiError(400, f"{message[:1].upper()}{message[1:]}.", param="messages") from error
