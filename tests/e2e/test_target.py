"""Which hardware a model lands on, and that a choice once made stands."""

from __future__ import annotations

import json

from tests.e2e.harness import KIND, Kubectl, condition, eventually, llm_deployment


def status(kubectl: Kubectl, name: str) -> dict:
    return kubectl.json("get", KIND, name).get("status", {})


def test_auto_takes_the_cpu_then_a_gpu_once_a_node_has_one_and_moves_nobody(
    kubectl: Kubectl, request
):
    kubectl.apply(llm_deployment("first", target="auto"))
    kubectl.wait_ready("first")
    assert status(kubectl, "first")["target"] == "cpu"
    assert "nvidia.com/gpu" in status(kubectl, "first")["targetReason"]
    (before,) = kubectl.pods_of("first")

    node = request.getfixturevalue("gpu_node")
    kubectl.apply(llm_deployment("second", target="auto"))
    kubectl.wait_ready("second")
    chosen = status(kubectl, "second")
    assert chosen["target"] == "gpu"
    assert node in chosen["targetReason"]

    (pod,) = kubectl.pods_of("second")
    (container,) = pod["spec"]["containers"]
    assert container["image"].endswith("-gpu")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["spec"]["nodeName"] == node
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["spec"][
        "tolerations"
    ]
    selector = pod["spec"].get("nodeSelector", {}) | affinity_keys(pod)
    assert any(key.startswith("nvidia.com/gpu") for key in selector), pod["spec"]

    # There is no device behind the resource: the server must say what it really runs on.
    started = json.loads(kubectl("get", "--raw", proxied(kubectl, pod, "startupz")))
    assert started["device"]["type"] == "cpu"
    metrics = kubectl("get", "--raw", proxied(kubectl, pod, "metrics"))
    (device,) = [line for line in metrics.splitlines() if line.startswith("llm_device_info")]
    assert 'device="cpu"' in device

    (after,) = kubectl.pods_of("first")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0
    assert status(kubectl, "first")["target"] == "cpu"


def affinity_keys(pod: dict) -> dict:
    required = (
        pod["spec"]
        .get("affinity", {})
        .get("nodeAffinity", {})
        .get("requiredDuringSchedulingIgnoredDuringExecution", {})
    )
    terms = required.get("nodeSelectorTerms", [])
    return {e["key"]: e for term in terms for e in term.get("matchExpressions", [])}


def proxied(kubectl: Kubectl, pod: dict, path: str) -> str:
    return (
        f"/api/v1/namespaces/{kubectl.namespace}/pods/{pod['metadata']['name']}:8080/proxy/{path}"
    )


def test_a_gpu_that_no_node_has_is_unschedulable_in_the_schedulers_words(kubectl: Kubectl):
    kubectl.apply(llm_deployment("wanting", target="gpu"))

    def unschedulable() -> bool:
        ready = condition(kubectl.json("get", KIND, "wanting"), "Ready")
        return (ready.get("status"), ready.get("reason")) == ("False", "Unschedulable")

    eventually(unschedulable, within=60)
    (pod,) = kubectl.pods_of("wanting")
    scheduled = condition(pod, "PodScheduled")
    message = condition(kubectl.json("get", KIND, "wanting"), "Ready")["message"]
    assert (
        "Insufficient nvidia.com/gpu" in scheduled["message"]
        or "selector" in (scheduled["message"])
    )
    assert scheduled["message"] in message
