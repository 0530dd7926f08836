"""How families of models write tool calls, told from their chat templates.

Knows the texts that open and close a call, and what stands between them. Does not know requests,
nor what becomes of a call that was read.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

_MISTRAL_CALL = re.compile(r"\s*([\w-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\])?\s*(?=\{)")


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call as the model wrote it; `arguments` is a JSON object in a string."""

    name: str
    arguments: str


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
