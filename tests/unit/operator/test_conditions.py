"""The truth table: what exists, and what the status says of it."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_operator import conditions
from llm_operator.api import LLMDeployment
from llm_operator.conditions import Observed, Problem
from llm_operator.hardware import Decision
from llm_operator.pods import Diagnosis, Pod

NOW = "2026-01-01T00:00:00Z"
LATER = "2026-01-01T01:00:00Z"

LOADING = Diagnosis("ModelLoading", "pod a loads the model")
NO_GPU = Diagnosis("Unschedulable", "0/1 nodes are available", failure=True)
NOT_SERVED = Diagnosis("NotReady", "probe fails", failure=True)
NO_IMAGE = Diagnosis("ImagePullFailed", "not found", failure=True, stalled=True)
QUOTA = (
    'pods "smollm2-x" is forbidden: exceeded quota: q, requested: cpu=2, used: cpu=0, limited: 1'
)


def pod(*, template="new", ready=False, diagnosis=None, name="a"):
    return Pod(
        name=name,
        uid=name,
        address=None,
        created=NOW,
        scheduled=NOW,
        started=NOW,
        ready_since=NOW if ready else None,
        template=template,
        ready=ready,
        counts=True,
        diagnosis=diagnosis,
    )


def deployment(*, observed=1, **conditions):
    return {
        "metadata": {"generation": 1},
        "status": {
            "observedGeneration": observed,
            "conditions": [{"type": type_, **condition} for type_, condition in conditions.items()],
        },
    }


FAILED_CREATE = {"status": "True", "reason": "FailedCreate", "message": QUOTA}
FORBIDDEN = FAILED_CREATE | {"message": "violates PodSecurity"}
LIMITED = FAILED_CREATE | {
    "message": 'pods "m-5d8f-x7k2l" is forbidden: maximum cpu usage per Container is 1'
}
POLICED = FAILED_CREATE | {
    "message": 'admission webhook "policy.example" denied the request: no team is named'
}
STUCK = {"status": "False", "reason": "ProgressDeadlineExceeded"}
READY = pod(ready=True)
OLD = pod(template="old", ready=True, name="old")
LOST = Problem("ApiError", "no answer", transient=True)


@dataclasses.dataclass
class Row:
    """One row of the table."""

    ready: str
    reason: str
    also: set = dataclasses.field(default_factory=set)
    replicas: int = 1
    pods: tuple = ()
    deployment: dict | None = None
    problem: Problem | None = None
    says: str = ""


ON, OFF = "True", "False"
RECONCILING, STALLED = {"Reconciling"}, {"Stalled"}

TABLE = {
    "nothing yet": Row(OFF, "RolloutInProgress", RECONCILING),
    "loading": Row(OFF, "ModelLoading", RECONCILING, pods=(pod(diagnosis=LOADING),)),
    "serving": Row(ON, "ModelServing", pods=(READY,), says="1 of 1 replicas serve a/b"),
    "only the old generation serves": Row(
        OFF, "RolloutInProgress", RECONCILING, pods=(OLD,), says="previous generation serve"
    ),
    "new generation loads beside the old": Row(
        OFF, "ModelLoading", RECONCILING, pods=(OLD, pod(diagnosis=LOADING)), says="1 pod of the"
    ),
    "old generation not yet gone": Row(ON, "ModelServing", RECONCILING, pods=(READY, OLD)),
    "scaling up": Row(
        ON, "ModelServing", RECONCILING, replicas=2, pods=(READY, pod(diagnosis=LOADING))
    ),
    "scaling up without room": Row(
        ON,
        "ModelServing",
        RECONCILING,
        replicas=2,
        pods=(READY, pod(diagnosis=NO_GPU)),
        says="0/1 nodes are available",
    ),
    "scaling down": Row(ON, "ModelServing", RECONCILING, pods=(READY, pod(ready=True, name="b"))),
    "no room": Row(
        OFF, "Unschedulable", RECONCILING, pods=(pod(diagnosis=NO_GPU),), says="0/1 nodes"
    ),
    "no room for too long": Row(
        OFF,
        "Unschedulable",
        STALLED,
        pods=(pod(diagnosis=NO_GPU),),
        deployment=deployment(Progressing=STUCK),
    ),
    "stuck while some serve": Row(
        ON,
        "ModelServing",
        STALLED,
        replicas=2,
        pods=(READY, pod(diagnosis=NO_GPU)),
        deployment=deployment(Progressing=STUCK),
    ),
    "the generation before this one was stuck": Row(
        OFF,
        "RolloutInProgress",
        RECONCILING,
        deployment=deployment(observed=0, Progressing=STUCK, ReplicaFailure=FAILED_CREATE),
    ),
    "stuck, while the old generation serves": Row(
        OFF,
        "Unschedulable",
        STALLED,
        pods=(OLD, pod(diagnosis=NO_GPU)),
        deployment=deployment(Progressing=STUCK),
        says="1 pod of the previous generation serve",
    ),
    "the failure that waiting does not mend comes first": Row(
        OFF, "ImagePullFailed", STALLED, pods=(pod(diagnosis=NOT_SERVED), pod(diagnosis=NO_IMAGE))
    ),
    "no image": Row(OFF, "ImagePullFailed", STALLED, pods=(pod(diagnosis=NO_IMAGE),)),
    "a failure outweighs a pod that loads": Row(
        OFF, "ImagePullFailed", STALLED, pods=(pod(diagnosis=LOADING), pod(diagnosis=NO_IMAGE))
    ),
    "an old pod's failure is not ours": Row(
        OFF, "RolloutInProgress", RECONCILING, pods=(pod(template="old", diagnosis=NO_IMAGE),)
    ),
    "quota": Row(
        OFF,
        "QuotaExceeded",
        RECONCILING,
        deployment=deployment(ReplicaFailure=FAILED_CREATE),
        says="pods are forbidden: exceeded quota: q,",
    ),
    "pods refused": Row(
        OFF, "PodCreationFailed", RECONCILING, deployment=deployment(ReplicaFailure=FORBIDDEN)
    ),
    "pods above a limit range": Row(
        OFF,
        "PodCreationFailed",
        RECONCILING,
        pods=(OLD,),
        deployment=deployment(ReplicaFailure=LIMITED),
        says="pods are forbidden: maximum cpu usage per Container is 1; 1 pod of the previous",
    ),
    "pods against a policy": Row(
        OFF,
        "PodCreationFailed",
        RECONCILING,
        deployment=deployment(ReplicaFailure=POLICED),
        says='admission webhook "policy.example" denied the request: no team is named',
    ),
    "further pods refused": Row(
        ON,
        "ModelServing",
        RECONCILING,
        replicas=2,
        pods=(READY,),
        deployment=deployment(ReplicaFailure=LIMITED),
        says="1 of 2 replicas serve a/b; pods are forbidden: maximum cpu",
    ),
    "pods refused for too long": Row(
        OFF,
        "PodCreationFailed",
        STALLED,
        deployment=deployment(ReplicaFailure=LIMITED, Progressing=STUCK),
    ),
    "a failure that is over": Row(
        OFF,
        "RolloutInProgress",
        RECONCILING,
        deployment=deployment(ReplicaFailure=FAILED_CREATE | {"status": "False"}),
    ),
    "scaled to zero": Row(OFF, "ScaledToZero", replicas=0),
    "scaling to zero": Row(
        OFF, "ScaledToZero", RECONCILING, replicas=0, pods=(pod(),), says="1 pod left"
    ),
    "invalid": Row(
        OFF,
        "InvalidSpec",
        STALLED,
        pods=(OLD,),
        problem=Problem("InvalidSpec", "mend it", stalled=True),
        says="mend it; 1 pod of the previous generation serve",
    ),
    "forbidden": Row(OFF, "Forbidden", RECONCILING, problem=Problem("Forbidden", "no")),
    "api server away, nothing serves": Row(OFF, "ApiError", RECONCILING, problem=LOST),
    "api server away, pods serve": Row(
        ON, "ModelServing", RECONCILING, pods=(READY,), problem=LOST, says="no answer"
    ),
}


def make_cr(*, replicas=1, status=None, generation=1):
    return LLMDeployment.parse(
        {
            "metadata": {"name": "m", "namespace": "n", "uid": "u", "generation": generation},
            "spec": {"model": {"id": "a/b"}, "replicas": replicas},
            "status": status or {},
        }
    )


def status_of(row, cr=None, now=NOW):
    observed = Observed(
        template="new", deployment=row.deployment, pods=row.pods, problem=row.problem
    )
    return conditions.status(cr or make_cr(replicas=row.replicas), observed, now=now)


@pytest.mark.parametrize("name", TABLE)
def test_table(name):
    row = TABLE[name]
    status = status_of(row)
    ready = conditions.condition(status, "Ready")
    assert (ready["status"], ready["reason"]) == (row.ready, row.reason)
    assert row.says in ready["message"]
    others = {each["type"]: each["status"] for each in status["conditions"]} | {"Ready": None}
    assert others == {"Ready": None} | dict.fromkeys(row.also, "True")


@pytest.mark.parametrize("name", TABLE)
def test_status_fits_the_api_and_is_written_once(name):
    """What was written comes back the same: a second look at the same things changes nothing."""
    row = TABLE[name]
    first = status_of(row)
    again = status_of(row, make_cr(replicas=row.replicas, status=first), now=LATER)
    assert again == first


def autoscaled(said, *, now=NOW):
    """The condition Autoscaled of an object whose autoscaler says this."""
    spec = {"model": {"id": "a/b"}, "autoscaling": {"maxReplicas": 3}}
    metadata = {"name": "m", "namespace": "n", "uid": "u"}
    cr = LLMDeployment.parse({"metadata": metadata, "spec": spec})
    observed = Observed(template="new", deployment=None, pods=(), autoscaler=said)
    found = conditions.condition(conditions.status(cr, observed, now=now), "Autoscaled")
    return found["status"], found["reason"]


def hpa(reason, status="False"):
    said = {"type": "ScalingActive", "status": status, "reason": reason, "lastTransitionTime": NOW}
    return {"status": {"conditions": [said]}}


@pytest.mark.parametrize("reason", ["InvalidSelector", "AmbiguousSelector"])
def test_an_autoscaler_has_a_second_look_before_it_is_believed_to_find_no_pods(reason):
    assert autoscaled(hpa(reason), now="2026-01-01T00:00:19Z") == ("Unknown", "NotReported")
    assert conditions.settles_in(hpa(reason), now="2026-01-01T00:00:19Z") == 1
    assert autoscaled(hpa(reason), now="2026-01-01T00:00:20Z") == ("False", reason)
    assert conditions.settles_in(hpa(reason), now=LATER) == 0


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (None, ("Unknown", "NotReported")),
        ({"metadata": {}}, ("Unknown", "NotReported")),
        (hpa("ValidMetricFound", "True"), ("True", "ValidMetricFound")),
        (hpa("FailedGetResourceMetric"), ("False", "FailedGetResourceMetric")),
        (
            {"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Is"}]}},
            ("True", "Is"),
        ),
    ],
    ids=["none", "new", "active", "no metrics", "keda"],
)
def test_an_autoscaler_is_told_in_its_own_words(said, told):
    assert autoscaled(said) == told
    assert conditions.settles_in(said, now=NOW) == 0


PODS = st.lists(
    st.builds(
        pod,
        template=st.sampled_from(["new", "old", None]),
        ready=st.booleans(),
        diagnosis=st.sampled_from([None, LOADING, NO_GPU, NO_IMAGE]),
    ),
    max_size=4,
)
PROBLEMS = st.sampled_from([None, LOST, Problem("InvalidSpec", "x", stalled=True)])


@given(
    pods=PODS, problem=PROBLEMS, replicas=st.integers(0, 3), template=st.sampled_from(["new", None])
)
def test_ready_cannot_lie(pods, problem, replicas, template):
    observed = Observed(template=template, deployment=None, pods=pods, problem=problem)
    status = conditions.status(make_cr(replicas=replicas), observed, now=NOW)
    ready = conditions.condition(status, "Ready")["status"] == "True"
    serving = [each for each in pods if each.ready and each.template == template and template]
    assert not ready or serving
    assert ready or not serving or replicas == 0 or (problem and not problem.transient)


@given(
    pods=PODS,
    problem=PROBLEMS,
    replicas=st.integers(0, 3),
    live=st.sampled_from([None, deployment(Progressing=STUCK)]),
)
def test_not_ready_says_whether_waiting_helps(pods, problem, replicas, live):
    """kstatus takes Ready=False without Reconciling or Stalled for work in progress without end."""
    observed = Observed(template="new", deployment=live, pods=pods, problem=problem)
    status = conditions.status(make_cr(replicas=replicas), observed, now=NOW)
    types = {each["type"] for each in status["conditions"]}
    ready = conditions.condition(status, "Ready")
    assert not types >= {"Reconciling", "Stalled"}
    if ready["status"] == "False" and ready["reason"] != "ScaledToZero":
        assert len(types & {"Reconciling", "Stalled"}) == 1


def test_transition_time_moves_only_when_the_status_flips():
    loading = status_of(TABLE["loading"])
    no_room = status_of(TABLE["no room"], make_cr(status=loading), now=LATER)
    assert conditions.condition(no_room, "Ready")["reason"] == "Unschedulable"
    assert conditions.condition(no_room, "Ready")["lastTransitionTime"] == NOW
    serving = status_of(TABLE["serving"], make_cr(status=no_room), now=LATER)
    assert conditions.condition(serving, "Ready")["lastTransitionTime"] == LATER


def test_the_generation_is_said_at_the_top_and_in_each_condition():
    status = status_of(TABLE["loading"], make_cr(generation=7))
    assert status["observedGeneration"] == 7
    assert {each["observedGeneration"] for each in status["conditions"]} == {7}


def test_counts_and_names():
    observed = Observed(
        template="new",
        deployment=None,
        pods=(READY, OLD, pod(diagnosis=LOADING)),
        decision=Decision("gpu", "target is gpu"),
        image="registry/llm:gpu",
    )
    status = conditions.status(make_cr(replicas=2), observed, now=NOW)
    del status["conditions"]
    assert status == {
        "observedGeneration": 1,
        "replicas": 3,
        "readyReplicas": 2,
        "updatedReplicas": 2,
        "replicasReady": "2/2",
        "selector": "app.kubernetes.io/instance=m,app.kubernetes.io/name=llm-inference",
        "endpoint": "http://m.n.svc",
        "target": "gpu",
        "targetReason": "target is gpu",
        "image": "registry/llm:gpu",
    }


def test_a_long_message_is_cut():
    problem = Problem("InvalidSpec", "x" * 5000, stalled=True)
    row = Row(OFF, "InvalidSpec", problem=problem)
    message = conditions.condition(status_of(row), "Ready")["message"]
    assert len(message) == 1024
    assert message.endswith("…")


def test_pods_are_read_oldest_first_without_those_that_stop(make_pod):
    bodies = [
        make_pod("b", creationTimestamp="2026-01-02T00:00:00Z"),
        make_pod("a", creationTimestamp="2026-01-03T00:00:00Z"),
        make_pod("c", creationTimestamp="2026-01-01T00:00:00Z", deletionTimestamp="x"),
    ]
    assert [each.name for each in conditions.read_pods(bodies, since="")] == ["b", "a"]


def test_pods_of_a_deleted_namesake_do_not_count(make_pod):
    bodies = [
        make_pod("left", creationTimestamp="2026-01-01T00:00:00Z", ready=True),
        make_pod("ours", creationTimestamp="2026-01-01T00:00:05Z"),
    ]
    found = conditions.read_pods(bodies, since="2026-01-01T00:00:05Z")
    assert [each.name for each in found] == ["ours"]
