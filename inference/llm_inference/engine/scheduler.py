"""Continuous batching: which sequence's tokens go through the model next.

A thread of its own turns the loop: admit waiting sequences to free rows, run a bounded piece of
prefill, run one decode step over all running sequences, hand out the events. Knows rows, steps
and events; knows no torch: the model is behind the `Runner` protocol.

Rows of running sequences are always 0 .. running-1, so that a batch is a view of the cache and
not a copy; the one sequence in prefill has the next row. When a sequence ends, the last row moves
into its place.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from llm_inference.engine.interface import (
    Capacity,
    EngineClosedError,
    EngineFullError,
    FinishReason,
    GenerationRequest,
    Load,
    Observer,
    TokenEvent,
)
from llm_inference.engine.sequence import Detokenizer, EventStream, RunningSequence
from llm_inference.engine.step import Choice as Choice  # noqa: PLC0414
from llm_inference.engine.step import Draw as Draw  # noqa: PLC0414
from llm_inference.engine.step import Runner as Runner  # noqa: PLC0414

logger = logging.getLogger(__name__)

# A model that fails this many steps in a row, for whatever sequences, will not recover.
_FATAL_FAILURES = 8
_POISONED = "The model produced numbers that are not finite for this request."


class Scheduler:
    """Serves generation requests with one runner, in one thread.

    Args:
        runner: the model.
        capacity: bounds of sequences and queue.
        eos: token ids that end a sequence.
        detokenizer: makes a detokeniser for what follows the given prompt tokens.
        observer: hears of steps and sequences.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        runner: Runner,
        capacity: Capacity,
        eos: frozenset[int],
        detokenizer: Callable[[Sequence[int]], Detokenizer],
        observer: Observer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.capacity = capacity
        self._runner = runner
        self._eos = eos
        self._detokenizer = detokenizer
        self._observer = observer
        self._clock = clock
        self._wake = threading.Condition()
        self._waiting: deque[RunningSequence] = deque()
        self._running: list[RunningSequence] = []
        self._prefilling: RunningSequence | None = None
        self._events: list[tuple[EventStream, TokenEvent]] = []
        self._occupied = 0
        self._closing = False
        self._dead = False
        self._failures = 0
        self._sequence_seconds = 1.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs and the model works."""
        return self._thread.is_alive() and not self._dead

    def load(self) -> Load:
        """What is held now; approximate while a step runs."""
        used = sum(sequence.length for sequence in list(self._running))
        if (prefilling := self._prefilling) is not None:
            used += prefilling.prefilled
        size = self.capacity.max_length * self.capacity.max_concurrency
        return Load(
            running=self._occupied, waiting=len(self._waiting), cache_usage=min(1.0, used / size)
        )

    def submit(self, request: GenerationRequest) -> EventStream:
        """Admit a request or refuse it at once; see `GenerationEngine.submit`."""
        if not request.prompt or request.max_tokens < 1:
            raise ValueError("a request needs a prompt and room for one token")
        if len(request.prompt) + request.max_tokens > self.capacity.max_length:
            raise ValueError("the request does not fit the model's context")
        if max(request.prompt) >= self.capacity.vocabulary or min(request.prompt) < 0:
            raise ValueError("a token id is not in the model's vocabulary")
        if not 1 <= request.n <= self.capacity.max_concurrency:
            raise ValueError("n is beyond the size of a batch")
        context = request.prompt if request.continues_prompt else ()
        sequences: list[RunningSequence] = []
        stream = EventStream(request.n, lambda: self._cancel(sequences))
        now = self._clock()
        sequences.extend(
            RunningSequence(
                request=request,
                index=index,
                detokenizer=self._detokenizer(context),
                eos=self._eos,
                stream=stream,
                now=now,
            )
            for index in range(request.n)
        )
        with self._wake:
            if self._closing or not self.alive:
                raise EngineClosedError("The engine serves no more requests.")
            limit = self.capacity.max_concurrency + self.capacity.max_queue
            if self._occupied + len(self._waiting) + request.n > limit:
                raise EngineFullError(self._retry_after())
            self._waiting.extend(sequences)
            self._wake.notify()
        return stream

    async def close(self) -> None:
        """Abort what runs and stop the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _retry_after(self) -> int:
        """Seconds until a place is free, from how long sequences took lately."""
        seconds = self._sequence_seconds / self.capacity.max_concurrency
        return max(1, min(60, math.ceil(seconds)))

    def _cancel(self, sequences: Sequence[RunningSequence]) -> None:
        with self._wake:
            for sequence in sequences:
                sequence.cancelled = True
                if sequence in self._waiting:
                    self._waiting.remove(sequence)
                    self._note_end(sequence, FinishReason.ABORT)
            self._wake.notify()

    # Everything below runs in the engine's thread.

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._drop_cancelled()
                self._prefill()
                self._decode()
                self._deliver()
        except Exception:
            logger.exception("the engine's loop failed")
            self._dead = True
        finally:
            self._abort_all()

    def _wait_for_work(self) -> bool:
        """Block until there is something to do; False to stop."""
        with self._wake:
            while not (self._closing or self._waiting or self._running or self._prefilling):
                self._wake.wait()
            return not (self._closing or self._dead)

    def _drop_cancelled(self) -> None:
        for row in range(len(self._running) - 1, -1, -1):
            if self._running[row].cancelled:
                sequence = self._remove(row)
                self._note_end(sequence, FinishReason.ABORT)
        if self._prefilling is not None and self._prefilling.cancelled:
            self._note_end(self._leave_prefill(), FinishReason.ABORT)

    def _prefill(self) -> None:
        """Run at most one chunk's worth of prompt tokens, of one prompt or of several short ones.

        The bound is what a running sequence can be kept waiting for its next token.
        """
        budget = self._runner.prefill_chunk
        while budget > 0 and (sequence := self._prefilling or self._admit()) is not None:
            budget -= self._prefill_chunk(sequence, budget)

    def _admit(self) -> RunningSequence | None:
        with self._wake:
            if not self._waiting or len(self._running) >= self.capacity.max_concurrency:
                return None
            self._prefilling = self._waiting.popleft()
            self._occupied += 1
        self._prefilling.began_at = self._clock()
        self._observer.queued(self._prefilling.waited)
        return self._prefilling

    def _prefill_chunk(self, sequence: RunningSequence, budget: int) -> int:
        """Read up to `budget` prompt tokens; how many were read."""
        start = sequence.prefilled
        tokens = sequence.prompt[start : start + budget]
        last = start + len(tokens) == len(sequence.prompt)
        draw = self._draw(sequence) if last else None
        try:
            token = self._runner.prefill(len(self._running), tokens, start, draw)
        except Exception as error:
            logger.exception("prefill failed")
            self._count_failure()
            self._end(self._leave_prefill(), FinishReason.ERROR, _describe(error))
            return len(tokens)
        self._failures = 0
        sequence.prefilled += len(tokens)
        self._observer.step("prefill", sequences=1, tokens=len(tokens))
        if last:
            self._prefilling = None
            self._running.append(sequence)
            self._accept([(sequence, token)])
        return len(tokens)

    def _decode(self) -> None:
        if not self._running:
            return
        batch = list(self._running)
        try:
            tokens = self._step(0, batch)
        except Exception:
            logger.exception("a decode step over %d sequences failed", len(batch))
            self._decode_one_by_one(batch)
            return
        self._failures = 0
        self._accept(list(zip(batch, tokens, strict=True)))

    def _step(self, first_row: int, batch: Sequence[RunningSequence]) -> list[Choice | None]:
        choices = self._runner.decode(
            first_row,
            [sequence.last_token for sequence in batch],
            [sequence.position for sequence in batch],
            [self._draw(sequence) for sequence in batch],
        )
        read = list(choices)
        self._observer.step("decode", sequences=len(batch), tokens=len(batch))
        return read

    def _decode_one_by_one(self, batch: Sequence[RunningSequence]) -> None:
        """Find the sequence a failed step is due to; the others go on."""
        results: list[tuple[RunningSequence, Choice | None]] = []
        failed: list[tuple[RunningSequence, str]] = []
        for row, sequence in enumerate(batch):
            try:
                results.append((sequence, self._step(row, [sequence])[0]))
                self._failures = 0
            except Exception as error:
                logger.exception("a decode step failed for one sequence")
                failed.append((sequence, _describe(error)))
        if not results:
            self._count_failure()
        self._accept(results)
        for sequence, reason in failed:
            self._end(self._remove(self._running.index(sequence)), FinishReason.ERROR, reason)

    def _count_failure(self) -> None:
        self._failures += 1
        self._dead = self._failures >= _FATAL_FAILURES

    def _draw(self, sequence: RunningSequence) -> Draw:
        return sequence.draw

    def _accept(self, results: Sequence[tuple[RunningSequence, Choice | None]]) -> None:
        """Give each sequence its new token, then let go of those that end with it.

        In this order, because rows that move as others leave must know their own new length.
        """
        now = self._clock()
        ended: list[tuple[RunningSequence, FinishReason]] = []
        for sequence, choice in results:
            if choice is None:
                event: TokenEvent | None = sequence.fail(FinishReason.ERROR, _POISONED)
            else:
                event = sequence.accept(choice)
                self._note_token(sequence, now)
            if event is None:
                continue
            self._events.append((sequence.stream, event))
            if event.finish_reason is not None:
                ended.append((sequence, event.finish_reason))
        for sequence, reason in ended:
            self._remove(self._running.index(sequence))
            self._note_end(sequence, reason)

    def _remove(self, row: int) -> RunningSequence:
        """Take the sequence at `row` out of the batch and close the gap."""
        sequence = self._running[row]
        last = len(self._running) - 1
        if row != last:
            self._running[row] = self._running[last]
            self._runner.move(last, row, self._running[row].length)
        self._running.pop()
        if self._prefilling is not None and self._prefilling.prefilled:
            self._runner.move(last + 1, last, self._prefilling.prefilled)
        self._occupied -= 1
        return sequence

    def _leave_prefill(self) -> RunningSequence:
        sequence, self._prefilling = self._prefilling, None
        if sequence is None:
            raise RuntimeError("no sequence is in prefill")
        self._occupied -= 1
        return sequence

    def _end(self, sequence: RunningSequence, reason: FinishReason, error: str) -> None:
        self._events.append((sequence.stream, sequence.fail(reason, error)))
        self._note_end(sequence, reason)

    def _note_token(self, sequence: RunningSequence, now: float) -> None:
        if sequence.generated == 1:
            sequence.first_token_at = now
            self._observer.first_token(now - sequence.submitted_at)
            self._observer.prefilled(now - sequence.began_at)
        else:
            self._observer.inter_token(now - sequence.last_token_at)
        sequence.last_token_at = now

    def _note_end(self, sequence: RunningSequence, reason: FinishReason) -> None:
        seconds = self._clock() - sequence.submitted_at
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._sequence_seconds += (seconds - self._sequence_seconds) / 8
            self._observer.decoded(
                sequence.last_token_at - sequence.first_token_at, tokens=sequence.generated - 1
            )
        self._observer.finished(
            reason.value,
            prompt=len(sequence.prompt),
            generated=sequence.generated,
            seconds=seconds,
        )

    def _deliver(self) -> None:
        """Hand this step's events to the event loops, waking each only once."""
        events, self._events = self._events, []
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[EventStream, TokenEvent]]] = {}
        for stream, event in events:
            by_loop.setdefault(stream.loop, []).append((stream, event))
        for loop, batch in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put_all, batch)
            except RuntimeError:
                logger.debug("an event loop is closed; its events are dropped")

    def _abort_all(self) -> None:
        with self._wake:
            self._closing = True
            ended = [*self._running, *self._waiting]
            if self._prefilling is not None:
                ended.append(self._prefilling)
            self._running.clear()
            self._waiting.clear()
            self._prefilling, self._occupied = None, 0
        reason = FinishReason.ERROR if self._dead else FinishReason.ABORT
        for sequence in ended:
            self._end(sequence, reason, "The engine stopped before the request was finished.")
        self._deliver()


def _put_all(batch: Sequence[tuple[EventStream, TokenEvent]]) -> None:
    for stream, event in batch:
        stream.put(event)


def _describe(error: Exception) -> str:
    """What a client may know of a failure inside the model."""
    return f"The model failed on this request ({type(error).__name__})."
