"""POST /tokenize and /detokenize, in vLLM's shapes. Knows no model but its codec."""

import asyncio

from fastapi import APIRouter

from llm_inference.engine.interface import GenerationEngine
from llm_inference.errors import ApiError
from llm_inference.routes.chat import encode_chat
from llm_inference.routes.engines import generation_engine
from llm_inference.routes.parameters import check_tokens
from llm_inference.routes.state import Server
from llm_inference.schemas.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)

router = APIRouter()


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, serving: Server) -> TokenizeResponse:
    """The token ids of a prompt or a conversation, as a completion would read them."""
    engine = generation_engine(serving, body.model or serving.model_name)
    tokens = await _encode(engine, body)
    strings = None
    if body.return_token_strs:
        strings = [engine.codec.token_bytes(token).decode("utf-8", "replace") for token in tokens]
    return TokenizeResponse(
        count=len(tokens),
        max_model_len=engine.capacity.max_length,
        tokens=tokens,
        token_strs=strings,
    )


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, serving: Server) -> DetokenizeResponse:
    """The text of token ids, special tokens included."""
    engine = generation_engine(serving, body.model or serving.model_name)
    check_tokens(body.tokens, engine.capacity, "tokens")
    return DetokenizeResponse(prompt=await asyncio.to_thread(engine.codec.decode, body.tokens))


async def _encode(engine: GenerationEngine, body: TokenizeRequest) -> list[int]:
    if body.messages is None:
        return await asyncio.to_thread(
            engine.codec.encode,
            body.prompt or "",
            special_tokens=body.add_special_tokens is not False,
        )
    if not engine.codec.has_chat_template:
        raise ApiError(400, "The model has no chat template.", param="messages")
    return await encode_chat(
        engine,
        body.messages,
        body.tools,
        add_generation_prompt=body.add_generation_prompt,
    )
