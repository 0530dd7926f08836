"""One sequence of a request on its way through the engine, and the stream its events go to.

Knows the request and what has come of it, not the model and not the batch.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from llm_inference.engine.interface import (
    FinishReason,
    GenerationRequest,
    TokenEvent,
    TokenLogprob,
)
from llm_inference.engine.prefixes import TOKEN_BYTES, key_of
from llm_inference.engine.step import Choice, Draw, Matcher
from llm_inference.engine.stop import HeldLogprobs, StopMatcher

_SEED_STRIDE = 0x9E3779B97F4A7C15  # golden ratio: choices of one request get unrelated seeds
_SEED_MASK = (1 << 64) - 1
_GRAMMAR = "The text could not be kept to its grammar"


class Detokenizer(Protocol):
    """Turns token ids into whole characters as they come."""

    def push(self, token: int) -> str:
        """Text that `token` completes, possibly none."""


class EventStream:
    """Events of one request, handed from the engine's thread to the event loop that submitted it.

    Args:
        sequences: how many final events end the stream.
        on_cancel: called once, in the event loop, if the reader leaves early.
    """

    def __init__(self, sequences: int, on_cancel: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self._events: list[TokenEvent] = []
        self._reader: asyncio.Future[None] | None = None
        self._open = sequences
        self._on_cancel: Callable[[], None] | None = on_cancel

    def put(self, event: TokenEvent) -> None:
        """Add an event; called in the event loop."""
        self._events.append(event)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """Events in order, until each sequence has finished."""
        while events := await self.next_events():
            for event in events:
                yield event

    async def next_events(self) -> list[TokenEvent]:
        """Wait for an event and take all that are there; none after the last sequence's last."""
        if not self._open:
            return []
        if not self._events:
            # A queue would take three times as long, for every token of every stream.
            self._reader = self.loop.create_future()
            await self._reader
        events, self._events = self._events, []
        self._open -= sum(event.finish_reason is not None for event in events)
        if not self._open:
            self._on_cancel = None
        return events

    def cancel(self) -> None:
        """End the request if it still runs."""
        on_cancel, self._on_cancel = self._on_cancel, None
        if on_cancel is not None:
            on_cancel()


class RunningSequence:
    """A sequence: its prompt, what was generated, and how far both have got.

    A token is first taken (`advance`), which decides whether the model goes on, and then told
    (`tell`), which makes text and an event of it and may find a stop string.

    Args:
        request: what was asked.
        index: which of the request's `n` sequences this is.
        key: the prompt, as `prefixes` compares it.
        matcher: what it must keep to, or None.
        detokenizer: turns its tokens into text.
        eos: token ids that end it.
        stream: where its events go.
        now: seconds, monotonic, at which it was submitted.

    Attributes:
        cached: how many of its tokens are in its row of the cache.
        reused: how many of them were copied there when it began.
        generated: how many tokens were taken.
        finished: whether its last event has been made.
    """

    def __init__(
        self,
        *,
        request: GenerationRequest,
        index: int,
        key: bytes,
        matcher: Matcher | None,
        detokenizer: Detokenizer,
        eos: frozenset[int],
        stream: EventStream,
        now: float,
    ) -> None:
        self.prompt = request.prompt
        self.max_tokens = request.max_tokens
        self.client = request.client
        self.key = key
        base = request.sampling.seed
        base = secrets.randbits(64) if base is None else base
        self.draw = Draw(
            sampling=request.sampling,
            seed=(base + index * _SEED_STRIDE) & _SEED_MASK,
            prompt=request.prompt,
            logprobs=request.logprobs,
            matcher=matcher,
        )
        self.index = index
        self.stream = stream
        self.cancelled = False
        self.finished = False
        self.cached = self.reused = 0
        self.generated = 0
        self.last_token = request.prompt[-1]
        self.submitted_at = now
        self.began_at = now
        self.first_token_at = now
        self.last_token_at = now
        self._told = 0
        self._detokenizer = detokenizer
        self._stop = StopMatcher(request.stop)
        self._logprobs = HeldLogprobs() if request.logprobs is not None else None
        self._eos = frozenset() if request.ignore_eos else eos

    @property
    def position(self) -> int:
        """Position of the last token in its sequence; the tokens before it are in the cache."""
        return len(self.prompt) + self.generated - 1

    @property
    def waited(self) -> float:
        """Seconds it waited before its prefill began."""
        return self.began_at - self.submitted_at

    def history_key(self) -> bytes:
        """Its tokens that are in the cache, as `prefixes` compares them."""
        return (self.key + key_of(self.draw.tokens))[: self.cached * TOKEN_BYTES]

    def advance(self, choice: Choice) -> FinishReason | None:
        """Take a token that was chosen after a step; why the model need not go on, or None."""
        token = choice.token
        draw = self.draw
        draw.advance(token)
        self.last_token = token
        self.cached = len(self.prompt) + self.generated
        self.generated += 1
        if draw.matcher is not None and not draw.matcher.accept(token):
            return FinishReason.ERROR
        if token in self._eos or (draw.matcher is not None and draw.matcher.finished):
            return FinishReason.STOP
        return FinishReason.LENGTH if self.generated >= self.max_tokens else None

    def tell(self, choice: Choice, reason: FinishReason | None) -> TokenEvent | None:
        """The event a token causes that was taken with `reason`; None if there is nothing to say.

        Its reason is `STOP` where a stop string is found.
        """
        self._told += 1
        if reason is FinishReason.ERROR:
            return self.fail(reason, self._grammar_error())
        ends = choice.token in self._eos
        piece = "" if ends else self._detokenizer.push(choice.token)
        text = self._stop.push(piece)
        if self._logprobs is not None and not ends:
            self._logprobs.push(_logprob(choice), piece)
        if self._stop.matched:
            held = self._logprobs.cut(text) if self._logprobs else ()
            return self._event(text, held, FinishReason.STOP)
        if reason is not None:
            text += self._stop.flush()
            held = self._logprobs.flush() if self._logprobs else ()
            return self._event(text, held, reason)
        held = self._logprobs.release(text) if self._logprobs else ()
        return self._event(text, held, None) if text or held or self._told == 1 else None

    def fail(self, reason: FinishReason, error: str | None = None) -> TokenEvent:
        """The event that ends it before its time."""
        return self._event("", (), reason, error)

    def _event(
        self,
        text: str,
        logprobs: tuple[TokenLogprob, ...],
        reason: FinishReason | None,
        error: str | None = None,
    ) -> TokenEvent:
        self.finished = reason is not None
        return TokenEvent(
            index=self.index,
            text=text,
            tokens=self._told,
            finish_reason=reason,
            error=error,
            logprobs=logprobs,
            waited=self.waited,
            reused=self.reused,
        )

    def _grammar_error(self) -> str:
        matcher = self.draw.matcher
        return f"{_GRAMMAR}: {matcher.error if matcher else ''}"


def _logprob(choice: Choice) -> TokenLogprob:
    return TokenLogprob(token=choice.token, logprob=choice.logprob or 0.0, top=choice.top)
