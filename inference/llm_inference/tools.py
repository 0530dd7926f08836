"""Tool calls in an answer: what the model's text says, and what a request allows.

Knows call formats and the request's tools. Knows neither the shapes of answers nor the engine.
"""

import secrets
import string
from dataclasses import dataclass
from typing import Any

from llm_inference.engine.interface import Grammar, TextCodec
from llm_inference.schemas.base import ParameterError
from llm_inference.schemas.chat import ChatCompletionRequest, NamedTool
from llm_inference.schemas.generation import (
    JsonObjectFormat,
    JsonSchemaFormat,
    ResponseFormat,
)
from llm_inference.tool_formats import (
    Call,
    CallFormat,
    detect,
    knows_tools,
    read_calls,
)
from llm_inference.tool_grammars import CallableTool, grammar

_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True, kw_only=True)
class MadeCall:
    """A call in an answer: its place among the answer's calls, its id, and what is called."""

    index: int
    id: str
    call: Call


class CallParser:
    """Splits an answer's text, as it comes, into text for the reader and calls.

    What looks like a call is held back until it is whole. If it then turns out to be none, or one
    of a function that was not offered, it is given out as text. White space around calls is lost.

    Args:
        form: how the model writes calls.
        names: functions that may be called.
        several: whether more than one call counts.
    """

    def __init__(self, form: CallFormat, names: frozenset[str], *, several: bool) -> None:
        self._form = form
        self._names = names
        self._several = several
        self._held = ""
        self._searched = 0
        self._opened: str | None = None  # the text with which the call that is open was opened
        self._blank = ""
        self._told = False
        self.made = 0

    def push(self, text: str) -> list[str | MadeCall]:
        """Add text; the pieces of text and the calls that are now certain."""
        self._held += text
        pieces: list[str | MadeCall] = []
        while self._close(pieces) if self._opened is not None else self._open(pieces):
            pass
        return pieces

    def finish(self) -> list[str | MadeCall]:
        """The pieces and calls that were still held back, when no more will come."""
        pieces: list[str | MadeCall] = []
        if self._opened is not None:
            self._settle(pieces, self._held, "")
        else:
            self._tell(pieces, self._held)
        self._held = ""
        if not self.made:
            pieces.extend([self._blank] if self._blank else [])
        return pieces

    def _open(self, pieces: list[str | MadeCall]) -> bool:
        """Look for the start of a call; whether one is open now."""
        opening = self._form.opening
        first = not self._told and not self.made
        if self._form.bare and first and self._held.lstrip().startswith("{"):
            self._opened = ""
            return True
        at = self._held.find(opening)
        if at < 0:
            keep = _overlap(self._held, opening)
            ready = len(self._held) - keep
            self._tell(pieces, self._held[:ready])
            self._held = self._held[ready:]
            return False
        self._tell(pieces, self._held[:at])
        self._held = self._held[at + len(opening) :]
        self._opened, self._searched = opening, 0
        return True

    def _close(self, pieces: list[str | MadeCall]) -> bool:
        """Look for the end of the call that is open; whether there is more to look at."""
        closing = self._form.closing
        if closing is None:
            return False
        at = self._held.find(closing, self._searched)
        if at < 0:
            self._searched = max(0, len(self._held) - len(closing))
            return False
        written, self._held = self._held[:at], self._held[at + len(closing) :]
        self._settle(pieces, written, closing)
        return True

    def _settle(self, pieces: list[str | MadeCall], written: str, closing: str) -> None:
        """Give out what was written as calls, or as the text that it is."""
        opened, self._opened = self._opened or "", None
        calls = read_calls(written, self._names)
        if calls is None:
            self._tell(pieces, opened + written + closing)
            return
        self._blank = ""
        for call in calls:
            if self.made and not self._several:
                break
            pieces.append(MadeCall(index=self.made, id=self._new_id(), call=call))
            self.made += 1

    def _tell(self, pieces: list[str | MadeCall], text: str) -> None:
        """Give out text, but white space at its end only if more text follows."""
        text = self._blank + text
        solid = text.rstrip()
        self._blank = text[len(solid) :]
        if solid:
            pieces.append(solid)
            self._told = True

    def _new_id(self) -> str:
        length = self._form.id_length
        made = "".join(secrets.choice(_ALPHABET) for _ in range(length))
        return made if length < 24 else f"call_{made}"  # noqa: PLR2004 - OpenAI's, where it may be


def _overlap(text: str, opening: str) -> int:
    """Length of the longest end of `text` that `opening` starts with."""
    for size in range(min(len(opening) - 1, len(text)), 0, -1):
        if text.endswith(opening[:size]):
            return size
    return 0


@dataclass(frozen=True, kw_only=True)
class ToolUse:
    """What a request asks of tools, for a model that can use them.

    Attributes:
        form: how the model writes calls.
        names: functions that may be called.
        several: whether an answer may hold more than one call.
        grammar: what the answer must keep to, if anything; of a response format, too.
    """

    form: CallFormat
    names: frozenset[str]
    several: bool
    grammar: Grammar | None

    def parser(self) -> CallParser:
        """A parser for one answer."""
        return CallParser(self.form, self.names, several=self.several)


def check_template(template: str, param: str) -> CallFormat:
    """The format in which a model with this chat template calls tools.

    Raises:
        ParameterError: it knows no tools, or writes calls in a way that this server cannot read.
    """
    if not knows_tools(template):
        raise ParameterError(param, "The model's chat template knows no tools.")
    form = detect(template)
    if form is None:
        raise ParameterError(param, "The model writes tool calls in a format not known here.")
    return form


def _schema(wanted: ResponseFormat | None) -> dict[str, Any] | None:
    """The schema that a response format asks for, if it asks for JSON."""
    if isinstance(wanted, JsonSchemaFormat):
        return wanted.json_schema.schema_ or {"type": "object"}
    return {"type": "object"} if isinstance(wanted, JsonObjectFormat) else None


def tool_use(body: ChatCompletionRequest, codec: TextCodec) -> ToolUse | None:
    """What a request asks of tools, None if nothing may be called.

    Raises:
        ParameterError: the model cannot use tools.
    """
    if not body.tools:
        if any(message.of_tools for message in body.messages):
            check_template(codec.chat_template, "messages")
        return None
    form = check_template(codec.chat_template, "tools")
    if not body.offers_tools:
        return None
    offered = [tool.function for tool in body.tools]
    if isinstance(body.tool_choice, NamedTool):
        wanted = body.tool_choice.function.name
        offered = [function for function in offered if function.name == wanted]
    required = body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)
    several = body.parallel_tool_calls is not False and not isinstance(body.tool_choice, NamedTool)
    constrained = None
    answer = _schema(body.response_format)
    if required or answer is not None or any(function.strict for function in offered):
        source = grammar(
            form,
            [
                CallableTool(name=f.name, schema=f.parameters if required or f.strict else None)
                for f in offered
            ],
            required=required,
            several=several,
            added_token=codec.added_token,
            answer=answer,
        )
        constrained = Grammar(kind="lark", source=source)
    names = frozenset(function.name for function in offered)
    return ToolUse(form=form, names=names, several=several, grammar=constrained)
