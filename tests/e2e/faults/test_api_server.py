"""The API server and its store gone for a while, or slow, for everybody in the cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dev.cluster import lifecycle
from tests.e2e.conftest import dev_cluster
from tests.e2e.faults.convergence import MANAGED, Serving, assert_converged, fake
from tests.e2e.faults.operator_process import OperatorProcess
from tests.e2e.harness import Kubectl, chat, condition, eventually, llm_deployment, steady_traffic

MANY = [f"model-{number:02}" for number in range(12)]
CHANGING, STANDING = MANY[:8], MANY[8:]

OUTAGE_SECONDS = 60
BURSTS = 9


@pytest.fixture(autouse=True)
def _healthy_after_all() -> Iterator[None]:
    """Whatever happens, others find the cluster as it was."""
    yield
    dev_cluster("resume", "etcd")
    dev_cluster("start", "apiserver")
    eventually(lifecycle.status, within=90)


@contextmanager
def paused(component: str) -> Iterator[None]:
    dev_cluster("pause", component)
    try:
        yield
    finally:
        dev_cluster("resume", component)


def test_a_slow_store(kubectl: Kubectl, operator: OperatorProcess, fake_nodes: None):
    kubectl.apply(*(fake(name) for name in MANY))
    eventually(lambda: assert_converged(kubectl, MANY), within=60)
    serving = Serving.now(kubectl, STANDING)
    for mark in range(1, BURSTS + 1):
        with paused("etcd"):
            time.sleep(0.8)
        if mark % 3 == 0:
            kubectl.apply(*(fake(name, mark) for name in CHANGING))
    eventually(lambda: assert_converged(kubectl, MANY), within=60)
    assert Serving.now(kubectl, STANDING) == serving


def test_the_api_server_is_away_for_a_minute(
    kubectl: Kubectl, operator: OperatorProcess, fake_nodes: None
):
    """The model serves on, and all that was changed before and after is made so.

    Once the API server is back, Kubernetes itself takes pods out of their Services until kubelets
    have spoken again: no promise is made of that moment.
    """
    kubectl.apply(llm_deployment("real", target="cpu"), *(fake(name) for name in MANY))
    kubectl.wait_ready("real", timeout=120)
    eventually(lambda: assert_converged(kubectl, [*MANY, "real"]), within=60)
    serving = Serving.now(kubectl, [*STANDING, "real"])
    url = kubectl.service_url("real")
    # It has work under way when the API server goes.
    kubectl.apply(*(fake(name, 1) for name in CHANGING))
    dev_cluster("stop", "apiserver")
    try:
        with steady_traffic(url, clients=1, pause=1) as traffic:
            time.sleep(OUTAGE_SECONDS)
    finally:
        dev_cluster("start", "apiserver")
    eventually(lambda: kubectl.apply(*(fake(name, 2) for name in CHANGING)), within=30)
    eventually(lambda: converged_again(kubectl), within=90)
    assert traffic.failures == []
    assert traffic.answered > OUTAGE_SECONDS / 4
    assert chat(url, "Say yes.", max_tokens=4)
    assert Serving.now(kubectl, [*STANDING, "real"]) == serving


def converged_again(kubectl: Kubectl) -> bool:
    """Whether all is well, once kubelets have said again that their pods are.

    After such a time Kubernetes counts every node as lost, and its pods as not ready. A kubelet
    tells again that they are; for those of fake nodes this does.
    """
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    for pod in kubectl.items("pods", "-l", MANAGED):
        fake_node = pod["spec"].get("nodeSelector", {}).get("type")
        if fake_node and condition(pod, "Ready").get("status") == "False":
            name = pod["metadata"]["name"]
            kubectl("patch", "pod", name, "--subresource=status", "-p", json.dumps(ready))
    return assert_converged(kubectl, [*MANY, "real"])
