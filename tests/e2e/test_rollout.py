"""Pods are replaced without a lost request, and never wait for what their predecessors hold."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from dev.cluster.network import NODE_NAME
from tests.e2e import traffic
from tests.e2e.conftest import dev_cluster
from tests.e2e.harness import KIND, Kubectl, condition, eventually, llm_deployment

# Streams of the traffic have to end by themselves, also where many share two cores.
PATIENT = {"drainSeconds": 60}
CPU_IMAGE = "localhost/llm-inference:smollm2-cpu"


def status(kubectl: Kubectl, name: str) -> dict[str, Any]:
    found: dict[str, Any] = kubectl.json("get", KIND, name).get("status", {})
    return found


def replaced(kubectl: Kubectl, name: str, old: list[dict[str, Any]], replicas: int = 1) -> bool:
    """Whether nothing is left of the pods `old` and as many as wanted serve in their place."""
    gone = {pod["metadata"]["uid"] for pod in old}
    there = kubectl.items("pods", "-l", f"app.kubernetes.io/instance={name}")
    now = status(kubectl, name)
    counts = now.get("updatedReplicas"), now.get("readyReplicas"), len(there)
    assert not gone & {pod["metadata"]["uid"] for pod in there}
    assert counts == (replicas, replicas, replicas), counts
    return True


@pytest.mark.exclusive
def test_a_rollout_on_cpu_loses_no_request_and_no_stream(kubectl: Kubectl):
    kubectl.apply(llm_deployment("rolled", target="cpu", server=PATIENT))
    kubectl.wait_ready("rolled")
    old = kubectl.pods_of("rolled")
    with traffic.steady(kubectl.service_url("rolled")) as clients:
        clients.streaming_now()
        changed = {**PATIENT, "logLevel": "warning"}
        kubectl.apply(llm_deployment("rolled", target="cpu", server=changed))
        eventually(lambda: replaced(kubectl, "rolled", old), within=240)
        clients.more()
    assert clients.failures == []


@pytest.mark.exclusive
def test_neither_a_drained_node_nor_fewer_replicas_lose_a_request(kubectl: Kubectl):
    kubectl.apply(llm_deployment("kept", target="cpu", replicas=2, server=PATIENT))
    eventually(lambda: status(kubectl, "kept").get("readyReplicas") == 2, within=240)
    budget = kubectl.json("get", "poddisruptionbudget", "kept")
    assert budget["spec"]["maxUnavailable"] == 1
    old = kubectl.pods_of("kept")
    with traffic.steady(kubectl.service_url("kept")) as clients:
        clients.streaming_now()
        with draining(kubectl, NODE_NAME, "app.kubernetes.io/instance=kept") as drain:
            assert drain.wait(timeout=300) == 0
        eventually(lambda: replaced(kubectl, "kept", old, replicas=2), within=120)
        clients.more()
        assert clients.failures == [], "while the node was drained"

        clients.streaming_now()
        kubectl("scale", "llmdeployment/kept", "--replicas=1")
        eventually(lambda: len(kubectl.items("pods")) == 1, within=120)
        clients.more()
    assert clients.failures == [], "while there were fewer replicas"
    assert not kubectl.exists("poddisruptionbudget", "kept"), "one pod must not hold up a drain"


@contextmanager
def draining(kubectl: Kubectl, node: str, selector: str) -> Iterator[subprocess.Popen[bytes]]:
    """Drain the node of the pods of `selector` alone, and let pods come back at once."""
    command = [
        kubectl.binary, f"--kubeconfig={kubectl.kubeconfig}", "drain", node,
        f"--pod-selector={selector}", "--delete-emptydir-data", "--timeout=300s",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as drain:
        try:
            # The node is the only one: what is evicted can come back nowhere else.
            eventually(
                lambda: kubectl.json("get", "node", node)["spec"].get("unschedulable"), within=20
            )
            kubectl("uncordon", node)
            yield drain
        finally:
            drain.kill()
            kubectl("uncordon", node)


def on_gpu(name: str, **spec: Any) -> dict[str, Any]:
    """An LLMDeployment that asks for a GPU; no device is behind it, so the cpu image does."""
    return llm_deployment(name, target="gpu", image={"gpu": CPU_IMAGE}, **spec)


@pytest.fixture
def gpus() -> Iterator[Any]:
    """Sets the number of GPUs of the real node."""
    yield lambda count: dev_cluster("gpu", "--count", str(count))
    dev_cluster("gpu", "--count", "0")


def surge(kubectl: Kubectl, name: str) -> int:
    update = kubectl.json("get", "deployment", name)["spec"]["strategy"]["rollingUpdate"]
    surge_: int = update["maxSurge"]
    return surge_


class Watched:
    """What a watch tells of some objects, a line for each change: none is too short to be seen."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self) -> list[str]:
        """The changes so far; those that look the same as the one before left out."""
        return [line for line, _ in groupby(self._path.read_text().splitlines())]


@contextmanager
def watched(kubectl: Kubectl, folder: Path, kind: str, fields: str) -> Iterator[Watched]:
    """Watch the objects of a kind; `fields` are JSONPath expressions."""
    path = folder / f"{kind}-{time.monotonic()}.watch"
    command = [
        kubectl.binary, f"--kubeconfig={kubectl.kubeconfig}", "-n", kubectl.namespace,
        "get", kind, "--watch", "-o", f'jsonpath={fields}{{"\\n"}}',
    ]  # fmt: skip
    with path.open("wb") as output, subprocess.Popen(command, stdout=output) as watch:
        try:
            eventually(lambda: path.stat().st_size, within=20)
            yield Watched(path)
        finally:
            watch.terminate()


@contextmanager
def surges_of(kubectl: Kubectl, folder: Path) -> Iterator[Watched]:
    """How many pods the one Deployment lets surge."""
    fields = "{.spec.strategy.rollingUpdate.maxSurge}"
    with watched(kubectl, folder, "deployments", fields) as found:
        yield found


def go_over(kubectl: Kubectl, name: str, **spec: Any) -> None:
    """Change the spec and wait until new pods have taken the place of the old ones."""
    old = kubectl.pods_of(name)
    kubectl.apply(on_gpu(name, **spec))
    eventually(lambda: replaced(kubectl, name, old), within=240)


def is_ready(pod: dict[str, Any]) -> bool:
    return condition(pod, "Ready").get("status") == "True"


def test_the_last_gpu_passes_from_the_old_pod_to_the_new(
    kubectl: Kubectl, gpus: Any, tmp_path: Path
):
    gpus(1)
    kubectl.apply(on_gpu("last"))
    kubectl.wait_ready("last")
    with surges_of(kubectl, tmp_path) as surges:
        go_over(kubectl, "last", server={"logLevel": "warning"})
        # First it tries to keep the old pod; afterwards it would again.
        eventually(lambda: surges.lines() == ["1", "0", "1"], within=20)
    kubectl.wait_ready("last", timeout=20)
    assert "Paris" in traffic.first_answer(
        kubectl.service_url("last"), "What is the capital of France?"
    )

    old = kubectl.pods_of("last")
    kubectl("rollout", "restart", "deployment/last")
    eventually(lambda: replaced(kubectl, "last", old), within=240)

    # A GPU more than the node has: the end of the old pod would not bring it.
    (old,) = kubectl.pods_of("last")
    with surges_of(kubectl, tmp_path) as surges:
        kubectl.apply(on_gpu("last", gpu={"count": 2}))
        ready = eventually(lambda: unschedulable(kubectl, "last"), within=60)
        assert "Insufficient nvidia.com/gpu" in ready["message"]
        assert "1 pod of the previous generation serve" in ready["message"]
        time.sleep(3)
        assert is_ready(kubectl.json("get", "pod", old["metadata"]["name"]))
        assert surges.lines() == ["1"]
        gpus(2)
        eventually(lambda: surges.lines() == ["1", "0", "1"], within=120)
        eventually(lambda: replaced(kubectl, "last", [old]), within=240)


def unschedulable(kubectl: Kubectl, name: str) -> dict[str, Any]:
    ready = condition(kubectl.json("get", KIND, name), "Ready")
    assert ready.get("reason") == "Unschedulable", ready
    return ready


def test_with_a_gpu_to_spare_the_old_pod_serves_until_the_new_one_does(
    kubectl: Kubectl, gpus: Any, tmp_path: Path
):
    gpus(2)
    kubectl.apply(on_gpu("spared"))
    kubectl.wait_ready("spared")
    (old,) = kubectl.pods_of("spared")
    condition_ = "{.status.conditions[?(@.type=='Ready')].status}"
    fields = f"{{.metadata.name}} {condition_} {{.metadata.deletionTimestamp}}"
    with (
        surges_of(kubectl, tmp_path) as surges,
        watched(kubectl, tmp_path, "pods", fields) as pods,
    ):
        go_over(kubectl, "spared", server={"logLevel": "warning"})
        assert surges.lines() == ["1"]
    (new,) = kubectl.pods_of("spared")
    seen = [line.split(" ") for line in pods.lines()]
    serves = seen.index([new["metadata"]["name"], "True", ""])
    stops = next(
        at for at, line in enumerate(seen) if line[0] == old["metadata"]["name"] and line[2]
    )
    assert serves < stops

    # The same two GPUs, but a quota that gives the namespace one of them.
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "gpus"},
        "spec": {"hard": {"requests.nvidia.com/gpu": "1"}},
    }
    kubectl.apply(quota)
    with surges_of(kubectl, tmp_path) as surges:
        go_over(kubectl, "spared", server={"logLevel": "error"})
        eventually(lambda: surges.lines() == ["1", "0", "1"], within=20)


def test_pods_on_cpu_serve_until_there_is_a_gpu(kubectl: Kubectl, gpus: Any):
    image = {"cpu": CPU_IMAGE, "gpu": CPU_IMAGE}
    kubectl.apply(llm_deployment("moved", target="cpu", image=image))
    kubectl.wait_ready("moved")
    (old,) = kubectl.pods_of("moved")
    gpus(1)
    holder = on_gpu("holder")
    kubectl.apply(holder)
    eventually(lambda: kubectl.pods_of("holder")[0]["spec"].get("nodeName"), within=60)

    kubectl.apply(llm_deployment("moved", target="gpu", image=image))
    ready = eventually(lambda: unschedulable(kubectl, "moved"), within=60)
    assert "1 pod of the previous generation serve" in ready["message"]
    time.sleep(3)
    assert surge(kubectl, "moved") == 1
    assert is_ready(kubectl.json("get", "pod", old["metadata"]["name"]))
