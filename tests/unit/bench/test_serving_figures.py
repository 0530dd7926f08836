"""Rates and percentiles of requests whose times are known."""

import json
import math

import pytest

from bench.serving.figures import (
    Objective,
    Percentiles,
    decoding_rate,
    percentile,
    summarise,
)
from bench.serving.stream import Sample


def sample(due, *pieces, failure=None, tokens=None, prompt_tokens=0):
    counted = len(pieces) if tokens is None else tokens
    ended = pieces[-1] if pieces else due
    return Sample(due, list(pieces), ended, counted, prompt_tokens, failure)


@pytest.mark.parametrize(("percent", "value"), [(0, 10), (50, 30), (90, 46), (99, 49.6), (100, 50)])
def test_percentiles_lie_between_the_values(percent, value):
    assert percentile([10, 20, 30, 40, 50], percent) == pytest.approx(value)


def test_percentiles_of_one_value_and_of_none():
    assert Percentiles.of([7]) == Percentiles(7, 7, 7)
    assert all(math.isnan(value) for value in vars(Percentiles.of([])).values())


def test_percentiles_do_not_need_an_order():
    assert Percentiles.of([3, 1, 2]).p50 == 2


def test_the_figures_of_two_requests():
    summary = summarise([sample(0, 1.0, 1.5, 2.0), sample(2.0, 2.2, 2.4)], 2.5)
    assert (summary.requests, summary.tokens, summary.failures) == (2, 5, {})
    assert summary.throughput == pytest.approx(5 / 2.5)
    assert summary.decoding == pytest.approx(4 / 1.4)
    assert summary.ttft.p50 == pytest.approx(0.6)
    assert summary.itl.p50 == pytest.approx(0.5)
    assert summary.e2e.p99 == pytest.approx(0.4 + 1.6 * 0.99)


def test_tokens_are_what_the_server_states():
    summary = summarise([sample(0, 1, 2, tokens=9, prompt_tokens=30)], 3)
    assert (summary.tokens, summary.throughput, summary.prompt_tokens) == (9, 3, 30)


def test_failures_are_counted_and_in_no_other_figure():
    samples = [sample(0, 1, 2), sample(0, 50, failure="late"), sample(0, failure="late")]
    summary = summarise(samples, 2)
    assert summary.failures == {"late": 2}
    assert (summary.tokens, summary.ttft.p99) == (2, 1)
    assert summary.goodput == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("objective", "goodput"),
    [
        (Objective(), 1),
        (Objective(ttft=1), 0.5),
        (Objective(itl=0.5), 0.5),
        (Objective(ttft=1, itl=0.5), 0),
        (Objective(ttft=2, itl=1), 1),
    ],
)
def test_goodput_is_the_share_that_meets_the_objective(objective, goodput):
    samples = [sample(0, 1, 2, 3), sample(0, 2, 2.5)]
    assert summarise(samples, 3, objective).goodput == goodput


def test_nothing_that_was_measured_is_null_in_json():
    document = summarise([], 0).document()
    assert document["throughput"] is None
    assert document["ttft"] == {"p50": None, "p90": None, "p99": None}
    json.dumps(document, allow_nan=False)


def test_a_single_token_has_no_rate():
    assert math.isnan(decoding_rate([sample(0, 1)]))
