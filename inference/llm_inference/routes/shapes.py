"""The shapes of both APIs' answers, whole and as chunks of server-sent events.

Knows JSON and the engine's events. What is the same in every chunk of an answer is written once;
only the text of an event is encoded when it comes, because a server may have to do that many
thousand times a second.
"""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring as quoted
from typing import Any, Protocol

from llm_inference.engine.interface import TextCodec, TokenEvent, TokenLogprob
from llm_inference.routes.logprobs import chat_logprobs, text_logprobs
from llm_inference.tools import CallParser, MadeCall, ToolUse


@dataclass(kw_only=True)
class Choice:
    """A choice of an answer that is told as a whole: what has come of it."""

    text: str = ""
    reason: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def add(self, event: TokenEvent) -> None:
        """Add what an event tells."""
        self.text += event.text
        self.logprobs.extend(event.logprobs)
        if event.finish_reason is not None:
            self.reason = event.finish_reason.value


class Shape(Protocol):
    """One kind of answer: how it looks whole and in chunks."""

    choices: int

    def whole(self, choices: Sequence[Choice], usage: dict[str, Any]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""

    def opening(self) -> str:
        """The chunks before the first event."""

    def chunks(self, event: TokenEvent) -> str:
        """The chunks that an event makes, none perhaps."""

    def ending(self, usage: dict[str, Any]) -> str:
        """The chunks after the last event."""


def data(chunk: dict[str, Any]) -> str:
    """A chunk as a server-sent event."""
    return f"data: {_compact(chunk)}\n\n"


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class _Envelope:
    """What every object and every chunk of one answer has around its choice."""

    def __init__(self, prefix: str, model: str, kind: str, *, with_usage: bool) -> None:
        self._with_usage = with_usage
        self._head = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }
        self._before = f'data: {_compact(self._head)[:-1]},"choices":[{{"index":'
        # OpenAI: with include_usage, all chunks but the one with the usage say that they have none.
        self._after = '}],"usage":null}\n\n' if with_usage else "}]}\n\n"

    def ending(self, usage: dict[str, Any]) -> str:
        """The chunk with the usage, if it was asked for, and the end."""
        done = "data: [DONE]\n\n"
        return (
            data({**self._head, "choices": [], "usage": usage}) + done if self._with_usage else done
        )


class ChatShape(_Envelope):
    """Answers of /v1/chat/completions.

    Args:
        model: name of the model.
        codec: its tokenizer.
        choices: how many answers.
        with_usage: whether the stream ends with the usage.
        with_logprobs: whether log probabilities were asked for.
        tools: what may be called, if anything.
    """

    def __init__(
        self,
        *,
        model: str,
        codec: TextCodec,
        choices: int,
        with_usage: bool,
        with_logprobs: bool,
        tools: ToolUse | None,
    ) -> None:
        super().__init__("chatcmpl", model, "chat.completion.chunk", with_usage=with_usage)
        self.choices = choices
        self._codec = codec
        self._with_logprobs = with_logprobs
        self._tools = tools
        self._parsers = [tools.parser() for _ in range(choices)] if tools else []
        self._plain = not tools and not with_logprobs
        self._text_before = [
            f'{self._before}{index},"delta":{{"content":' for index in range(choices)
        ]
        self._text_after = f'}},"logprobs":null,"finish_reason":null{self._after}'

    def whole(self, choices: Sequence[Choice], usage: dict[str, Any]) -> dict[str, Any]:
        """A chat.completion."""
        told = [self._choice(index, choice) for index, choice in enumerate(choices)]
        return {**self._head, "object": "chat.completion", "choices": told, "usage": usage}

    def opening(self) -> str:
        """The chunks with the role of each answer."""
        delta = {"role": "assistant", "content": ""}
        return "".join(self._chunk(index, delta) for index in range(self.choices))

    def chunks(self, event: TokenEvent) -> str:
        """The chunks that an event makes."""
        if self._plain and event.finish_reason is None:
            if not event.text:
                return ""
            return self._text_before[event.index] + quoted(event.text) + self._text_after
        reason = event.finish_reason.value if event.finish_reason else None
        deltas: list[dict[str, Any]]
        if self._tools:
            deltas, reason = self._parsed(event, reason)
        else:
            deltas = [{"content": event.text}] if event.text else []
        logprobs = chat_logprobs(self._codec, event.logprobs) if event.logprobs else None
        if not deltas and (reason or logprobs):
            deltas = [{}]
        told = ""
        for place, delta in enumerate(deltas):
            last = place == len(deltas) - 1
            told += self._chunk(
                event.index, delta, None if place else logprobs, reason if last else None
            )
        return told

    def _parsed(
        self, event: TokenEvent, reason: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """The deltas of an event whose text may hold calls, and why the answer ends."""
        parser = self._parsers[event.index]
        pieces = parser.push(event.text)
        if reason:
            pieces += parser.finish()
            reason = _reason(reason, parser)
        deltas: list[dict[str, Any]] = []
        for piece in pieces:
            deltas.extend([{"content": piece}] if isinstance(piece, str) else _call_deltas(piece))
        return deltas, reason

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        reason = choice.reason
        if self._tools:
            parser = self._tools.parser()
            pieces = parser.push(choice.text) + parser.finish()
            text = "".join(piece for piece in pieces if isinstance(piece, str))
            calls = [_call(piece) for piece in pieces if isinstance(piece, MadeCall)]
            message["content"] = text or (None if calls else "")
            if calls:
                message["tool_calls"] = calls
            reason = _reason(reason, parser)
        logprobs = chat_logprobs(self._codec, choice.logprobs) if self._with_logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> str:
        told = {"delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return f"{self._before}{index},{_compact(told)[1:-1]}{self._after}"


def _reason(reason: str, parser: CallParser) -> str:
    return "tool_calls" if parser.made and reason == "stop" else reason


def _call(made: MadeCall) -> dict[str, Any]:
    function = {"name": made.call.name, "arguments": made.call.arguments}
    return {"id": made.id, "type": "function", "function": function}


def _call_deltas(made: MadeCall) -> list[dict[str, Any]]:
    """A call as OpenAI streams it: its name, then its arguments."""
    function = {"name": made.call.name, "arguments": ""}
    opening = {"index": made.index, "id": made.id, "type": "function", "function": function}
    arguments = {"index": made.index, "function": {"arguments": made.call.arguments}}
    return [{"tool_calls": [opening]}, {"tool_calls": [arguments]}]


class TextShape(_Envelope):
    """Answers of /v1/completions.

    Args:
        model: name of the model.
        codec: its tokenizer.
        prompts: the text before each choice's own, empty if it is not to be told.
        with_usage: whether the stream ends with the usage.
        logprobs: how many most likely tokens were asked for, None for no log probabilities.
    """

    def __init__(
        self,
        *,
        model: str,
        codec: TextCodec,
        prompts: Sequence[str],
        with_usage: bool,
        logprobs: int | None,
    ) -> None:
        super().__init__("cmpl", model, "text_completion", with_usage=with_usage)
        self.choices = len(prompts)
        self._codec = codec
        self._prompts = prompts
        self._logprobs = logprobs
        self._offsets = [len(prompt) for prompt in prompts]
        self._text_before = [f'{self._before}{index},"text":' for index in range(self.choices)]
        self._text_after = f',"logprobs":null,"finish_reason":null{self._after}'

    def whole(self, choices: Sequence[Choice], usage: dict[str, Any]) -> dict[str, Any]:
        """A text_completion."""
        told = [
            {
                "index": index,
                "text": prompt + choice.text,
                "logprobs": self._told_logprobs(choice.logprobs, len(prompt)),
                "finish_reason": choice.reason,
            }
            for index, (prompt, choice) in enumerate(zip(self._prompts, choices, strict=True))
        ]
        return {**self._head, "choices": told, "usage": usage}

    def opening(self) -> str:
        """The prompts, if they are told."""
        return "".join(
            before + quoted(prompt) + self._text_after
            for before, prompt in zip(self._text_before, self._prompts, strict=True)
            if prompt
        )

    def chunks(self, event: TokenEvent) -> str:
        """The chunk that an event makes."""
        before, reason = self._text_before[event.index], event.finish_reason
        if reason is None and not event.logprobs:
            return before + quoted(event.text) + self._text_after if event.text else ""
        logprobs = None
        if event.logprobs:
            logprobs = self._told_logprobs(event.logprobs, self._offsets[event.index])
        self._offsets[event.index] += len(event.text)
        told = {"logprobs": logprobs, "finish_reason": reason.value if reason else None}
        return f"{before}{quoted(event.text)},{_compact(told)[1:-1]}{self._after}"

    def _told_logprobs(self, entries: Sequence[TokenLogprob], offset: int) -> dict[str, Any] | None:
        if self._logprobs is None:
            return None
        return text_logprobs(self._codec, entries, top=self._logprobs > 0, offset=offset)
