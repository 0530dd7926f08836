"""What all requests share: strictness, texts that can be read, JSON that can be walked.

Knows which parameters of the API this server does without.
"""

import math
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

T = TypeVar("T")
_ANYTHING = object()
# Values of parameters we do not have that leave the answer as it is. None always does.
_NO_OPS: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_cache_key": (_ANYTHING,),
    "prompt_cache_retention": (_ANYTHING,),
    "reasoning_effort": (),
    "safety_identifier": (_ANYTHING,),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "verbosity": (),
    "web_search_options": (),
}
# Deep enough for any schema; shallow enough for whatever walks it recursively later.
_DEEPEST = 64


class ParameterError(ValueError):
    """A parameter that cannot be honoured; `param` names it."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


def _encodable(text: str) -> str:
    """Refuse lone surrogates, which JSON can carry and no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text is not valid Unicode") from None
    return text


def _plain(value: T) -> T:
    """Refuse JSON that is nested too deeply, and numbers and texts that JSON should not hold."""
    waiting: list[tuple[object, int]] = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
        if isinstance(item, str):
            _encodable(item)
        elif isinstance(item, float) and not math.isfinite(item):
            raise ValueError("it holds a number that JSON does not have")
        elif isinstance(item, dict):
            waiting.extend((key, depth) for key in item)
            waiting.extend((inner, depth + 1) for inner in item.values())
        elif isinstance(item, list):
            waiting.extend((inner, depth + 1) for inner in item)
    return value


Text = Annotated[str, AfterValidator(_encodable)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_plain)]


class Strict(BaseModel):
    """A part of a request: no unknown fields, no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Request(Strict):
    """What all requests share."""

    model: Text
    user: Text | None = Field(default=None, description="who asks, for the operator's records")

    @model_validator(mode="before")
    @classmethod
    def _drop_what_changes_nothing(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if name in cls.model_fields or name not in _NO_OPS:
                kept[name] = value
            elif not _changes_nothing(value, _NO_OPS[name]):
                raise ParameterError(name, f"The parameter {name} is not supported; leave it out.")
        return kept


def _changes_nothing(value: object, no_ops: tuple[Any, ...]) -> bool:
    if value is None or _ANYTHING in no_ops:
        return True
    # 0 == False in Python, but not in JSON.
    return any(
        value == no_op and isinstance(value, bool) == isinstance(no_op, bool) for no_op in no_ops
    )
