"""What requests for chat and text completions share: sampling, bounds, grammars, streams."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llm_inference.schemas.base import JsonObject, ParameterError, Request, Strict, Text

StopText = Annotated[Text, Field(min_length=1, max_length=256)]
_Bias = Annotated[float, Field(ge=-100, le=100)]
_TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Strict):
    """A named JSON schema. The answer keeps to it whether `strict` asks for that or not."""

    model_config = ConfigDict(validate_by_name=False, validate_by_alias=True)

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Text | None = None
    schema_: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    """JSON that keeps to a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class GenerationParameters(Request):
    """What chat and text completions share; the defaults are OpenAI's."""

    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(
        default=None, ge=-1, lt=2**31, description="-1 and 0 keep every token"
    )
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(
        default=None, gt=0, le=100, description="1 changes nothing"
    )
    logit_bias: Annotated[dict[_TokenKey, _Bias], Field(max_length=1024)] | None = Field(
        default=None, description="token ids as strings, and what is added to their logits"
    )
    ignore_eos: bool | None = Field(default=None, description="go on to max_tokens")
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    n: int | None = Field(default=None, ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    guided_json: JsonObject | Text | None = Field(
        default=None, description="JSON schema that the answer keeps to"
    )
    guided_regex: Text | None = Field(
        default=None, description="regular expression that the whole answer matches"
    )
    guided_choice: Annotated[list[Text], Field(min_length=1, max_length=1024)] | None = Field(
        default=None, description="texts of which the answer is one"
    )
    guided_grammar: Text | None = Field(
        default=None, description="grammar that the answer keeps to, in Lark's notation"
    )

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> "GenerationParameters":
        if self.stream_options is not None and not self.stream:
            raise ParameterError("stream_options", "stream_options needs stream to be true.")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class PromptTokens(BaseModel):
    """Of a request's prompt tokens, those that were in the cache already."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens
