"""Continuous batching with a runner that computes nothing but checks what it is told."""

import asyncio
import itertools
import random
import threading
from collections.abc import Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from llm_inference.engine import interface
from llm_inference.engine.interface import (
    Capacity,
    EngineClosedError,
    EngineFullError,
    FinishReason,
    GenerationRequest,
)
from llm_inference.engine.scheduler import Scheduler
from llm_inference.engine.step import Choice

EOS = 0
CAPACITY = Capacity(
    max_length=64, max_concurrency=3, max_queue=4, vocabulary=1000, max_queue_tokens=400
)


class Runner:
    """A model whose next token is the last one plus one, over rows that are really kept.

    Each row holds the tokens that were written to it, so that a wrong row, position or move shows
    as a wrong token or as a failed assertion.
    """

    prefill_chunk = 4
    asynchronous = False

    def __init__(self, rows=CAPACITY.max_concurrency):
        self.rows = rows
        self.held = {}
        self.calls = []
        self.moves = []
        self.cleared = []
        self.gate = threading.Event()
        self.gate.set()
        self.permits = None
        self.poison = None

    def prefill(self, row, tokens, start, draw):
        self._wait()
        held = self.held.setdefault(row, [])
        del held[start:]
        assert len(held) == start
        held.extend(tokens)
        self.calls.append(("prefill", row, len(tokens)))
        if self.poison is not None and self.poison in tokens:
            raise RuntimeError("poisoned prompt")
        return None if draw is None else self._next(row)

    def decode(self, first_row, tokens, positions, draws):
        self._wait()
        rows = range(first_row, first_row + len(tokens))
        self.calls.append(("decode", first_row, len(tokens)))
        if self.poison is not None and self.poison in tokens:
            raise RuntimeError("poisoned step")
        result = []
        for row, token, position in zip(rows, tokens, positions, strict=True):
            held = self.held[row]
            del held[position:]
            assert len(held) == position
            held.append(token)
            result.append(self._next(row))
        return result

    def move(self, source, target, length):
        assert len(self.held[source]) >= length
        self.moves.append((source, target, length))
        self.held[target] = self.held[source][:length]

    def clear(self, row):
        self.cleared.append(row)

    def _wait(self):
        self.gate.wait(5)
        if self.permits is not None:
            self.permits.acquire(timeout=5)

    def _next(self, row):
        return None if self.held[row][-1] == 666 else Choice(self.held[row][-1] + 1)


class Lazy(Sequence):
    """Choices of a device that works while the host does something else."""

    def __init__(self, choices):
        self.choices = choices
        self.read = False

    def __len__(self):
        return len(self.choices)

    def __getitem__(self, index):
        self.read = True
        return self.choices[index]


class DeviceRunner(Runner):
    """A runner whose steps are read later; no step may begin before the one before was read."""

    asynchronous = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.last = None

    def decode(self, *args):
        assert self.last is None or self.last.read
        self.last = Lazy(super().decode(*args))
        return self.last


class Observer(interface.Observer):
    def __init__(self):
        self.ends = []
        self.steps = []
        self.hits = []

    def prefix(self, hit, queried):
        self.hits.append((hit, queried))

    def step(self, kind, *, sequences, tokens):
        self.steps.append((kind, sequences, tokens))

    def finished(self, reason, *, prompt, generated, seconds):
        self.ends.append((reason, prompt, generated))


def push(token):
    if token == 777:
        raise ValueError("no text for this token")
    return f"{token} "


@asynccontextmanager
async def running(runner, capacity=CAPACITY, **more):
    observer = Observer()
    scheduler = Scheduler(
        runner=runner,
        capacity=capacity,
        eos=frozenset({EOS, 500}),
        detokenizer=lambda _: SimpleNamespace(push=push),
        observer=observer,
        **more,
    )
    scheduler.start()
    yield SimpleNamespace(scheduler=scheduler, runner=runner, observer=observer)
    runner.gate.set()
    await scheduler.close()


@pytest.fixture(params=[Runner, DeviceRunner])
async def engine(request):
    async with running(request.param()) as engine:
        yield engine


def asks(*prompt, max_tokens=5, **more):
    return GenerationRequest(prompt=prompt, max_tokens=max_tokens, **more)


async def collect(stream):
    texts, ends = {}, {}
    async with asyncio.timeout(5):
        async for event in stream:
            texts[event.index] = texts.get(event.index, "") + event.text
            if event.finish_reason:
                ends[event.index] = event
    return texts, ends


def counts(first, number):
    return "".join(f"{token} " for token in range(first, first + number))


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the engine is a thread, not a task
            await asyncio.sleep(0.001)


async def test_a_sequence_runs_to_its_length(engine):
    texts, ends = await collect(engine.scheduler.submit(asks(1, 2, 3)))
    assert texts == {0: counts(4, 5)}
    assert (ends[0].finish_reason, ends[0].tokens) == (FinishReason.LENGTH, 5)
    assert engine.observer.ends == [("length", 3, 5)]


async def test_the_end_token_ends_it_without_text(engine):
    texts, ends = await collect(engine.scheduler.submit(asks(497)))
    assert texts == {0: "498 499 "}
    assert ends[0].finish_reason is FinishReason.STOP


async def test_a_stop_string_ends_it_and_does_not_show(engine):
    texts, ends = await collect(engine.scheduler.submit(asks(10, stop=("3 14",))))
    assert texts == {0: "11 12 1"}
    assert ends[0].finish_reason is FinishReason.STOP


async def test_requests_share_steps_and_keep_their_own_tokens(engine):
    engine.runner.gate.clear()
    streams = [
        engine.scheduler.submit(asks(100 * n, max_tokens=length))
        for n, length in ((1, 3), (2, 9), (3, 6))
    ]
    engine.runner.gate.set()
    results = await asyncio.gather(*map(collect, streams))
    assert [texts[0] for texts, _ in results] == [counts(101, 3), counts(201, 9), counts(301, 6)]
    assert max(size for kind, _, size in engine.runner.calls if kind == "decode") == 3
    # Nine tokens in the longest, one of them from prefill: without sharing it would take 15 steps.
    assert len([1 for kind, *_ in engine.runner.calls if kind == "decode"]) <= 10


async def test_many_more_requests_than_rows_all_come_out_right(engine):
    async def one(n):
        while True:
            try:
                stream = engine.scheduler.submit(
                    asks(*range(10 * n + 1, 10 * n + 1 + n % 7 + 1), max_tokens=n % 5 + 1)
                )
            except EngineFullError:
                await asyncio.sleep(0.001)
                continue
            return await collect(stream)

    results = await asyncio.gather(*(one(n) for n in range(20)))
    for n, (texts, _) in enumerate(results):
        assert texts[0] == counts(10 * n + n % 7 + 2, n % 5 + 1)
    assert engine.scheduler.load().running == 0


async def test_a_long_prompt_does_not_keep_running_sequences_waiting(engine):
    engine.runner.gate.clear()
    short = engine.scheduler.submit(asks(1, max_tokens=12))
    long = engine.scheduler.submit(asks(*range(20, 60), max_tokens=2))
    engine.runner.gate.set()
    (short_texts, _), (long_texts, _) = await asyncio.gather(collect(short), collect(long))
    assert (short_texts[0], long_texts[0]) == (counts(2, 12), counts(60, 2))
    kinds = [(kind, size) for kind, _, size in engine.runner.calls]
    prefills = [at for at, (kind, size) in enumerate(kinds) if kind == "prefill" and size == 4]
    assert len(prefills) >= 9
    gaps = [kinds[a + 1 : b] for a, b in itertools.pairwise(prefills)]
    assert all(("decode", 1) in gap for gap in gaps)


async def test_choices_of_one_request_are_told_apart(engine):
    texts, ends = await collect(engine.scheduler.submit(asks(1, n=3, max_tokens=2)))
    assert texts == {0: "2 3 ", 1: "2 3 ", 2: "2 3 "}
    assert len(ends) == 3


async def test_a_full_queue_refuses_at_once_and_recovers(engine):
    engine.runner.gate.clear()
    streams = [engine.scheduler.submit(asks(n + 1)) for n in range(7)]
    with pytest.raises(EngineFullError) as refusal:
        engine.scheduler.submit(asks(1))
    assert refusal.value.retry_after >= 1
    engine.runner.gate.set()
    await asyncio.gather(*map(collect, streams))
    await collect(engine.scheduler.submit(asks(1)))


async def test_n_counts_against_the_queue(engine):
    engine.runner.gate.clear()
    for _ in range(5):
        engine.scheduler.submit(asks(1))
    with pytest.raises(EngineFullError):
        engine.scheduler.submit(asks(1, n=3))
    engine.scheduler.submit(asks(1, n=2))


@pytest.mark.parametrize(
    "request_", [asks(), asks(1, max_tokens=64), asks(1, n=4), asks(1000), asks(-1)]
)
async def test_what_cannot_fit_never_reaches_the_model(engine, request_):
    with pytest.raises(ValueError, match=r"\w"):
        engine.scheduler.submit(request_)
    assert engine.runner.calls == []


async def test_cancelling_frees_the_row_within_a_step(engine):
    engine.runner.gate.clear()
    engine.runner.permits = threading.Semaphore(4)  # both prompts, then two steps
    stream = engine.scheduler.submit(asks(1, max_tokens=60))
    other = engine.scheduler.submit(asks(101, max_tokens=60))
    engine.runner.gate.set()
    await until(lambda: len(engine.runner.calls) == 4)
    assert engine.scheduler.load().running == 2
    stream.cancel()
    engine.runner.permits.release(1000)
    texts, _ = await collect(other)
    assert texts[0] == counts(102, 60)
    # The step that was under way may still have had both rows, none after it.
    assert {size for _, _, size in engine.runner.calls[5:]} == {1}
    assert engine.observer.ends[0][0] == "abort"


async def test_cancelling_what_waits_makes_room_at_once(engine):
    engine.runner.gate.clear()
    streams = [engine.scheduler.submit(asks(1)) for _ in range(7)]
    streams[-1].cancel()
    engine.scheduler.submit(asks(1))


async def test_a_prompt_that_breaks_the_model_ends_alone(engine):
    engine.runner.poison = 13
    engine.runner.gate.clear()
    good = engine.scheduler.submit(asks(100))
    bad = engine.scheduler.submit(asks(13))
    engine.runner.gate.set()
    (texts, _), (_, ends) = await asyncio.gather(collect(good), collect(bad))
    assert texts[0] == counts(101, 5)
    assert ends[0].finish_reason is FinishReason.ERROR
    assert engine.scheduler.alive


async def test_a_step_that_breaks_ends_only_the_sequence_at_fault(engine):
    engine.runner.poison = 203
    engine.runner.gate.clear()
    streams = [engine.scheduler.submit(asks(100 * n)) for n in (1, 2, 3)]
    engine.runner.gate.set()
    results = await asyncio.gather(*map(collect, streams))
    assert results[0][0][0] == counts(101, 5)
    assert results[2][0][0] == counts(301, 5)
    assert results[1][1][0].finish_reason is FinishReason.ERROR


async def test_numbers_that_are_not_finite_end_only_their_sequence(engine):
    engine.runner.gate.clear()
    good, bad = engine.scheduler.submit(asks(100)), engine.scheduler.submit(asks(663))
    engine.runner.gate.set()
    (texts, _), (_, ends) = await asyncio.gather(collect(good), collect(bad))
    assert texts[0] == counts(101, 5)
    assert "not finite" in ends[0].error


async def test_a_model_that_always_fails_is_dead(engine):
    engine.runner.poison = 13
    for _ in range(8):
        _, ends = await collect(engine.scheduler.submit(asks(13)))
        assert ends[0].finish_reason is FinishReason.ERROR
    await until(lambda: not engine.scheduler.alive)
    with pytest.raises(EngineClosedError):
        engine.scheduler.submit(asks(1))


async def test_closing_ends_what_runs_and_what_waits(engine):
    engine.runner.gate.clear()
    streams = [engine.scheduler.submit(asks(1)) for _ in range(5)]
    closing = asyncio.create_task(engine.scheduler.close())
    await asyncio.sleep(0.01)
    engine.runner.gate.set()
    results = await asyncio.gather(*map(collect, streams))
    await closing
    assert {ends[0].finish_reason for _, ends in results} <= {
        FinishReason.ABORT,
        FinishReason.LENGTH,
    }
    assert not engine.scheduler.alive
    with pytest.raises(EngineClosedError):
        engine.scheduler.submit(asks(1))


async def test_a_token_that_makes_no_text_ends_only_its_sequence(engine):
    engine.runner.gate.clear()
    good, bad = engine.scheduler.submit(asks(100)), engine.scheduler.submit(asks(774))
    engine.runner.gate.set()
    (texts, _), (bad_texts, ends) = await asyncio.gather(collect(good), collect(bad))
    assert texts[0] == counts(101, 5)
    assert bad_texts[0] == "775 776 "
    assert ends[0].finish_reason is FinishReason.ERROR
    assert (await collect(engine.scheduler.submit(asks(1))))[0][0] == counts(2, 5)


async def test_rows_with_numbers_that_are_not_finite_are_cleared(engine):
    await collect(engine.scheduler.submit(asks(663)))
    assert engine.runner.cleared == [0]


async def test_clients_take_turns(engine):
    engine.runner.gate.clear()
    first = engine.scheduler.submit(asks(1, client="warm"))
    await until(lambda: engine.scheduler.load().running == 1)
    done = []

    async def one(client, number):
        await collect(engine.scheduler.submit(asks(10 * number, client=client, max_tokens=30)))
        done.append(client)

    tasks = [asyncio.create_task(one("many", number)) for number in range(1, 5)]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(one("one", 9)))
    await asyncio.sleep(0)
    engine.runner.gate.set()
    await asyncio.gather(collect(first), *tasks)
    assert done.index("one") < 3


async def test_the_length_of_a_step_shows(engine):
    assert engine.scheduler.stalled_seconds == 0.0
    engine.runner.gate.clear()
    stream = engine.scheduler.submit(asks(1))
    await until(lambda: engine.scheduler.stalled_seconds > 0.01)
    before = engine.scheduler.stalled_seconds
    await asyncio.sleep(0.01)
    assert engine.scheduler.stalled_seconds > before
    engine.runner.gate.set()
    await collect(stream)
    await until(lambda: engine.scheduler.stalled_seconds == 0.0)


async def test_choices_of_one_request_read_the_prompt_once(engine):
    prompt = range(100, 110)
    texts, _ = await collect(engine.scheduler.submit(asks(*prompt, n=3, max_tokens=3)))
    assert texts == dict.fromkeys(range(3), counts(110, 3))
    read = sum(size for kind, _, size in engine.runner.calls if kind == "prefill")
    assert read == len(prompt)
    assert engine.observer.hits == [(0, 10), (9, 10), (9, 10)]


@pytest.mark.parametrize("kind", [Runner, DeviceRunner])
async def test_what_ended_sequences_leave_is_used_again(kind):
    async with running(kind(rows=5)) as engine:
        first = await collect(engine.scheduler.submit(asks(*range(100, 130), max_tokens=5)))
        again = await collect(engine.scheduler.submit(asks(*range(100, 130), max_tokens=5)))
        longer = await collect(engine.scheduler.submit(asks(*range(100, 140), max_tokens=5)))
        assert first[0] == again[0] == {0: counts(130, 5)}
        assert longer[0] == {0: counts(140, 5)}
        # The first one's cache ends before its last token, whose keys nobody needed.
        assert engine.observer.hits == [(0, 30), (29, 30), (34, 40)]


@pytest.mark.parametrize("kind", [Runner, DeviceRunner])
async def test_whatever_comes_and_goes_every_text_is_right(kind):
    numbers = random.Random(5)

    async def one(engine):
        first = numbers.choice([100, 100, 200, 300])
        length = numbers.choice([1, 2, 20, 21, 30])
        tokens = numbers.randrange(1, 20)
        last = first + length - 1
        stop = (f"{last + numbers.randrange(1, 12)} ",) if numbers.random() < 0.4 else ()
        leave = numbers.randrange(1, 9) if numbers.random() < 0.3 else None
        request = asks(*range(first, last + 1), max_tokens=tokens, stop=stop, client=str(first))
        text, reason = "", None
        while True:
            try:
                stream = engine.scheduler.submit(request)
                break
            except EngineFullError:
                await asyncio.sleep(0.001)
        async for event in stream:
            text, reason = text + event.text, event.finish_reason
            if leave is not None and event.tokens >= leave:
                stream.cancel()
                break
        whole = counts(last + 1, tokens)
        if reason is FinishReason.STOP:
            assert text == whole.partition(stop[0])[0]
        elif reason is FinishReason.LENGTH:
            assert text == whole
            assert not any(each in whole for each in stop)
        else:
            assert leave is not None
            assert whole.startswith(text)

    async with running(kind(rows=6)) as engine, asyncio.timeout(20):
        await asyncio.gather(*(one(engine) for _ in range(120)))
        await until(lambda: engine.scheduler.load().running == 0)
        assert len(engine.observer.ends) == 120
        assert sum(hit for hit, _ in engine.observer.hits) > 200


async def test_events_are_made_while_the_device_works():
    async with running(DeviceRunner()) as engine:
        engine.runner.gate.clear()
        engine.runner.permits = threading.Semaphore(3)  # the prompt, then two steps
        stream = engine.scheduler.submit(asks(1, max_tokens=9))
        engine.runner.gate.set()
        await until(lambda: len(engine.runner.calls) == 3)
        events = await stream.next_events()
        while len(events) < 2:
            events += await stream.next_events()
        # The third token is known, but told only once the next step has begun.
        assert [event.text for event in events] == ["2 ", "3 "]
        engine.runner.permits.release(100)
        texts, _ = await collect(stream)
        assert texts[0] == counts(4, 7)
