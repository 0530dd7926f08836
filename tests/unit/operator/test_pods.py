"""What the kubelet and the scheduler say, and which sentence it becomes."""

import pytest

from llm_operator import reasons
from llm_operator.pods import Pod, Warned, explained


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
            state(
                waiting={
                    "reason": "ErrImagePull",
                    "message": "read udp 10.0.0.9:40123->10.0.0.2:53: i/o timeout",
                }
            ),
            "ImagePullFailed",
            "read udp 10.0.0.9->10.0.0.2:53: i/o timeout",
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
            "pod smollm2-a: out of memory before it served: the node had none left;"
            " set resources.requests.memory to what the model needs",
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
    body = make_pod(container=container)
    body["spec"] = {"nodeName": "worker-7"}
    diagnosis = Pod.of(body).diagnosis
    assert diagnosis.reason == reasons.NODE_LOST
    assert "worker-7" in diagnosis.message


STARTED, ENDED = "2026-01-01T00:00:00Z", "2026-01-01T00:10:05Z"
BEFORE, BETWEEN = "2025-12-31T23:59:59Z", "2026-01-01T00:05:00Z"


def ended(make_pod, code, *, ready_until, restarts=1, server=None, **terminated):
    """A pod whose server ran from STARTED to ENDED, ready until `ready_until`, if it was."""
    container = crashed(code, restarts=restarts, **terminated)
    container["lastState"]["terminated"] |= {"startedAt": STARTED, "finishedAt": ENDED}
    body = make_pod(container=container)
    body["status"]["conditions"][0]["lastTransitionTime"] = ready_until
    probe = {"periodSeconds": 1, "failureThreshold": 600}
    body["spec"] = {"containers": [{"name": "server", "startupProbe": probe, **(server or {})}]}
    return Pod.of(body).diagnosis


def test_a_startup_that_took_too_long_names_the_field_to_raise(make_pod):
    diagnosis = ended(make_pod, 137, ready_until=BEFORE)
    assert diagnosis.reason == reasons.STARTUP_BUDGET_EXCEEDED
    assert "600 s: raise probes.startupBudgetSeconds" in diagnosis.message
    assert diagnosis.stalled


def test_a_server_that_served_for_long_has_not_exceeded_its_startup_budget(make_pod):
    diagnosis = ended(make_pod, 139, ready_until=ENDED)
    assert (diagnosis.reason, diagnosis.stalled) == (reasons.CRASH_LOOPING, False)


@pytest.mark.parametrize(
    ("ready_until", "restarts", "words", "stalled"),
    [
        (BEFORE, 1, "before it served", True),  # loading needs as much each time
        (ENDED, 1, "while it served", False),
        (BETWEEN, 3, "while it served", True),
    ],
)
def test_out_of_memory_names_the_limit_and_when(make_pod, ready_until, restarts, words, stalled):
    diagnosis = ended(
        make_pod,
        137,
        reason="OOMKilled",
        ready_until=ready_until,
        restarts=restarts,
        server={"resources": {"limits": {"memory": "100Mi"}}},
    )
    assert diagnosis.reason == reasons.OUT_OF_MEMORY
    assert diagnosis.message == (
        f"pod smollm2-a: out of memory {words}, with a limit of 100Mi: raise"
        " resources.limits.memory"
    )
    assert diagnosis.stalled is stalled


@pytest.mark.parametrize(("restarts", "stalled"), [(1, False), (3, True)])
def test_a_download_that_failed_may_succeed_the_next_time(make_pod, restarts, stalled):
    hub = {"env": [{"name": "LLM_MODEL_SOURCE", "value": "hub"}]}
    diagnosis = ended(
        make_pod, 3, message="hub: no answer", ready_until=BEFORE, restarts=restarts, server=hub
    )
    assert (diagnosis.reason, diagnosis.stalled) == (reasons.MODEL_LOAD_FAILED, stalled)


PREPARED = state(waiting={"reason": "ContainerCreating"})
BACK_OFF = 'Back-off pulling image "x:1"'
PULL = 'Failed to pull image "x:1": rpc error: code = NotFound desc = x:1: not found'
MOUNT = 'MountVolume.SetUp failed for volume "{}" : secret "{}" not found'
NO_SANDBOX = 'failed to setup network for sandbox "{}": no such plugin'
NOT_RUNNING = {"started": True, "ready": False, "state": {"running": {"startedAt": STARTED}}}


def words_of(pod, *warnings):
    found = explained(pod, [Warned(reason, message) for reason, message in warnings]).diagnosis
    return found.reason, found.message


def test_a_volume_that_is_not_mounted_is_told_by_the_kubelets_event(make_pod):
    pod = Pod.of(make_pod(container=PREPARED))
    warning = ("FailedMount", MOUNT.format("keys", "keys"))
    assert words_of(pod, warning) == (reasons.VOLUME_NOT_READY, f"pod smollm2-a: {warning[1]}")
    assert explained(pod, [Warned(*warning)]).diagnosis.failure
    assert explained(pod, []) == pod


def test_which_volume_fails_is_told_the_same_whichever_was_tried_last(make_pod):
    pod = Pod.of(make_pod(container=PREPARED))
    one = ("FailedMount", MOUNT.format("a", "a"))
    other = ("FailedMount", MOUNT.format("b", "b"))
    vague = ("FailedMount", "Unable to attach or mount volumes: unmounted volumes=[b a]")
    said = words_of(pod, one, other, vague)
    assert said == words_of(pod, vague, other, one, other)
    assert said[1] == f"pod smollm2-a: {one[1]}; {other[1]}"
    assert words_of(pod, vague)[1] == f"pod smollm2-a: {vague[1]}"


def test_what_is_new_in_each_attempt_is_left_out(make_pod):
    pod = Pod.of(make_pod(container=PREPARED))
    first, second = (("FailedCreatePodSandBox", NO_SANDBOX.format(id_ * 64)) for id_ in "a7")
    assert words_of(pod, first) == words_of(pod, second)
    assert words_of(pod, first)[0] == reasons.SANDBOX_FAILED
    unit = ("FailedMount", "Output: Running scope as unit: run-r0123456789abcdef.scope")
    assert "run-r….scope" in words_of(pod, unit)[1]


def test_a_missing_pull_secret_is_added_to_what_the_registry_said(make_pod):
    waiting = {"reason": "ErrImagePull", "message": PULL_ERROR}
    pod = Pod.of(make_pod(container=state(waiting=waiting)))
    secret = ("FailedToRetrieveImagePullSecret", "Unable to retrieve some image pull secrets (s)")
    mount = ("FailedMount", "of another day")
    assert words_of(pod, mount, secret) == (
        reasons.IMAGE_PULL_FAILED,
        f"{PULL_ERROR}; {secret[1]}",
    )


def test_a_back_off_without_its_cause_is_told_by_the_event(make_pod):
    waiting = {"reason": "ImagePullBackOff", "message": BACK_OFF}
    pod = Pod.of(make_pod(container=state(waiting=waiting)))
    told = words_of(pod, ("Failed", "Error: ErrImagePull"), ("Failed", PULL))
    assert told[1] == "rpc error: code = NotFound desc = x:1: not found"
    assert words_of(pod)[1] == BACK_OFF


def test_a_server_that_stopped_being_ready_is_told_by_its_probe(make_pod):
    body = make_pod(container=NOT_RUNNING)
    body["status"]["conditions"][0]["lastTransitionTime"] = BETWEEN
    pod = Pod.of(body)
    startup = ("Unhealthy", "Startup probe failed: HTTP probe failed with statuscode: 503")
    readiness = ("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503")
    assert words_of(pod, startup) == (reasons.NOT_READY, "pod smollm2-a: the readiness probe fails")
    assert words_of(pod, startup, readiness)[1] == f"pod smollm2-a: {readiness[1]}"


def test_other_diagnoses_need_no_event(make_pod):
    pod = Pod.of(make_pod(container=state(running={})))
    assert explained(pod, [Warned("FailedMount", "of another day")]) == pod


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
