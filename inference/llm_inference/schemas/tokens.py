"""Bodies and answers of POST /tokenize and /detokenize, in vLLM's shapes."""

from typing import Annotated

from pydantic import BaseModel, Field, model_validator

from llm_inference.schemas.base import ParameterError, Strict, Text, TokenId
from llm_inference.schemas.chat import Message, Tool


class TokenizeRequest(Strict):
    """Body of POST /tokenize: a prompt or a conversation.

    `add_special_tokens` is true by default for a prompt, and false for a conversation, whose
    template has put them in.
    """

    model: Text | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    add_generation_prompt: bool = True
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ParameterError("prompt", "Send either a prompt or messages.")
        if self.messages and self.add_special_tokens:
            raise ParameterError(
                "add_special_tokens", "The chat template has put the special tokens in already."
            )
        return self


class TokenizeResponse(BaseModel):
    """Answer of POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Strict):
    """Body of POST /detokenize."""

    model: Text | None = None
    tokens: list[TokenId]


class DetokenizeResponse(BaseModel):
    """Answer of POST /detokenize."""

    prompt: str
