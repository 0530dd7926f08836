"""When requests are sent, how many at once, and what bounds them."""

import asyncio
import itertools
import time

import pytest

from bench.serving import overhead
from bench.serving.load import Run, Work, closed_loop, open_loop, poisson
from bench.serving.prompts import WORDS, prompt
from bench.serving.stream import Target


class Server:
    """Answers with one token after a pause, and counts how many wait at once."""

    def __init__(self, pause):
        self.pause = pause
        self.running = self.most = self.taken = 0

    async def answer(self, reader, writer):
        self.taken += 1
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self.pause)
        self.running -= 1
        await overhead.answer(reader, writer, 0)

    async def __aenter__(self):
        self._server = await asyncio.start_server(self.answer, "127.0.0.1", 0)
        self.target = Target(f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}", "m")
        return self

    async def __aexit__(self, *_):
        self._server.close()
        await self._server.wait_closed()


def test_the_times_of_an_open_loop_are_a_poisson_process():
    due = poisson(4, 20_000, seed=1)
    pauses = [later - earlier for earlier, later in itertools.pairwise([0, *due])]
    mean = sum(pauses) / len(pauses)
    assert mean == pytest.approx(1 / 4, rel=0.05)
    # What tells it from even pauses: they vary as much as they are long.
    assert sum((p - mean) ** 2 for p in pauses) / len(pauses) == pytest.approx(1 / 16, rel=0.1)
    assert min(pauses) >= 0


def test_the_times_follow_from_the_seed():
    assert poisson(4, 10, seed=1) == poisson(4, 10, seed=1) != poisson(4, 10, seed=2)


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_is_more_than_nothing(rate):
    with pytest.raises(ValueError, match="a rate of"):
        poisson(rate, 1)


@pytest.mark.parametrize(
    "bound", [{"requests": 0}, {"requests": 10**9}, {"tokens": 0}, {"seconds": 0}, {"within": 0}]
)
def test_work_is_bounded(bound):
    with pytest.raises(ValueError):  # noqa: PT011 - each has its own sentence
        Work(**{"requests": 1, **bound})


def test_prompts_differ_from_the_first_words_on():
    prompts = [prompt(number, words=20) for number in range(200)]
    assert len({" ".join(text.split()[:4]) for text in prompts}) == 200
    assert prompts[7] == prompt(7, words=20) != prompt(7, words=20, seed=1)
    assert all(len(word.split()) == 1 for word in WORDS)


async def test_a_closed_loop_keeps_so_many_running():
    async with Server(0.02) as server:
        run = await closed_loop(server.target, Work(requests=12, tokens=1, warm_up=3), 4)
    assert (server.taken, server.most, len(run.samples)) == (15, 4, 12)
    assert run.summary().failures == {}
    assert all(run.began <= sample.due < sample.ended <= run.ended for sample in run.samples)


async def test_a_closed_loop_ends_in_time_and_lets_answers_end():
    async with Server(0.05) as server:
        run = await closed_loop(server.target, Work(requests=1000, tokens=1, seconds=0.12), 2)
    assert 2 <= len(run.samples) <= 6
    assert run.summary().failures == {}


async def test_an_open_loop_does_not_wait_for_answers():
    async with Server(0.5) as server:
        run = await open_loop(server.target, Work(requests=20, tokens=1, seed=3), 200)
    assert server.most > 10
    assert (len(run.samples), run.summary().failures) == (20, {})
    assert [s.due - run.began for s in run.samples] == pytest.approx(poisson(200, 20, seed=3))


async def test_an_open_loop_sends_nothing_after_its_time():
    async with Server(0) as server:
        work = Work(requests=1000, tokens=1, seconds=0.1)
        run = await open_loop(server.target, work, 100)
    assert len(run.samples) == sum(at < 0.1 for at in poisson(100, 1000)) == server.taken


async def test_what_warms_up_has_other_prompts():
    seen = []

    class Noting(Target):
        def request(self, prompt, tokens):
            seen.append(prompt)
            return super().request(prompt, tokens)

    async with Server(0) as server:
        await closed_loop(Noting(server.target.url, "m"), Work(requests=4, tokens=1, warm_up=4), 2)
    assert len(set(seen)) == 8


async def test_the_measuring_server_is_taken_whole():
    figures = await overhead.measure(streams=4, tokens=50, rate=0)
    assert (figures["tokens"], figures["failures"]) == (400, 0)


def test_a_run_of_nothing_has_figures():
    assert Run(ended=time.perf_counter()).summary().requests == 0
