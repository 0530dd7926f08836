"""Grammars of answers that call tools, in each format that models write calls in.

Knows llguidance's notation. Does not know requests; the engine compiles what is made here.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from llm_inference.tool_formats import CallFormat

# Exactly what templates show models in examples. It also keeps a model from endless white space.
_EXACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_LOOSE = {"whitespace_pattern": r"[ \t\n]{0,16}"}
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_TEXT = "TEXT: /(?s:.+)/"

AddedToken = Callable[[str], int | None]


@dataclass(frozen=True, kw_only=True)
class CallableTool:
    """A tool as a grammar sees it: `schema` bounds its arguments, None allows any object."""

    name: str
    schema: dict[str, Any] | None

    @property
    def arguments(self) -> dict[str, Any]:
        """The schema of its arguments."""
        return self.schema or _ANY_OBJECT


def grammar(
    form: CallFormat,
    tools: Sequence[CallableTool],
    *,
    required: bool,
    several: bool,
    added_token: AddedToken,
    answer: dict[str, Any] | None = None,
) -> str:
    """A grammar, in llguidance's Lark, of answers that call `tools`.

    Args:
        form: how the model writes calls.
        tools: what may be called.
        required: whether the answer is calls and nothing else; else it may also hold text, before
            calls or instead of them.
        several: whether an answer may hold more than one call.
        added_token: the id of the token that a text is, if it is one of its own.
        answer: the schema of an answer that calls nothing, which is JSON then, and of no text
            before calls.
    """

    def marker(text: str) -> str:
        # Such a token is no text to llguidance, special or not: it is asked for by its id.
        number = added_token(text)
        return json.dumps(text) if number is None else f"<[{number}]>"

    opening = marker(form.opening)
    match form:
        case CallFormat.HERMES:
            calls, rules = _hermes(tools, opening, marker("</tool_call>"), several=several)
        case CallFormat.LLAMA:
            calls, rules = _llama(tools, several=several)
        case CallFormat.MISTRAL:
            calls, rules = _mistral(tools, opening, several=several)
        case CallFormat.MISTRAL_ARGS:
            calls, rules = _mistral_args(tools, opening, marker("[ARGS]"), several=several)
    if required:
        start = [f"start: {calls}"]
    elif answer is not None:
        start = [f"start: {calls} | answer", f"answer: {_json(answer, _LOOSE)}"]
    elif form is CallFormat.LLAMA:
        # What begins with a brace is a call: this format has no other sign.
        marked = f"{opening} {calls} | " if _is_token(opening) else ""
        start = [f"start: {calls} | {marked}TEXT", r"TEXT: /(?s:\s*[^\s{].*)/"]
    elif _is_token(opening):
        start = [f"start: TEXT? ({calls})?", _TEXT]
    else:
        # Ordinary tokens spell the opening: text goes on to the first one in it.
        after = calls.removeprefix(opening)
        start = [f"start: (until {after})? TEXT?", f"until[suffix={opening}]: /(?s:.*)/", _TEXT]
    return "\n".join([*start, *rules, ""])


def _hermes(
    tools: Sequence[CallableTool], opening: str, closing: str, *, several: bool
) -> tuple[str, list[str]]:
    """What an answer of nothing but calls is, and the rules for that."""
    call = f'{opening} "\\n" body "\\n" {closing}'
    more = f' ("\\n" {call})*' if several else ""
    return call + more, [f"body: {_json(_any_call(tools, 'arguments'))}"]


def _llama(tools: Sequence[CallableTool], *, several: bool) -> tuple[str, list[str]]:
    calls = 'body ("; " body)*' if several else "body"
    return calls, [f"body: {_json(_any_call(tools, 'parameters'))}"]


def _mistral(
    tools: Sequence[CallableTool], opening: str, *, several: bool
) -> tuple[str, list[str]]:
    return f"{opening} body", [f"body: {_json(_call_list(tools, several=several))}"]


def _mistral_args(
    tools: Sequence[CallableTool], opening: str, divider: str, *, several: bool
) -> tuple[str, list[str]]:
    bodies = [
        f"body{place}: {json.dumps(tool.name)} {divider} {_json(tool.arguments)}"
        for place, tool in enumerate(tools)
    ]
    names = " | ".join(f"body{place}" for place in range(len(tools)))
    call = f"{opening} ({names})"
    return f"{call} ({call})*" if several else call, bodies


def _is_token(marker: str) -> bool:
    return marker.startswith("<")


def _json(schema: dict[str, Any], layout: dict[str, Any] = _EXACT) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": layout})


def _any_call(tools: Sequence[CallableTool], key: str) -> dict[str, Any]:
    """The schema of one call of any of `tools`, their own schemas being definitions in it."""
    return {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.name},
                    key: {"$ref": f"#/$defs/{place}"},
                },
                "required": ["name", key],
                "additionalProperties": False,
            }
            for place, tool in enumerate(tools)
        ],
        "$defs": {
            str(place): _moved(tool.arguments, f"#/$defs/{place}")
            for place, tool in enumerate(tools)
        },
    }


def _call_list(tools: Sequence[CallableTool], *, several: bool) -> dict[str, Any]:
    call = _any_call(tools, "arguments")
    definitions = call.pop("$defs")
    bounds = {"minItems": 1} if several else {"minItems": 1, "maxItems": 1}
    return {"type": "array", "items": call, **bounds, "$defs": definitions}


def _moved(schema: JsonValue, root: str) -> JsonValue:
    """A schema whose references to its own root lead to `root`, where it is being put."""
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, root) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference.removeprefix("#")
    return moved
