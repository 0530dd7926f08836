from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from llm_operator.schema import structural
from llm_operator.selectors import as_written


class Inner(BaseModel):
    """Said by the class."""

    size: int | None = None


class Outer(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    inner: Inner = Inner()
    """Said by the
    field."""
    kind: Literal["one"] = "one"
    anything: Annotated[
        dict, Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
    ] = {}
    labels: dict[str, str] = {}
    keys: dict[Annotated[str, Field(pattern="^a")], int] = {}


def test_references_are_inlined_and_the_fields_own_words_win():
    assert structural(Outer)["properties"]["inner"] == {
        "type": "object",
        "description": "Said by the field.",
        "properties": {"size": {"type": "integer"}},
    }


def test_no_references_titles_or_nulls_are_left():
    text = str(structural(Outer))
    assert not [word for word in ("$ref", "$defs", "title", "anyOf", "null") if word in text]


def test_a_constant_is_an_enumeration_of_one():
    kind = structural(Outer)["properties"]["kind"]
    assert kind == {"type": "string", "enum": ["one"], "default": "one"}


def test_open_objects_stay_open_and_maps_stay_maps():
    properties = structural(Outer)["properties"]
    assert properties["anything"] == {
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
    }
    assert properties["labels"]["additionalProperties"] == {"type": "string"}


def test_what_is_said_of_keys_is_left_out():
    assert structural(Outer)["properties"]["keys"] == {
        "type": "object",
        "additionalProperties": {"type": "integer"},
    }


def test_it_is_structural_already_the_second_time():
    class Again(BaseModel):
        part: Annotated[dict, as_written(Outer)]

    assert structural(Again)["properties"]["part"] == structural(Outer)


def test_a_real_union_is_refused():
    class Either(BaseModel):
        value: int | list[int]

    with pytest.raises(TypeError, match="union of 2 types"):
        structural(Either)
