"""What the kubelet and the scheduler say, and which sentence it becomes."""

import pytest

from llm_operator import reasons
from llm_operator.pods import Pod


def state(**state):
    return {"restartCount": 0, "started": False, "ready": False, "state": state}


def crashed(code, message="", *, reason="Error", restarts=1, running=False):
    ended = {"exitCode": code, "reason": reason, "message": message}
    now = {"running": {}} if running else {"waiting": {"reason": "CrashLoopBackOff"}}
    return {
        "restartCount": restarts,
        "started": False,
        "ready": False,
        "state": now,
        "lastState": {"terminated": ended},
    }


NOT_SCHEDULED = [
    {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
    }
]
PULL_ERROR = 'failed to pull and unpack image "x:1": not found'


@pytest.mark.parametrize(
    ("container", "reason", "message", "failure", "stalled"),
    [
        (
            state(waiting={"reason": "ContainerCreating"}),
            "RolloutInProgress",
            "pod smollm2-a is being prepared: volumes and image",
            False,
            False,
        ),
        (state(running={}), "ModelLoading", "pod smollm2-a loads the model", False, False),
        (
            state(waiting={"reason": "ErrImagePull", "message": PULL_ERROR}),
            "ImagePullFailed",
            PULL_ERROR,
            True,
            True,
        ),
        (
            state(
                waiting={
                    "reason": "ImagePullBackOff",
                    "message": f'Back-off pulling image "x:1": ErrImagePull: {PULL_ERROR}',
                }
            ),
            "ImagePullFailed",
            PULL_ERROR,
            True,
            True,
        ),
        (
            state(waiting={"reason": "InvalidImageName", "message": "couldn't parse X"}),
            "ImagePullFailed",
            "couldn't parse X",
            True,
            True,
        ),
        (
            state(
                waiting={"reason": "CreateContainerConfigError", "message": 'secret "s" not found'}
            ),
            "CreateContainerConfigError",
            'pod smollm2-a: secret "s" not found',
            True,
            False,
        ),
        (
            crashed(3, "2026 INFO starting\nno weights in /model\n"),
            "ModelLoadFailed",
            "pod smollm2-a: no weights in /model",
            True,
            True,
        ),
        (
            crashed(2, "LLM_DTYPE=int3: not a dtype"),
            "InvalidSpec",
            "pod smollm2-a: LLM_DTYPE=int3: not a dtype",
            True,
            True,
        ),
        (
            crashed(137, reason="OOMKilled"),
            "OutOfMemory",
            "pod smollm2-a: out of memory: raise resources.limits.memory",
            True,
            True,
        ),
        (
            crashed(1, "boom", restarts=1),
            "CrashLooping",
            "pod smollm2-a: the server stopped with exit code 1: boom",
            True,
            False,
        ),
        (
            crashed(1, "boom", restarts=3, running=True),
            "CrashLooping",
            "pod smollm2-a: the server stopped with exit code 1: boom",
            True,
            True,
        ),
    ],
)
def test_diagnosis(  # noqa: PLR0917
    make_pod, container, reason, message, failure, stalled
):
    diagnosis = Pod.of(make_pod(container=container)).diagnosis
    if reason is None:
        assert diagnosis is None
        return
    assert (diagnosis.reason, diagnosis.message) == (reason, message)
    assert (diagnosis.failure, diagnosis.stalled) == (failure, stalled)


def test_the_scheduler_is_quoted(make_pod):
    diagnosis = Pod.of(make_pod(conditions=NOT_SCHEDULED)).diagnosis
    assert diagnosis.reason == reasons.UNSCHEDULABLE
    assert diagnosis.message == NOT_SCHEDULED[0]["message"]


@pytest.mark.parametrize(
    ("not_ready_since", "reason"),
    [
        ("2026-01-01T00:00:00Z", "ModelLoading"),  # before the first readiness probe
        ("2026-01-01T00:09:00Z", "NotReady"),  # it was ready once
    ],
)
def test_a_started_server_counts_as_loading_until_it_was_ready_once(
    make_pod, not_ready_since, reason
):
    running = {"startedAt": "2026-01-01T00:00:01Z"}
    body = make_pod(container={"started": True, "ready": False, "state": {"running": running}})
    body["status"]["conditions"][0]["lastTransitionTime"] = not_ready_since
    assert Pod.of(body).diagnosis.reason == reason


def test_a_node_that_went_silent_is_told_from_a_server_that_is_not_ready(make_pod):
    container = {"started": True, "ready": True, "state": {"running": {}}}
    diagnosis = Pod.of(make_pod(container=container)).diagnosis
    assert diagnosis.reason == reasons.NODE_LOST


def test_a_startup_that_took_too_long_names_the_field_to_raise(make_pod):
    container = crashed(137)
    container["lastState"]["terminated"] |= {
        "startedAt": "2026-01-01T00:00:00Z",
        "finishedAt": "2026-01-01T00:10:05Z",
    }
    body = make_pod(container=container)
    probe = {"periodSeconds": 1, "failureThreshold": 600}
    body["spec"] = {"containers": [{"name": "server", "startupProbe": probe}]}
    diagnosis = Pod.of(body).diagnosis
    assert diagnosis.reason == reasons.STARTUP_BUDGET_EXCEEDED
    assert "probes.startupBudgetSeconds" in diagnosis.message


def test_a_ready_pod_needs_no_diagnosis(make_pod):
    pod = Pod.of(make_pod(ready=True, container=crashed(1)))
    assert pod.ready
    assert pod.diagnosis is None


@pytest.mark.parametrize(
    ("metadata", "phase", "counts", "ready"),
    [
        ({}, "Running", True, True),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, "Running", False, False),
        ({}, "Failed", False, True),
        ({}, "Succeeded", False, True),
    ],
)
def test_stopping_and_finished_pods_do_not_count(make_pod, metadata, phase, counts, ready):
    body = make_pod(ready=True, **metadata)
    body["status"]["phase"] = phase
    pod = Pod.of(body)
    assert pod.counts is counts
    assert pod.ready is ready
