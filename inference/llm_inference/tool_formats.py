"""How families of models write tool calls, told from their chat templates, and grammars of that.

Knows the texts that open and close a call and llguidance's notation for grammars. Does not know
requests, nor what becomes of a call that was read.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from pydantic import JsonValue

# Exactly what templates show models in examples. It also keeps a model from endless white space.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_MISTRAL_CALL = re.compile(r"\s*([\w-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\])?\s*(?=\{)")

Choice = Literal["auto", "required"]
AddedToken = Callable[[str], int | None]


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call as the model wrote it; `arguments` is a JSON object in a string."""

    name: str
    arguments: str


@dataclass(frozen=True, kw_only=True)
class CallableTool:
    """A tool as a grammar sees it: `schema` bounds its arguments."""

    name: str
    schema: dict[str, Any]


class CallFormat(Enum):
    """A way to write calls.

    HERMES is `<tool_call>{"name": …, "arguments": …}</tool_call>`, of Qwen, Hermes, SmolLM2 and
    others. LLAMA is `{"name": …, "parameters": …}`, perhaps after `<|python_tag|>`. MISTRAL is
    `[TOOL_CALLS][{"name": …, "arguments": …}]`, and MISTRAL_ARGS `[TOOL_CALLS]name[ARGS]{…}`.
    """

    HERMES = "hermes"
    LLAMA = "llama"
    MISTRAL = "mistral"
    MISTRAL_ARGS = "mistral_args"

    @property
    def opening(self) -> str:
        """The text after which calls come."""
        return {"hermes": "<tool_call>", "llama": "<|python_tag|>"}.get(self.value, "[TOOL_CALLS]")

    @property
    def closing(self) -> str | None:
        """The text that ends a call; None where calls go on to the answer's end."""
        return "</tool_call>" if self is CallFormat.HERMES else None

    @property
    def bare(self) -> bool:
        """Whether a call may also come without its opening, as all of an answer."""
        return self is CallFormat.LLAMA

    @property
    def id_length(self) -> int:
        """Letters and digits of a call's id: Mistral's templates refuse all but nine."""
        return 9 if self in (CallFormat.MISTRAL, CallFormat.MISTRAL_ARGS) else 24


def knows_tools(template: str) -> bool:
    """Whether a chat template tells the model of tools."""
    return re.search(r"\btools\b", template) is not None


def detect(template: str) -> CallFormat | None:
    """The format that a chat template teaches, None if it is none that this server knows."""
    if not knows_tools(template):
        return None
    if "[TOOL_CALLS]" in template:
        return CallFormat.MISTRAL_ARGS if "[ARGS]" in template else CallFormat.MISTRAL
    # Qwen's coders write <function=name><parameter=name> between the same tags.
    if "<tool_call>" in template and "<function=" not in template:
        return CallFormat.HERMES
    if "<|python_tag|>" in template or ('"parameters"' in template and "ipython" in template):
        return CallFormat.LLAMA
    return None


def read_calls(written: str, names: frozenset[str]) -> list[Call] | None:
    """The calls of functions among `names` in what stands between opening and closing.

    None if it is anything else: then it is text.
    """
    calls: list[Call] = []
    try:
        for name, arguments in _written_calls(written):
            if isinstance(arguments, str):
                arguments = json.loads(arguments)  # noqa: PLW2901 - some models quote them
            known = isinstance(name, str) and name in names
            if not known or not isinstance(arguments, dict):
                return None
            text = json.dumps(arguments, ensure_ascii=False)
            text.encode()
            calls.append(Call(name=name, arguments=text))
    except (ValueError, RecursionError):
        return None
    return calls or None


def _written_calls(written: str) -> Iterator[tuple[Any, Any]]:
    decoder = json.JSONDecoder()
    at = 0
    while (at := _skip(written, at)) < len(written):
        if named := _MISTRAL_CALL.match(written, at):
            arguments, at = decoder.raw_decode(written, named.end())
            yield named[1], arguments
            continue
        value, at = decoder.raw_decode(written, at)
        for item in value if isinstance(value, list) else [value]:
            call = item if isinstance(item, dict) else {}
            yield call.get("name"), call.get("arguments", call.get("parameters", {}))


def _skip(text: str, at: int) -> int:
    """The next position with anything but white space, separators and Mistral's opening."""
    while at < len(text):
        if text[at].isspace() or text[at] in ";,":
            at += 1
        elif text.startswith("[TOOL_CALLS]", at):
            at += len("[TOOL_CALLS]")
        else:
            break
    return at


def grammar(
    form: CallFormat,
    tools: Sequence[CallableTool],
    *,
    choice: Choice,
    several: bool,
    added_token: AddedToken,
) -> str:
    """A grammar, in llguidance's Lark, of answers that call `tools`.

    Args:
        form: how the model writes calls.
        tools: what may be called.
        choice: `required` for nothing but calls; `auto` also allows text, before calls or instead.
        several: whether an answer may hold more than one call.
        added_token: the id of the token that a text is, if it is one of its own.
    """

    def marker(text: str) -> str:
        # Such a token is no text to llguidance, special or not: it is asked for by its id.
        number = added_token(text)
        return json.dumps(text) if number is None else f"<[{number}]>"

    opening = marker(form.opening)
    special = opening.startswith("<")
    if form is CallFormat.HERMES:
        closing = marker("</tool_call>")
        call = f'"\\n" body "\\n" {closing}'
        rules = [f"body: {_json(_any_call(tools, 'arguments'))}"]
        more = f' ("\\n" {opening} {call})*' if several else ""
        calls = f"{opening} {call}{more}"
        if choice == "required":
            start = f"start: {calls}"
        elif special:
            start = f"start: TEXT? ({calls})?"
        else:
            start = f"start: (until {call}){'*' if several else '?'} TEXT?"
            rules.append(f"until[suffix={opening}]: /(?s:.*)/")
    elif form is CallFormat.LLAMA:
        rules = [f"body: {_json(_any_call(tools, 'parameters'))}"]
        start = 'start: body ("; " body)*' if several else "start: body"
        if choice == "auto":
            start += f" | {opening} body | TEXT" if special else " | TEXT"
            rules.append(r"TEXT: /(?s:\s*[^\s{].*)/")
    elif form is CallFormat.MISTRAL:
        rules = [f"body: {_json(_call_list(tools, several=several))}"]
        start = f"start: {opening} body"
        if choice == "auto":
            start = f"start: TEXT? ({opening} body)?"
    else:
        args = marker("[ARGS]")
        rules = [
            f"body{place}: {json.dumps(tool.name)} {args} {_json(tool.schema)}"
            for place, tool in enumerate(tools)
        ]
        bodies = " | ".join(f"body{place}" for place in range(len(tools)))
        rules.append(f"call: {opening} ({bodies})")
        repeated = "call+" if several else "call"
        start = f"start: {repeated}" if choice == "required" else f"start: TEXT? ({repeated})?"
    if choice == "auto" and form is not CallFormat.LLAMA:
        rules.append("TEXT: /(?s:.+)/")
    return "\n".join([start, *rules, ""])


def _json(schema: dict[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": _LAYOUT})


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
            str(place): _moved(tool.schema, f"#/$defs/{place}") for place, tool in enumerate(tools)
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


def callable_tool(
    name: str, schema: dict[str, Any] | None, *, enforced: bool = True
) -> CallableTool:
    """A tool whose arguments keep to its schema, or are any object if that is not enforced."""
    return CallableTool(name=name, schema=schema if schema and enforced else _ANY_OBJECT)
