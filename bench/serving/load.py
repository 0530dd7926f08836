"""Load on a server: so many streams at once, or requests that come by chance.

    python -m bench.serving.load http://127.0.0.1:8080 --model NAME --streams 16 --requests 64
    python -m bench.serving.load http://127.0.0.1:8080 --model NAME --rate 4 --requests 200

Closed loop: every stream sends its next request when it has its last answer, so a slow server is
asked less. Open loop: requests are due at the times of a Poisson process whatever the server
does, as independent users send them, and latency counts from when one was due. Needs nothing but
Python's own library. Does not know whose server it is.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.serving.figures import Objective, Summary, summarise
from bench.serving.prompts import SHORT, prompt
from bench.serving.stream import Sample, Target, ask

MOST_REQUESTS = 100_000


@dataclass(frozen=True)
class Work:
    """What is asked, how often and for how long.

    Attributes:
        requests: Requests that count, at most.
        tokens: Tokens that each asks for at most.
        words: Words by chance in each prompt.
        seconds: No request begins later than so many seconds after the first that counts.
        warm_up: Requests before those, which do not count.
        within: Seconds after which one request has failed.
        seed: Of the prompts and of the times of an open loop.

    Raises:
        ValueError: A bound that is none.
    """

    requests: int
    tokens: int = 64
    words: int = SHORT
    seconds: float = 300
    warm_up: int = 0
    within: float = 300
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.requests <= MOST_REQUESTS:
            raise ValueError(f"{self.requests} requests: 1 to {MOST_REQUESTS} can be sent")
        if self.tokens < 1 or self.words < 1 or self.warm_up < 0:
            raise ValueError("tokens and words are at least 1, and no fewer than 0 warm up")
        if not (self.seconds > 0 and self.within > 0):
            raise ValueError("the seconds of a load and of a request are more than 0")

    def prompt(self, number: int) -> str:
        """The prompt of one request; those that warm up have negative numbers."""
        return prompt(number, words=self.words, seed=self.seed)


@dataclass
class Run:
    """What a load saw.

    Attributes:
        samples: The requests that count, in the order in which they were due.
        began: `time.perf_counter()` at the first that counts.
        ended: `time.perf_counter()` when the last was over.
    """

    samples: list[Sample] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0

    def summary(self, objective: Objective | None = None) -> Summary:
        """The figures of this run."""
        return summarise(self.samples, self.ended - self.began, objective)


def poisson(rate: float, count: int, *, seed: int = 0) -> list[float]:
    """Seconds from the beginning at which `count` requests are due, `rate` a second on average.

    Raises:
        ValueError: The rate is not more than 0.
    """
    if not rate > 0:
        raise ValueError(f"a rate of {rate} a second: it must be more than 0")
    chance = random.Random(seed)  # noqa: S311 - no secret
    return list(itertools.accumulate(chance.expovariate(rate) for _ in range(count)))


async def closed_loop(target: Target, work: Work, streams: int) -> Run:
    """Keep `streams` requests running at once.

    Raises:
        ValueError: No stream.
    """
    if streams < 1:
        raise ValueError(f"{streams} streams: at least 1 is needed")
    await _loop(target, work, streams, range(-work.warm_up, 0))
    run = Run(began=time.perf_counter())
    until = run.began + work.seconds
    run.samples = await _loop(
        target, work, streams, range(work.requests), lambda: time.perf_counter() < until
    )
    run.ended = time.perf_counter()
    return run


async def open_loop(target: Target, work: Work, rate: float) -> Run:
    """Send requests at the times of a Poisson process of `rate` a second.

    Raises:
        ValueError: The rate is not more than 0.
    """
    due = [at for at in poisson(rate, work.requests, seed=work.seed) if at < work.seconds]
    await _loop(target, work, max(1, work.warm_up), range(-work.warm_up, 0))
    run = Run(began=time.perf_counter())

    async def send(number: int, at: float) -> Sample:
        await asyncio.sleep(at - time.perf_counter())
        return await ask(target, work.prompt(number), work.tokens, due=at, within=work.within)

    sent = (send(number, run.began + at) for number, at in enumerate(due))
    run.samples = list(await asyncio.gather(*sent))
    run.ended = time.perf_counter()
    return run


async def _loop(
    target: Target,
    work: Work,
    streams: int,
    numbers: range,
    goes_on: Callable[[], bool] = lambda: True,
) -> list[Sample]:
    """Send the requests of these numbers, `streams` at once, while it `goes_on`."""
    left, samples = iter(numbers), list[Sample]()

    async def stream() -> None:
        while goes_on() and (number := next(left, None)) is not None:
            question = work.prompt(number)
            samples.append(await ask(target, question, work.tokens, within=work.within))

    await asyncio.gather(*(stream() for _ in range(min(streams, len(numbers)))))
    return sorted(samples, key=lambda sample: sample.due)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    top = argparse.ArgumentParser(prog="python -m bench.serving.load", description=__doc__)
    top.add_argument("url", help="address of the server, on loopback")
    top.add_argument("--model", required=True)
    shape = top.add_mutually_exclusive_group()
    shape.add_argument("--streams", type=int, default=1, help="of a closed loop (%(default)s)")
    shape.add_argument("--rate", type=float, help="requests a second of an open loop")
    top.add_argument("--requests", type=int, default=16, help="that count (%(default)s)")
    top.add_argument("--seconds", type=float, default=300, help="no request later (%(default)s)")
    top.add_argument("--tokens", type=int, default=64, help="of an answer (%(default)s)")
    top.add_argument("--words", type=int, default=SHORT, help="of a prompt (%(default)s)")
    top.add_argument("--warm-up", type=int, default=1, help="requests before (%(default)s)")
    top.add_argument("--ttft", type=float, help="objective: ms to the first token")
    top.add_argument("--itl", type=float, help="objective: ms between two tokens")
    top.add_argument("--path", default=Target.path, help="route (%(default)s)")
    top.add_argument("--extra", type=json.loads, default={}, help="fields of each body, in JSON")
    return top


def main() -> None:
    """Send one load and print its figures as JSON."""
    chosen = parser().parse_args()
    target = Target(chosen.url, chosen.model, chosen.path, chosen.extra)
    work = Work(
        requests=chosen.requests,
        tokens=chosen.tokens,
        words=chosen.words,
        seconds=chosen.seconds,
        warm_up=chosen.warm_up,
    )
    if chosen.rate:
        run = asyncio.run(open_loop(target, work, chosen.rate))
    else:
        run = asyncio.run(closed_loop(target, work, chosen.streams))
    objective = Objective(*(ms and ms / 1000 for ms in (chosen.ttft, chosen.itl)))
    print(json.dumps(run.summary(objective).document(), indent=2))


if __name__ == "__main__":
    main()
