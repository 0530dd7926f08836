"""The loads of a run, sent to servers that do nothing but answer."""

import sys

import pytest

from bench.serving import overhead, scenarios
from bench.serving.figures import Objective
from bench.serving.prompts import SHORT
from bench.serving.scenarios import loads, measure
from bench.serving.servers import Server

LOADS = loads(streams=6, tokens=5)
OBJECTIVE = Objective(ttft=60)


@pytest.fixture
def names():
    """What was done, in order, without how long it took."""
    return []


def run(servers, names, **how):
    return measure(
        servers,
        sent=LOADS,
        objective=OBJECTIVE,
        say=lambda line: names.append(line.rpartition(" (")[0]),
        **how,
    )


@pytest.fixture
def quick():
    """A server that runs already."""
    with overhead.server(0) as target:
        yield Server("quick", url=target.url, ready="/v1/models")


def test_every_load_is_sent_in_every_round(quick, names):
    (document,) = run([quick], names, rounds=2, cold_starts=0)["servers"].values()
    assert {name: len(rounds) for name, rounds in document["loads"].items()} == dict.fromkeys(
        LOADS, 2
    )
    for name, load in LOADS.items():
        for figures in document["loads"][name]:
            assert (figures["requests"], figures["failures"]) == (load.requests, {})
            assert figures["tokens"] == load.requests * load.tokens
    assert names == ["quick: round 1", "quick: round 2"]


def test_a_server_that_fails_does_not_end_the_run(quick, names):
    broken = Server("broken", command=(sys.executable, "-c", "exit('no model')"))
    measured = run([broken, quick], names, rounds=2, cold_starts=1)
    assert measured["servers"]["broken"]["errors"] == ["broken ended with 1: no model"] * 3
    assert measured["servers"]["broken"]["loads"] == {}
    assert len(measured["servers"]["quick"]["loads"]["many"]) == 2
    assert len(measured["import_torch"]) == 1
    assert [name.partition(": broken")[0] for name in names] == [
        "broken: start 1",
        "broken: round 1",
        "quick: round 1",
        "quick: round 2",
        "broken: round 2",
    ]


def test_the_long_prompt_has_512_tokens_and_the_cache_holds_the_largest_load():
    assert LOADS["prompt"].words + scenarios.TEMPLATE_TOKENS == 512
    assert scenarios.cache_tokens(loads()) == 16 * (SHORT + scenarios.TEMPLATE_TOKENS + 64)
    assert scenarios.cache_tokens(loads(streams=1)) == 512 + 4
