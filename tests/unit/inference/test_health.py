"""The phase machine behind the probes."""

import time

import pytest

from llm_inference.engine.interface import DeviceReport
from llm_inference.health import Health, Phase, process_started_at


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def health(clock):
    return Health(
        model_id="org/model", started_at=98.0, clock=clock, wall_clock=lambda: 1_700_000_002.0
    )


def advance(health, clock, *steps):
    for phase, seconds in steps:
        clock.now += seconds
        assert health.enter(phase)


def test_start_up_is_measured_by_phase_from_the_start_of_the_process(health, clock):
    advance(health, clock, (Phase.LOADING, 1), (Phase.WARMING, 2), (Phase.SERVING, 0.5))
    clock.now += 10
    report = health.report()
    assert report["phases"] == {"importing": 3.0, "loading": 2.0, "warming": 0.5}
    assert report["phase"] == "serving"
    assert report["phaseSeconds"] == 10
    assert report["elapsedSeconds"] == 15.5


def test_the_timeline_counts_from_the_start_of_the_process(health, clock):
    assert health.report()["started_at"] == 1_700_000_000
    assert health.report()["timeline"] == {}
    clock.now += 0.25
    health.answers()
    advance(health, clock, (Phase.LOADING, 1), (Phase.WARMING, 2))
    assert health.report()["timeline"] == {"process_up": 2.25, "weights_loaded": 5.25}
    advance(health, clock, (Phase.SERVING, 0.5), (Phase.DRAINING, 5))
    assert health.report()["timeline"] == {
        "process_up": 2.25,
        "weights_loaded": 5.25,
        "warmed_up": 5.75,
    }
    assert health.report()["started_at"] == 1_700_000_000


def test_a_model_from_the_hub_comes_before_what_loads_it_is_imported(health, clock):
    assert health.report()["download"] is None
    advance(health, clock, (Phase.DOWNLOADING, 1))
    health.downloaded(3, 10)
    assert health.report()["download"] == {"bytes_done": 3, "bytes_total": 10}
    advance(health, clock, (Phase.IMPORTING, 7), (Phase.LOADING, 2), (Phase.WARMING, 4))
    report = health.report()
    assert report["phases"] == {"importing": 5.0, "downloading": 7.0, "loading": 4.0}
    assert report["timeline"] == {"downloaded": 10.0, "weights_loaded": 16.0}


@pytest.mark.parametrize("end", [Phase.DRAINING, Phase.FAILED])
def test_what_is_broken_off_has_not_been_reached(health, clock, end):
    advance(health, clock, (Phase.LOADING, 1), (end, 1))
    assert health.report()["timeline"] == {}


def test_only_serving_is_ready(health, clock):
    seen = [health.ready]
    for phase in (Phase.LOADING, Phase.WARMING, Phase.SERVING, Phase.DRAINING):
        advance(health, clock, (phase, 1))
        seen.append(health.ready)
    assert seen == [False, False, False, True, False]


@pytest.mark.parametrize("reached", [0, 1, 2])
def test_a_model_that_loads_after_sigterm_does_not_make_the_server_ready(health, clock, reached):
    advance(health, clock, *[(p, 1) for p in (Phase.LOADING, Phase.WARMING)[:reached]])
    assert health.enter(Phase.DRAINING)
    assert not health.enter(Phase.SERVING)
    assert health.phase is Phase.DRAINING


def test_phases_are_not_skipped(health):
    assert not health.enter(Phase.SERVING)
    assert health.phase is Phase.IMPORTING


def test_the_first_failure_stays(health):
    health.fail("no weights")
    health.fail("something later")
    assert health.report()["error"] == "no weights"
    assert health.phase is Phase.FAILED


def test_the_report_says_what_is_served_and_on_what(health):
    device = DeviceReport(
        type="cpu", name="some cpu", dtype="bfloat16", memory_bytes=4 << 30, threads=2
    )
    health.name_model("org/model", "abc")
    health.describe_device(device)
    assert health.report()["quantization"] == "none"
    health.name_quantization("int8")
    report = health.report()
    assert report["quantization"] == "int8"
    assert report["model"] == {"id": "org/model", "revision": "abc"}
    assert report["device"] == {
        "type": "cpu",
        "name": "some cpu",
        "dtype": "bfloat16",
        "memory_bytes": 4 << 30,
        "threads": 2,
    }


def test_the_process_started_before_now():
    assert 0 <= time.monotonic() - process_started_at() < 24 * 3600
