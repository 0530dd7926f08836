"""Body and answer of POST /v1/embeddings."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from llm_inference.schemas.base import Request, Text, TokenIds


class EmbeddingRequest(Request):
    """Body of POST /v1/embeddings: inputs as texts or as token ids."""

    input: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=2048)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=2048)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1, lt=2**31)

    @property
    def inputs(self) -> "list[str | list[int]]":
        """The inputs as a list."""
        match self.input:
            case str():
                return [self.input]
            case [int(), *_]:
                return [self.input]  # type: ignore[list-item]  # the union tells it
            case _:
                return self.input  # type: ignore[return-value]


class EmbeddingItem(BaseModel):
    """The vector of one input, as numbers or as base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens of an embedding request."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """Answer of POST /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage
