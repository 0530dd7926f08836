"""What three clocks say about a start, and which seconds become of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_operator import coldstart
from llm_operator.coldstart import Pull, Report
from llm_operator.pods import Pod

CREATED = 1_767_225_600  # 2026-01-01T00:00:00Z
# As the kubelet of Kubernetes 1.29 and later writes them, and one before that.
PULLED = (
    'Successfully pulled image "registry/llm:cpu" in 1m2.75s (1m3.5s including waiting).'
    " Image size: 812345678 bytes."
)
PULLED_BEFORE = 'Successfully pulled image "registry/llm:cpu" in 850ms (850ms including waiting)'
PRESENT = 'Container image "registry/llm:cpu" already present on machine'
PRESENT_SINCE = f"{PRESENT} and can be accessed by the pod"
DEVICE = {"type": "cpu", "name": "EPYC", "dtype": "float32", "memory_bytes": 2048, "threads": 2}


def stamp(seconds):
    minutes, seconds = divmod(seconds, 60)
    return f"2026-01-01T00:{minutes:02}:{seconds:02}Z"


def make_pod(*, scheduled=1, started=65, ready=75):
    return Pod(
        name="llm-a",
        uid="u",
        address=None,
        created=stamp(0),
        scheduled=None if scheduled is None else stamp(scheduled),
        started=None if started is None else stamp(started),
        ready_since=None if ready is None else stamp(ready),
        template="t",
        ready=ready is not None,
        counts=True,
        diagnosis=None,
    )


def report(started, **milestones):
    return Report(CREATED + started, milestones, {})


def pulled(message, path="spec.containers{server}"):
    event = {"reason": "Pulled", "message": message, "involvedObject": {"fieldPath": path}}
    return Pull.of([{"reason": "Scheduled"}, event], "server")


@pytest.mark.parametrize(
    ("message", "seconds", "size"),
    [
        (PULLED, 62.75, 812345678),
        (PULLED_BEFORE, 0.85, None),
        (PRESENT, 0, None),
        (PRESENT_SINCE, 0, None),
        ('Successfully pulled image "x" in 1h0m1.5s (2h including waiting)', 3601.5, None),
    ],
)
def test_the_kubelets_words_about_the_pull(message, seconds, size):
    assert pulled(message) == Pull(seconds, size)


def test_the_pull_of_another_image_is_not_the_servers():
    assert pulled(PULLED, "spec.containers{proxy}") is None
    assert pulled(PULLED, "spec.initContainers{server}") is None


def test_every_phase_in_its_order():
    said = report(65.4, process_up=1.0, downloaded=3.5, weights_loaded=6.0, warmed_up=8.1)
    found = coldstart.cold_start(make_pod(), said, Pull(62.75, 812345678))
    assert list(found.items()) == [
        ("pod", "llm-a"),
        ("total", "75s"),
        ("scheduled", 1),
        ("imagePulled", 62.8),
        ("containerStarted", 1.2),
        ("processUp", 1.4),
        ("modelDownloaded", 2.5),
        ("weightsLoaded", 2.5),
        ("warmedUp", 2.1),
        ("ready", 1.5),
        ("imageBytes", 812345678),
    ]
    assert coldstart.total_seconds(found) == 75


def test_what_nobody_told_is_left_out():
    assert coldstart.cold_start(make_pod(), None, None) == {
        "pod": "llm-a",
        "total": "75s",
        "scheduled": 1,
        "containerStarted": 64,
        "ready": 10,
    }
    assert coldstart.cold_start(make_pod(ready=None), None, None) is None


OFFSETS = st.floats(0, 300).map(lambda seconds: round(seconds, 3))


@given(
    stamps=st.tuples(*[st.integers(0, 300)] * 3),
    began=OFFSETS,
    milestones=st.lists(OFFSETS, min_size=4, max_size=4).map(sorted),
    pull=st.none() | st.builds(Pull, OFFSETS, st.none()),
)
def test_phases_add_up_to_the_total_whatever_the_clocks_say(stamps, began, milestones, pull):
    scheduled, started, ready = stamps
    phases = ("process_up", "downloaded", "weights_loaded", "warmed_up")
    said = report(began, **dict(zip(phases, milestones, strict=True)))
    found = coldstart.cold_start(
        make_pod(scheduled=scheduled, started=started, ready=ready), said, pull
    )
    seconds = [value for name, value in found.items() if name not in {"pod", "total"}]
    assert min(seconds) >= 0
    total = coldstart.total_seconds(found)
    assert sum(seconds) == pytest.approx(total, abs=0.05 * len(seconds) + 0.06)
    assert total >= ready


def test_a_server_that_was_started_anew_had_no_cold_start():
    before = coldstart.cold_start(make_pod(), None, None)
    complete = coldstart.cold_start(make_pod(), report(65.4, process_up=1.0), Pull(0, None))
    assert coldstart.completed(before, complete) == complete
    again = coldstart.cold_start(make_pod(started=700, ready=705), None, None)
    assert coldstart.completed(before, again) == before
    assert coldstart.completed(before, None) == before


def test_a_report_with_names_of_the_status():
    body = {"started_at": 5.5, "timeline": {"process_up": 1}, "device": DEVICE}
    found = Report.of(body)
    assert (found.started, found.milestones) == (5.5, {"process_up": 1.0})
    assert found.device == {
        "type": "cpu",
        "name": "EPYC",
        "dtype": "float32",
        "memory": 2048,
        "threads": 2,
    }
    assert Report.of({**body, "device": None}).device == {}
    assert Report.of({**body, "device": {"type": "cpu", "name": None}}).device == {"type": "cpu"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        None,
        {"started_at": "soon", "timeline": {}, "device": None},
        {"started_at": 1, "timeline": [], "device": None},
        {"started_at": 1, "timeline": {"process_up": None}, "device": None},
        {"started_at": 1, "timeline": {}, "device": "cpu"},
    ],
)
def test_the_answer_of_something_else_is_no_report(body):
    with pytest.raises(ValueError, match="not the report of an inference server"):
        Report.of(body)
