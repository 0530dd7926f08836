"""What the times of many requests say: rates, percentiles, and how many were fast enough.

Knows the usual definitions; those of the rates are written at `Summary`. Does not know how a
sample came about. All times are in seconds.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.serving.stream import Sample


@dataclass(frozen=True)
class Percentiles:
    """What half, nine of ten and 99 of 100 values do not exceed; NaN where there is none."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Percentiles:
        """The percentiles of these values."""
        ordered = sorted(values)
        return cls(*(percentile(ordered, percent) for percent in (50, 90, 99)))


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which `percent` of 100 lie, linear between two values; NaN of none.

    Args:
        ordered: Values from small to large.
        percent: 0 to 100.
    """
    if not ordered:
        return math.nan
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True)
class Objective:
    """How fast a request must be to be good.

    Attributes:
        ttft: Longest time to the first token; None for any.
        itl: Longest mean time between two tokens of the request; None for any.
    """

    ttft: float | None = None
    itl: float | None = None

    def met(self, sample: Sample) -> bool:
        """Whether a request was answered whole and in time."""
        return (
            sample.failure is None
            and (self.ttft is None or time_to_first_token(sample) <= self.ttft)
            and (self.itl is None or mean_gap(sample) <= self.itl)
        )


@dataclass(frozen=True)
class Summary:
    """The figures of one load.

    Attributes:
        requests: Requests that counted.
        failures: Why some were not answered whole, and how many; they are in no other figure
            but the goodput.
        seconds: From the first request to the end of the last.
        prompt_tokens: Tokens of one prompt, on average; 0 where the server does not state them.
        tokens: Tokens that were generated, all requests together.
        throughput: Tokens a second: all of them over all of the time, prompts included.
        decoding: Tokens a second from the first token of any request to the last of any.
        ttft: Time to the first token.
        itl: Times between two pieces of an answer; a server that sends several tokens at once
            has a longer one.
        e2e: Time to the end of the answer.
        goodput: Share of all requests that met the objective.
    """

    requests: int
    failures: dict[str, int]
    seconds: float
    prompt_tokens: float
    tokens: int
    throughput: float
    decoding: float
    ttft: Percentiles
    itl: Percentiles
    e2e: Percentiles
    goodput: float

    def document(self) -> dict[str, Any]:
        """The figures as JSON has them: what is no number is null."""
        return {name: _without_nan(value) for name, value in asdict(self).items()}


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def summarise(
    samples: Sequence[Sample], seconds: float, objective: Objective | None = None
) -> Summary:
    """The figures of these requests, which took `seconds` together."""
    objective = objective or Objective()
    whole = [sample for sample in samples if sample.failure is None]
    tokens = sum(sample.tokens for sample in whole)
    return Summary(
        requests=len(samples),
        failures=dict(Counter(s.failure for s in samples if s.failure is not None)),
        seconds=seconds,
        prompt_tokens=sum(s.prompt_tokens for s in whole) / len(whole) if whole else 0,
        tokens=tokens,
        throughput=tokens / seconds if seconds > 0 else math.nan,
        decoding=decoding_rate(whole),
        ttft=Percentiles.of(map(time_to_first_token, whole)),
        itl=Percentiles.of(itertools.chain.from_iterable(map(gaps, whole))),
        e2e=Percentiles.of(sample.ended - sample.due for sample in whole),
        goodput=sum(map(objective.met, samples)) / len(samples) if samples else math.nan,
    )


def time_to_first_token(sample: Sample) -> float:
    """Seconds from when a request was due to its first piece."""
    return sample.pieces[0] - sample.due


def gaps(sample: Sample) -> list[float]:
    """Seconds between the pieces of one answer."""
    return [later - earlier for earlier, later in itertools.pairwise(sample.pieces)]


def mean_gap(sample: Sample) -> float:
    """Seconds a token after the first, on average; 0 of a single token."""
    return (sample.pieces[-1] - sample.pieces[0]) / max(1, sample.tokens - 1)


def decoding_rate(samples: Sequence[Sample]) -> float:
    """Tokens a second between the first token of any of these requests and the last of any.

    Of requests that follow each other it holds their prompts too, but the first one's.
    NaN where there are not two moments to compare.
    """
    moments = [moment for sample in samples for moment in (sample.pieces[0], sample.pieces[-1])]
    if not moments or max(moments) <= min(moments):
        return math.nan
    return (sum(sample.tokens for sample in samples) - 1) / (max(moments) - min(moments))
