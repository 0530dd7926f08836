"""Names that are used again: by another LLMDeployment, by what was left, by strangers."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from tests.e2e.faults.conftest import SEED
from tests.e2e.faults.convergence import (
    INSTANCE,
    Serving,
    assert_converged,
    fake,
    is_controlled_by,
    managed,
    title,
)
from tests.e2e.faults.operator_process import OperatorProcess
from tests.e2e.harness import KIND, Kubectl, condition, eventually

TIMES = 20


def test_deleted_and_made_anew_again_and_again(
    kubectl: Kubectl, operator: OperatorProcess, fake_nodes: None
):
    dice = random.Random(SEED)
    kubectl.apply(fake("bystander"))
    uids = set()
    for mark in range(TIMES):
        kubectl.apply(fake("again", mark, replicas=dice.choice([1, 2, 3])))
        uids.add(kubectl.json("get", KIND, "again")["metadata"]["uid"])
        time.sleep(dice.choice([0, 0, 0.2, 0.7]))
        if mark < TIMES - 1:
            kubectl("delete", KIND, "again", f"--wait={dice.choice(['true', 'false'])}".lower())
    assert len(uids) == TIMES
    eventually(lambda: assert_converged(kubectl, ["again", "bystander"]), within=60)
    assert_the_newest_owns_everything(kubectl, "again")


def assert_the_newest_owns_everything(kubectl: Kubectl, name: str) -> None:
    """No Deployment, ReplicaSet, pod or other object of an earlier one of the name is left."""
    cr = kubectl.json("get", KIND, name)
    objects = [o for o in managed(kubectl) if o["metadata"]["labels"][INSTANCE] == name]
    (deployment,) = [o for o in objects if o["kind"] == "Deployment"]
    assert is_controlled_by(deployment, cr)
    replica_sets = [o for o in objects if o["kind"] == "ReplicaSet"]
    assert [title(o) for o in replica_sets if not is_controlled_by(o, deployment)] == []
    pods = [o for o in objects if o["kind"] == "Pod"]
    strays = [p for p in pods if not any(is_controlled_by(p, r) for r in replica_sets)]
    assert [title(o) for o in strays] == []


def test_objects_left_behind_are_taken_up_by_the_next_of_the_name(
    kubectl: Kubectl, operator: OperatorProcess, fake_nodes: None
):
    kubectl.apply(fake("left", 1))
    eventually(lambda: assert_converged(kubectl, ["left"]), within=30)
    serving = Serving.now(kubectl, ["left"])
    kubectl("delete", KIND, "left", "--cascade=orphan")
    assert kubectl.exists("deployment", "left")
    kubectl.apply(fake("left", 1))
    eventually(lambda: assert_converged(kubectl, ["left"]), within=60)
    assert_the_newest_owns_everything(kubectl, "left")
    # Nobody who only lost and got back the LLMDeployment loses a pod over it.
    assert Serving.now(kubectl, ["left"]) == serving


@pytest.mark.parametrize("kind", ["deployment", "service"])
def test_a_strangers_object_is_refused_and_left_alone(
    kubectl: Kubectl, operator: OperatorProcess, fake_nodes: None, kind: str
):
    kubectl.apply(strangers(kind))
    before = content(kubectl.json("get", kind, "mine"))
    kubectl.apply(fake("mine"), fake("bystander"))

    def refused() -> bool:
        ready = condition(kubectl.json("get", KIND, "mine"), "Ready")
        assert (ready.get("status"), ready.get("reason")) == ("False", "NameConflict")
        assert f"{kind} mine exists".lower() in ready["message"].lower()
        return True

    eventually(refused, within=20)
    # A change of the spec and a restart of the operator are no reasons to take it either.
    kubectl.apply(fake("mine", 1))
    operator.kill()
    operator.restart()
    eventually(refused, within=20)
    assert content(kubectl.json("get", kind, "mine")) == before
    kubectl("delete", kind, "mine")
    eventually(lambda: assert_converged(kubectl, ["mine", "bystander"]), within=75)


def strangers(kind: str) -> dict[str, Any]:
    """An object that somebody else made; of the operator's labels it bears those of the pods."""
    labels = {"app.kubernetes.io/name": "llm-inference", INSTANCE: "mine"}
    if kind == "service":
        spec: dict[str, Any] = {"ports": [{"port": 5432}], "selector": {"app": "database"}}
        version = "v1"
    else:
        template = {
            "metadata": {"labels": {"app": "database"}},
            "spec": {"containers": [{"name": "server", "image": "localhost/database"}]},
        }
        spec = {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "database"}},
            "template": template,
        }
        version = "apps/v1"
    return {
        "apiVersion": version,
        "kind": kind.capitalize(),
        "metadata": {"name": "mine", "labels": labels},
        "spec": spec,
    }


def content(body: dict[str, Any]) -> tuple[Any, ...]:
    """What a writer could change of an object: who manages which field, and the fields."""
    managers = {each["manager"] for each in body["metadata"].get("managedFields", [])}
    metadata = {k: body["metadata"].get(k) for k in ("uid", "labels", "ownerReferences")}
    return body["spec"], metadata, "llm-operator" in managers
