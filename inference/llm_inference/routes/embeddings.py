"""POST /v1/embeddings: texts and token ids to vectors. Knows no model."""

import asyncio
import base64
import math
import struct
from collections.abc import Sequence

from fastapi import APIRouter, Request

from llm_inference.errors import ApiError
from llm_inference.record import Record
from llm_inference.routes.engines import embedding_engine, in_time
from llm_inference.routes.state import Server
from llm_inference.schemas.embeddings import (
    EmbeddingItem,
    EmbeddingList,
    EmbeddingRequest,
    EmbeddingUsage,
)

router = APIRouter()


@router.post("/embeddings")
async def embeddings(body: EmbeddingRequest, request: Request, serving: Server) -> EmbeddingList:
    """Turn texts into vectors."""
    engine = embedding_engine(serving, body.model)
    inputs = body.inputs
    longest = engine.capacity.max_length
    for given in inputs:
        if not isinstance(given, str) and max(given) >= engine.capacity.vocabulary:
            raise ApiError(
                400,
                f"A token id is beyond the model's vocabulary of {engine.capacity.vocabulary}.",
                param="input",
            )
    lengths = await asyncio.to_thread(engine.count_tokens, inputs)
    if (most := max(lengths)) > longest:
        raise ApiError(
            400,
            f"An input has {most} tokens; the model reads {longest} at most.",
            param="input",
            code="context_length_exceeded",
        )
    if body.dimensions is not None and body.dimensions not in engine.dimensions:
        raise ApiError(400, _refusal(engine.dimensions), param="dimensions")
    result = await in_time(serving, lambda: engine.embed(inputs))
    record: Record = request.state.record
    record.embedded(result.tokens)
    vectors = [_shortened(vector, body.dimensions) for vector in result.vectors]
    return EmbeddingList(
        model=serving.model_name,
        data=[
            EmbeddingItem(index=index, embedding=_encode(vector, body.encoding_format))
            for index, vector in enumerate(vectors)
        ],
        usage=EmbeddingUsage(prompt_tokens=result.tokens, total_tokens=result.tokens),
    )


def _refusal(dimensions: Sequence[int]) -> str:
    if len(dimensions) == 1:
        return f"The model's vectors have {dimensions[0]} dimensions and cannot be shortened."
    most = dimensions[-1]
    if isinstance(dimensions, range):
        return f"The model's vectors have {most} dimensions; dimensions is 1 to {most}."
    return f"The model's vectors may have {', '.join(map(str, dimensions))} dimensions."


def _shortened(vector: list[float], dimensions: int | None) -> list[float]:
    """The first `dimensions` numbers, made as long as a vector of 1 again."""
    if dimensions is None or dimensions == len(vector):
        return vector
    kept = vector[:dimensions]
    length = math.sqrt(sum(number * number for number in kept)) or 1.0
    return [number / length for number in kept]


def _encode(vector: list[float], encoding: str | None) -> list[float] | str:
    if encoding != "base64":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
