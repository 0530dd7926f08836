"""One sequence of a request on its way through the engine, and the stream its events go to.

Knows the request and what has come of it, not the model and not the batch.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from llm_inference.engine.interface import (
    FinishReason,
    GenerationRequest,
    TokenEvent,
)
from llm_inference.engine.step import Choice, Draw
from llm_inference.engine.stop import StopMatcher

_SEED_STRIDE = 0x9E3779B97F4A7C15  # golden ratio: choices of one request get unrelated seeds
_SEED_MASK = (1 << 64) - 1


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
        self._events: asyncio.Queue[TokenEvent] = asyncio.Queue()
        self._open = sequences
        self._on_cancel: Callable[[], None] | None = on_cancel

    def put(self, event: TokenEvent) -> None:
        """Add an event; called in the event loop."""
        self._events.put_nowait(event)

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """Events in order, until each sequence has finished."""
        while self._open:
            event = await self._events.get()
            if event.finish_reason is not None:
                self._open -= 1
                if not self._open:
                    self._on_cancel = None
            yield event

    def cancel(self) -> None:
        """End the request if it still runs."""
        on_cancel, self._on_cancel = self._on_cancel, None
        if on_cancel is not None:
            on_cancel()


class RunningSequence:
    """A sequence: its prompt, what was generated, and how far both have got.

    Args:
        request: what was asked.
        index: which of the request's `n` sequences this is.
        detokenizer: turns its tokens into text.
        eos: token ids that end it.
        stream: where its events go.
        now: seconds, monotonic, at which it was submitted.
    """

    def __init__(
        self,
        *,
        request: GenerationRequest,
        index: int,
        detokenizer: Detokenizer,
        eos: frozenset[int],
        stream: EventStream,
        now: float,
    ) -> None:
        self.prompt: Sequence[int] = request.prompt
        self.max_tokens = request.max_tokens
        base = request.sampling.seed
        base = secrets.randbits(64) if base is None else base
        self.draw = Draw(
            sampling=request.sampling,
            seed=(base + index * _SEED_STRIDE) & _SEED_MASK,
            prompt=request.prompt,
            logprobs=request.logprobs,
        )
        self.index = index
        self.stream = stream
        self.cancelled = False
        self.prefilled = 0
        self.generated = 0
        self.last_token = -1
        self.submitted_at = now
        self.began_at = now
        self.first_token_at = now
        self.last_token_at = now
        self._detokenizer = detokenizer
        self._stop = StopMatcher(request.stop)
        self._eos = frozenset() if request.ignore_eos else eos

    @property
    def position(self) -> int:
        """Position of the last token in its sequence; the tokens before it are in the cache."""
        return len(self.prompt) + self.generated - 1

    @property
    def waited(self) -> float:
        """Seconds it waited before its prefill began."""
        return self.began_at - self.submitted_at

    @property
    def length(self) -> int:
        """Positions of the cache it has written."""
        return self.prefilled + max(0, self.generated - 1)

    def accept(self, choice: Choice) -> TokenEvent | None:
        """Add a generated token; the event it causes, None while nothing can be said yet."""
        token = choice.token
        self.draw.advance(token)
        self.last_token = token
        self.generated += 1
        if token in self._eos:
            return self._end(FinishReason.STOP, "")
        text = self._stop.push(self._detokenizer.push(token))
        if self._stop.matched:
            return self._end(FinishReason.STOP, text)
        if self.generated >= self.max_tokens:
            return self._end(FinishReason.LENGTH, text)
        if not text and self.generated > 1:
            return None
        return TokenEvent(index=self.index, text=text, tokens=self.generated, waited=self.waited)

    def fail(self, reason: FinishReason, error: str | None = None) -> TokenEvent:
        """The event that ends it before its time."""
        return TokenEvent(
            index=self.index,
            text="",
            tokens=self.generated,
            finish_reason=reason,
            error=error,
            waited=self.waited,
        )

    def _end(self, reason: FinishReason, text: str) -> TokenEvent:
        return TokenEvent(
            index=self.index,
            text=text + self._stop.flush(),
            tokens=self.generated,
            finish_reason=reason,
            waited=self.waited,
        )
