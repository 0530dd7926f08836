"""Which hardware a model lands on, and that a choice once made stands."""

from __future__ import annotations

import json

from tests.e2e.harness import KIND, Kubectl, condition, eventually, llm_deployment

PRODUCT = "NVIDIA-H100-80GB-HBM3"
TOLERATES_GPU = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


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
    assert_on_gpu(pod, node)

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


def assert_on_gpu(pod: dict, node: str) -> None:
    (container,) = pod["spec"]["containers"]
    assert container["image"].endswith("-gpu")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["spec"]["nodeName"] == node
    assert TOLERATES_GPU in pod["spec"]["tolerations"]


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


def test_a_gpu_of_a_kind_is_selected_by_the_nodes_labels(kubectl: Kubectl, gpu_node: str):
    wanted = {"products": [PRODUCT], "minMemory": "79Gi"}
    kubectl.apply(llm_deployment("chosen", target="auto", gpu=wanted))
    (pod,) = eventually(lambda: scheduled(kubectl, "chosen"), within=30)
    assert_on_gpu(pod, gpu_node)
    required = pod["spec"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    (term,) = required["nodeSelectorTerms"]
    assert {"key": "nvidia.com/gpu.product", "operator": "In", "values": [PRODUCT]} in term[
        "matchExpressions"
    ]

    kubectl.apply(llm_deployment("absent", target="auto", gpu={"products": ["NVIDIA-A100"]}))
    eventually(
        lambda: (
            condition(kubectl.json("get", KIND, "absent"), "Ready").get("reason") == "Unschedulable"
        ),
        within=30,
    )


def scheduled(kubectl: Kubectl, name: str) -> list[dict]:
    return [pod for pod in kubectl.pods_of(name) if "nodeName" in pod["spec"]]
