"""The API server and its store gone for a while, or slow, for everybody in the cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dev.cluster import lifecycle
from tests.e2e.conftest import dev_cluster
from tests.e2e.faults.convergence import Serving, assert_converged, fake
from tests.e2e.faults.operator_process import OperatorProcess
from tests.e2e.harness import Kubectl, eventually, llm_deployment, steady_traffic

MANY = [f"model-{number:02}" for number in range(20)]
CHANGING, STANDING = MANY[:12], MANY[12:]

OUTAGE_SECONDS = 60
BURSTS = 12


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
    real = llm_deployment("real", target="cpu")
    kubectl.apply(real, *(fake(name) for name in MANY))
    kubectl.wait_ready("real", timeout=120)
    eventually(lambda: assert_converged(kubectl, [*MANY, "real"]), within=60)
    serving = Serving.now(kubectl, [*STANDING, "real"])
    url = kubectl.service_url("real")
    # It has work under way when the API server goes.
    kubectl.apply(*(fake(name, 1) for name in CHANGING))
    with steady_traffic(url, clients=1, pause=1) as traffic:
        dev_cluster("stop", "apiserver")
        try:
            time.sleep(OUTAGE_SECONDS)
        finally:
            dev_cluster("start", "apiserver")
        eventually(lambda: kubectl.apply(*(fake(name, 2) for name in CHANGING)), within=30)
        eventually(lambda: assert_converged(kubectl, [*MANY, "real"]), within=90)
    assert traffic.failures == []
    assert traffic.answered > OUTAGE_SECONDS / 4
    assert Serving.now(kubectl, [*STANDING, "real"]) == serving
