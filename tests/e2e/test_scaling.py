"""The number of pods: by hand, by an autoscaler, and none at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import dev_cluster
from tests.e2e.harness import (
    KIND,
    WRITE_VERBS,
    Kubectl,
    chat,
    condition,
    eventually,
    llm_deployment,
)
from tests.e2e.traffic import first_answer

NOWHERE = {"nodeSelector": {"no-such": "node"}}
PROMETHEUS = {
    "type": "prometheus",
    "target": 4,
    "serverAddress": "http://prometheus.monitoring:9090",
    "query": 'sum(vllm:num_requests_waiting{pod=~"queried-.*"})',
}


def scaled(name: str, autoscaling: dict[str, Any], **spec: Any) -> dict[str, Any]:
    resources = {"requests": {"cpu": "200m"}}
    return llm_deployment(name, target="cpu", resources=resources, autoscaling=autoscaling, **spec)


def ready(kubectl: Kubectl, name: str) -> dict[str, Any]:
    return condition(kubectl.json("get", KIND, name), "Ready")


def autoscaled(kubectl: Kubectl, name: str) -> dict[str, Any]:
    return condition(kubectl.json("get", KIND, name), "Autoscaled")


def test_suspended_nothing_runs_and_everything_else_stays(kubectl: Kubectl):
    bounds = {"minReplicas": 2, "maxReplicas": 3}
    kubectl.apply(scaled("paused", bounds, replicas=2))
    kubectl.wait_ready("paused")
    eventually(lambda: kubectl.exists("hpa", "paused"), within=10)
    eventually(lambda: kubectl.exists("pdb", "paused"), within=10)
    kept = uids(kubectl)
    assert len(kept) == 3

    kubectl("patch", KIND, "paused", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    eventually(lambda: not kubectl.items("pods"), within=90)
    eventually(lambda: ready(kubectl, "paused")["message"].endswith("nothing serves"), within=10)
    resource = kubectl.json("get", KIND, "paused")
    assert (ready(kubectl, "paused")["status"], ready(kubectl, "paused")["reason"]) == (
        "False",
        "Suspended",
    )
    assert not condition(resource, "Stalled")
    assert not condition(resource, "Reconciling")
    assert not kubectl.exists("hpa", "paused")
    assert not kubectl.exists("pdb", "paused")
    assert uids(kubectl) == kept
    assert resource["spec"]["replicas"] == 2
    row = kubectl("get", KIND, "paused", "--no-headers").split()
    assert "Suspended" in row
    assert "0/0" in row

    kubectl("patch", KIND, "paused", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    kubectl.wait_ready("paused")
    assert uids(kubectl) == kept
    eventually(lambda: kubectl.exists("hpa", "paused"), within=10)
    eventually(lambda: kubectl.exists("pdb", "paused"), within=10)
    assert first_answer(kubectl.service_url("paused"))


def uids(kubectl: Kubectl) -> set[str]:
    """Of the objects that outlive a suspension."""
    kinds = "deployments,services,networkpolicies"
    return {item["metadata"]["uid"] for item in kubectl.items(kinds)}


def test_the_number_of_replicas_follows_the_load(kubectl: Kubectl, audit_log: Path):
    bounds = {
        "minReplicas": 1,
        "maxReplicas": 2,
        "metric": {"type": "cpu", "target": 60},
        "scaleDownDelaySeconds": 0,
    }
    kubectl.apply(scaled("loaded", bounds))
    kubectl.wait_ready("loaded")
    with busy(kubectl.service_url("loaded")):
        eventually(lambda: replicas(kubectl, "loaded") == 2, within=150)
        assert autoscaled(kubectl, "loaded")["status"] == "True"
        eventually(lambda: kubectl.exists("pdb", "loaded"), within=10)
    eventually(lambda: replicas(kubectl, "loaded") == 1, within=180)
    eventually(lambda: len(kubectl.items("pods")) == 1, within=60)
    eventually(lambda: not kubectl.exists("pdb", "loaded"), within=10)
    assert ready(kubectl, "loaded")["status"] == "True"

    writers = spec_writers(kubectl, "loaded")
    assert writers["replicas"] == {"kube-controller-manager"}
    assert not any(who.startswith("llm-operator") for who in set.union(*writers.values()))
    written = {
        (event["objectRef"].get("subresource", ""), event["user"]["username"])
        for event in writes(audit_log, kubectl.namespace, "loaded")
    }
    assert ("scale", "system:serviceaccount:kube-system:horizontal-pod-autoscaler") in written
    assert {subresource for subresource, user in written if "operator" in user} <= {"status"}


def replicas(kubectl: Kubectl, name: str) -> int:
    """What the autoscaler decided; the Deployment has to follow at once."""
    wanted: int = kubectl.json("get", KIND, name)["spec"]["replicas"]
    if kubectl.json("get", "deployment", name)["spec"]["replicas"] != wanted:
        return -1
    return wanted


@contextmanager
def busy(url: str, clients: int = 2) -> Iterator[None]:
    """Keep the CPU at work until the block ends."""
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                chat(url, "Tell me a long story.", max_tokens=64, timeout=120)
            except httpx.HTTPError:
                over.wait(1)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(timeout=130)


def spec_writers(kubectl: Kubectl, name: str) -> dict[str, set[str]]:
    """Who owns each field of the spec."""
    resource = kubectl.json("get", "--show-managed-fields", KIND, name)
    writers: dict[str, set[str]] = {}
    for entry in resource["metadata"]["managedFields"]:
        for field in entry["fieldsV1"].get("f:spec", {}):
            writers.setdefault(field.removeprefix("f:"), set()).add(entry["manager"])
    return writers


def writes(audit_log: Path, namespace: str, name: str) -> list[dict[str, Any]]:
    """The writes to an LLMDeployment, by whomever."""
    with audit_log.open() as lines:
        events = [json.loads(line) for line in lines if namespace in line]
    return [
        event
        for event in events
        if event["verb"] in WRITE_VERBS
        and event["stage"] == "ResponseComplete"
        and event["objectRef"].get("resource") == "llmdeployments"
        and event["objectRef"].get("name") == name
    ]


def test_a_metric_that_nobody_serves_is_told_in_the_autoscalers_words(kubectl: Kubectl):
    bounds = {"maxReplicas": 3, "metric": {"type": "runningRequests", "target": 4}}
    kubectl.apply(scaled("unmeasured", bounds, **NOWHERE))
    seen: set[str] = set()

    def told() -> dict[str, Any]:
        seen.add(autoscaled(kubectl, "unmeasured").get("reason", ""))
        return failing(kubectl, "unmeasured", "FailedGetPodsMetric")

    said = eventually(told, within=60)
    assert "vllm_num_requests_running" in said["message"]
    # At its first look the autoscaler may not find the pods: the second mends that.
    assert seen <= {"", "NotReported", "FailedGetPodsMetric"}
    hpa = condition(kubectl.json("get", "hpa", "unmeasured"), "ScalingActive")
    assert hpa["message"] == said["message"]
    assert kubectl.json("get", KIND, "unmeasured")["spec"]["replicas"] == 1


def failing(kubectl: Kubectl, name: str, reason: str) -> dict[str, Any]:
    said = autoscaled(kubectl, name)
    assert (said.get("status"), said.get("reason")) == ("False", reason), said
    return said


@pytest.fixture
def without_crds() -> Iterator[Any]:
    """A cluster without KEDA and Prometheus Operator; turns the CRDs of either on."""
    for project in ("keda", "prometheus"):
        dev_cluster("crds", project, "off")
    yield lambda project: dev_cluster("crds", project, "on")
    for project in ("keda", "prometheus"):
        dev_cluster("crds", project, "off")


def test_a_kind_that_is_installed_later_is_taken_up(without_crds: Any, kubectl: Kubectl):
    monitoring = {"enabled": True, "labels": {"release": "prometheus"}}
    bounds = {"maxReplicas": 3, "metric": PROMETHEUS}
    kubectl.apply(scaled("queried", bounds, monitoring=monitoring))
    kubectl.wait_ready("queried")
    assert "keda.sh/v1alpha1" in stalled(kubectl, "KindNotServed")["message"]
    assert "install KEDA" in ready(kubectl, "queried")["message"]
    assert first_answer(kubectl.service_url("queried"))

    without_crds("keda")
    eventually(lambda: kubectl.exists("scaledobject", "queried"), within=90)
    spec = kubectl.json("get", "scaledobject", "queried")["spec"]
    assert spec["scaleTargetRef"] == {
        "apiVersion": "llm-operator.dev/v1alpha1",
        "kind": "LLMDeployment",
        "name": "queried",
    }
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, 3)
    (trigger,) = spec["triggers"]
    assert trigger["metadata"]["query"] == PROMETHEUS["query"]
    assert trigger["metadata"]["threshold"] == "4"
    eventually(
        lambda: "monitoring.coreos.com" in stalled(kubectl, "KindNotServed")["message"], within=20
    )

    # Once the new kind is noticed it is looked after like every other, and its status passed on.
    kubectl(
        "patch", "scaledobject", "queried", "--type=merge", "-p", '{"spec":{"maxReplicaCount":9}}'
    )
    eventually(lambda: most(kubectl) == 3, within=45)
    said = {"type": "Ready", "status": "True", "reason": "ScaledObjectReady", "message": "it is"}
    kubectl(
        "patch", "scaledobject", "queried", "--type=merge", "--subresource=status",
        "-p", json.dumps({"status": {"conditions": [said]}}),
    )  # fmt: skip
    eventually(
        lambda: autoscaled(kubectl, "queried").get("reason") == "ScaledObjectReady", within=10
    )

    without_crds("prometheus")
    eventually(lambda: kubectl.exists("podmonitor", "queried"), within=90)
    monitor = kubectl.json("get", "podmonitor", "queried")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    (pod,) = kubectl.pods_of("queried")
    selector = monitor["spec"]["selector"]["matchLabels"]
    assert selector.items() <= pod["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (container,) = pod["spec"]["containers"]
    assert endpoint["port"] in {port["name"] for port in container["ports"]}
    eventually(lambda: not condition(kubectl.json("get", KIND, "queried"), "Stalled"), within=20)


def most(kubectl: Kubectl) -> int:
    count: int = kubectl.json("get", "scaledobject", "queried")["spec"]["maxReplicaCount"]
    return count


def stalled(kubectl: Kubectl, reason: str) -> dict[str, Any]:
    found = condition(kubectl.json("get", KIND, "queried"), "Stalled")
    assert found.get("reason") == reason, found
    return found
