"""Continuous batching: which sequence's tokens go through the model next.

A thread of its own turns the loop: admit waiting sequences to free rows, run a bounded piece of
prefill, run one decode step over all running sequences, hand out the events. Knows steps and
events; knows no torch: the model is behind the `Runner` protocol. Where the device works while
the host does not wait for it, the events of one step are made while the next one runs.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from llm_inference.engine.admission import Admission
from llm_inference.engine.batch import Batch
from llm_inference.engine.interface import (
    Capacity,
    EngineClosedError,
    FinishReason,
    GenerationRequest,
    Load,
    Observer,
    TokenEvent,
)
from llm_inference.engine.pace import LEAST, Pace
from llm_inference.engine.prefixes import key_of
from llm_inference.engine.sequence import Detokenizer, EventStream, RunningSequence
from llm_inference.engine.step import Choice, Matcher, Runner

logger = logging.getLogger(__name__)

# A model that fails this many steps in a row, for whatever sequences, will not recover.
_FATAL_FAILURES = 8
# Prompt tokens that take a device of its own little longer than one: it reads all its weights.
_DEVICE_LEAST = 512
_POISONED = "The model produced numbers that are not finite for this request."
_WELL = (FinishReason.STOP, FinishReason.LENGTH)


class _Grammar(Protocol):
    """What a request's `Constraint` is."""

    def matcher(self) -> Matcher:
        """The state of a new sequence."""


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
        self._waiting = Admission(capacity)
        self._batch = Batch(runner, capacity.max_concurrency)
        least = _DEVICE_LEAST if runner.asynchronous else LEAST
        self._pace = Pace(runner.prefill_chunk, least)
        self._untold: list[tuple[RunningSequence, Choice, FinishReason | None]] = []
        self._events: list[tuple[EventStream, TokenEvent]] = []
        self._step_began: float | None = None
        self._closing = False
        self._dead = False
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs and the model works."""
        return self._thread.is_alive() and not self._dead

    @property
    def stalled_seconds(self) -> float:
        """How long the model has been at the step it is at; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else max(0.0, self._clock() - began)

    def load(self) -> Load:
        """What is held now; approximate while a step runs."""
        size = self.capacity.max_length * self.capacity.max_concurrency
        return Load(
            running=self._batch.occupied,
            waiting=len(self._waiting),
            cache_usage=min(1.0, self._batch.tokens() / size),
        )

    def submit(self, request: GenerationRequest) -> EventStream:
        """Admit a request or refuse it at once; see `GenerationEngine.submit`."""
        self._check(request)
        sequences: list[RunningSequence] = []
        stream = EventStream(request.n, lambda: self._cancel(sequences))
        sequences += self._sequences(request, stream)
        with self._wake:
            if self._closing or not self.alive:
                raise EngineClosedError("The engine serves no more requests.")
            self._waiting.add(sequences, self._batch.occupied)
            self._wake.notify()
        return stream

    async def close(self) -> None:
        """Abort what runs and stop the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _check(self, request: GenerationRequest) -> None:
        vocabulary = self.capacity.vocabulary
        if not request.prompt or request.max_tokens < 1:
            raise ValueError("a request needs a prompt and room for one token")
        if len(request.prompt) + request.max_tokens > self.capacity.max_length:
            raise ValueError("the request does not fit the model's context")
        if max(request.prompt) >= vocabulary or min(request.prompt) < 0:
            raise ValueError("a token id is not in the model's vocabulary")
        if not all(0 <= token < vocabulary for token in request.sampling.logit_bias):
            raise ValueError("logit_bias has a token id that is not in the model's vocabulary")
        if not 1 <= request.n <= self.capacity.max_concurrency:
            raise ValueError("n is beyond the size of a batch")

    def _sequences(self, request: GenerationRequest, stream: EventStream) -> list[RunningSequence]:
        context = request.prompt if request.continues_prompt else ()
        grammar = cast("_Grammar | None", request.constraint)
        key, now = key_of(request.prompt), self._clock()
        return [
            RunningSequence(
                request=request,
                index=index,
                key=key,
                matcher=None if grammar is None else grammar.matcher(),
                detokenizer=self._detokenizer(context),
                eos=self._eos,
                stream=stream,
                now=now,
            )
            for index in range(request.n)
        ]

    def _cancel(self, sequences: Sequence[RunningSequence]) -> None:
        with self._wake:
            for sequence in sequences:
                sequence.cancelled = True
                if self._waiting.remove(sequence):
                    self._note_end(sequence, FinishReason.ABORT)
            self._wake.notify()

    # Everything below runs in the engine's thread.

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._turn()
        except Exception:
            logger.exception("the engine's loop failed")
            self._dead = True
        finally:
            self._step_began = None
            self._abort_all()

    def _wait_for_work(self) -> bool:
        """Block until there is something to do; False to stop."""
        with self._wake:
            while not (self._closing or len(self._waiting) or self._batch.occupied):
                self._wake.wait()
            return not (self._closing or self._dead)

    def _turn(self) -> None:
        """One step: a piece of prefill, and a token for each running sequence."""
        self._drop_ended()
        if self._batch.prefilling is not None or len(self._waiting):
            # What is known already need not wait for a prompt to be read.
            self._tell()
        began = self._clock()
        prompt_tokens, synchronous = self._prefill()
        if not self._runner.asynchronous:
            self._tell()
        batch = list(self._batch.running)
        if batch:
            self._decode(batch)
        if batch or synchronous or (prompt_tokens and not self._runner.asynchronous):
            self._pace.note(self._clock() - began, prompt_tokens=prompt_tokens, decoded=bool(batch))
        self._step_began = None
        if not (self._runner.asynchronous and self._batch.running):
            self._tell()

    def _drop_ended(self) -> None:
        """Let go of sequences that were cancelled, or that ended when their text was made."""
        batch = self._batch
        for sequence in [*batch.running, batch.prefilling]:
            if sequence is None or not (sequence.cancelled or sequence.finished):
                continue
            batch.leave(sequence, keep=True)
            if not sequence.finished:
                self._note_end(sequence, FinishReason.ABORT)

    def _prefill(self) -> tuple[int, bool]:
        """Read a bounded number of prompt tokens, of one prompt or of several short ones.

        The bound is what running sequences can be kept waiting for their next token. Returns how
        many were read, and whether the last of them gave a token.
        """
        read, synchronous = 0, False
        budget = self._pace.budget(decoding=bool(self._batch.running))
        while read < budget and (sequence := self._batch.prefilling or self._admit()) is not None:
            left = len(sequence.prompt) - sequence.cached
            if left == 1 and sequence.cached:
                # All but the last token was in the cache: that one can be a row of the next step.
                self._batch.join()
                continue
            if read and left > budget - read and self._runner.asynchronous:
                # A device reads its weights for a few tokens as for many: the prompt waits whole.
                break
            read += self._prefill_chunk(sequence, min(left, budget - read))
            synchronous = sequence.generated > 0
        return read, synchronous

    def _admit(self) -> RunningSequence | None:
        with self._wake:
            sequence = None if self._batch.full else self._waiting.pop()
            if sequence is None:
                return None
            self._batch.prefilling = sequence
        hit = self._batch.begin(sequence)
        sequence.began_at = self._clock()
        self._observer.queued(sequence.waited)
        self._observer.prefix(hit, len(sequence.prompt))
        return sequence

    def _prefill_chunk(self, sequence: RunningSequence, size: int) -> int:
        """Read `size` prompt tokens; how many were read."""
        start = sequence.cached
        tokens = sequence.prompt[start : start + size]
        last = start + size == len(sequence.prompt)
        self._step_began = self._clock()
        try:
            choice = self._runner.prefill(
                len(self._batch.running), tokens, start, sequence.draw if last else None
            )
        except Exception as error:
            logger.exception("prefill failed")
            self._count_failure()
            self._fail(sequence, _describe(error))
            return size
        self._failures = 0
        sequence.cached += size
        self._observer.step("prefill", sequences=1, tokens=size)
        if last:
            self._batch.join()
            self._accept([sequence], [choice])
        return size

    def _decode(self, batch: Sequence[RunningSequence]) -> None:
        try:
            choices = self._step(0, batch)
            self._tell()
            choices = list(choices)
        except Exception:
            logger.exception("a decode step over %d sequences failed", len(batch))
            self._decode_one_by_one(batch)
            return
        self._failures = 0
        self._accept(batch, choices)

    def _step(self, row: int, batch: Sequence[RunningSequence]) -> Sequence[Choice | None]:
        self._step_began = self._clock()
        choices = self._runner.decode(
            row,
            [sequence.last_token for sequence in batch],
            [sequence.position for sequence in batch],
            [sequence.draw for sequence in batch],
        )
        self._observer.step("decode", sequences=len(batch), tokens=len(batch))
        return choices

    def _decode_one_by_one(self, batch: Sequence[RunningSequence]) -> None:
        """Find the sequence a failed step is due to; the others go on."""
        going: list[RunningSequence] = []
        choices: list[Choice | None] = []
        failed: list[tuple[RunningSequence, str]] = []
        for row, sequence in enumerate(batch):
            try:
                choices += list(self._step(row, [sequence]))
                going.append(sequence)
                self._failures = 0
            except Exception as error:
                logger.exception("a decode step failed for one sequence")
                failed.append((sequence, _describe(error)))
        if not going:
            self._count_failure()
        self._accept(going, choices)
        for sequence, reason in failed:
            self._fail(sequence, reason)

    def _count_failure(self) -> None:
        self._failures += 1
        self._dead = self._failures >= _FATAL_FAILURES

    def _accept(self, batch: Sequence[RunningSequence], choices: Sequence[Choice | None]) -> None:
        """Take each sequence's new token, then let go of those that end with it.

        In this order, because rows that move as others leave must know their own new length.
        """
        now = self._clock()
        ended: list[tuple[RunningSequence, FinishReason | None]] = []
        for sequence, choice in zip(batch, choices, strict=True):
            if sequence.finished:
                continue  # its text ended it while this step ran
            if choice is None:
                ended.append((sequence, None))
                continue
            reason = sequence.advance(choice)
            self._note_token(sequence, now)
            self._untold.append((sequence, choice, reason))
            if reason is not None:
                ended.append((sequence, reason))
        for sequence, reason in ended:
            if reason is None:
                self._fail(sequence, _POISONED)
            else:
                self._batch.leave(sequence, keep=reason is not FinishReason.ERROR)

    def _tell(self) -> None:
        """Make events of the tokens taken since the last time, and hand them out."""
        untold, self._untold = self._untold, []
        for sequence, choice, reason in untold:
            if sequence.finished:
                continue
            try:
                event = sequence.tell(choice, reason)
            except Exception as error:
                logger.exception("a token could not be made into text")
                event = sequence.fail(FinishReason.ERROR, _describe(error))
            if event is None:
                continue
            if not sequence.cancelled:
                self._events.append((sequence.stream, event))
            if event.finish_reason is not None:
                self._note_end(sequence, event.finish_reason)
        self._deliver()

    def _fail(self, sequence: RunningSequence, error: str) -> None:
        """End a sequence of the batch before its time."""
        self._batch.leave(sequence, keep=False)
        self._tell()
        self._end(sequence, FinishReason.ERROR, error)

    def _end(self, sequence: RunningSequence, reason: FinishReason, error: str) -> None:
        if sequence.finished:
            return
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
        now = self._clock()
        if reason in _WELL:
            with self._wake:
                self._waiting.note_finished(now - sequence.began_at)
            self._observer.decoded(
                sequence.last_token_at - sequence.first_token_at, tokens=sequence.generated - 1
            )
        self._observer.finished(
            reason.value,
            prompt=len(sequence.prompt),
            generated=sequence.generated,
            seconds=now - sequence.submitted_at,
        )

    def _deliver(self) -> None:
        """Hand this step's events to the event loops, waking each only once."""
        if not self._events:
            return
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
        self._tell()
        with self._wake:
            self._closing = True
            ended = [*self._batch.clear(), *self._waiting.clear()]
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
