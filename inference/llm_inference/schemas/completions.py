"""Body and answer of POST /v1/completions."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from llm_inference.schemas.base import ParameterError, Text, TokenIds
from llm_inference.schemas.generation import GenerationParameters, Usage


class CompletionRequest(GenerationParameters):
    """Body of POST /v1/completions: prompts as texts or as token ids."""

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=1024)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=1024)]
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | Literal[False] | None = None
    echo: bool | None = Field(default=None, description="begin the text with the prompt")

    @model_validator(mode="after")
    def _echo_has_no_logprobs(self) -> "CompletionRequest":
        if self.echo and self.logprobs not in (None, False):
            raise ParameterError("echo", "echo cannot be had with logprobs, nor they of a prompt.")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list."""
        match self.prompt:
            case str():
                return [self.prompt]
            case [int(), *_]:
                return [self.prompt]  # type: ignore[return-value]  # the union tells it
            case _:
                return self.prompt  # type: ignore[return-value]


class TextLogprobs(BaseModel):
    """The tokens of a text with their log probabilities, in lists of equal length."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class TextChoice(BaseModel):
    """One of the `n` continuations of a prompt, or a piece of one."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None


class Completion(BaseModel):
    """Answer of POST /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
