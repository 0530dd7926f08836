"""The operator may die at any instant, and is silent when there is nothing to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from dev.cluster import paths, tools
from tests.e2e.harness import (
    KIND,
    ON_FAKE_NODES,
    OPERATOR_USER,
    WRITE_VERBS,
    Kubectl,
    condition,
    eventually,
    llm_deployment,
)

pytestmark = pytest.mark.exclusive

MANY = [f"model-{number:02}" for number in range(20)]


def everything_is_there(kubectl: Kubectl) -> bool:
    resources = {item["metadata"]["name"]: item for item in kubectl.items(KIND)}
    deployments = {item["metadata"]["name"] for item in kubectl.items("deployments")}
    services = {item["metadata"]["name"] for item in kubectl.items("services")}
    assert set(resources) == deployments == services == set(MANY)
    waiting = [n for n, r in resources.items() if condition(r, "Ready").get("status") != "True"]
    assert waiting == []
    return True


def test_killed_in_the_middle_of_a_reconcile_it_converges(
    kubectl: Kubectl, operator: Kubectl, fake_nodes: None
):
    restarts = restart_count(operator)
    manifests = [llm_deployment(name, target="cpu", **ON_FAKE_NODES) for name in MANY]
    applying = threading.Thread(target=kubectl.apply, args=manifests)
    applying.start()
    # The first child is there, the last cannot be: the operator is at work.
    eventually(lambda: kubectl.items("deployments"), within=30, every=0.01)
    kill_operator(operator)
    applying.join()
    assert len(kubectl.items("services")) < len(MANY), "it was done before it was killed"
    eventually(lambda: restart_count(operator) > restarts, within=60)
    eventually(lambda: everything_is_there(kubectl), within=90)


def operator_pod(operator: Kubectl) -> dict:
    (pod,) = operator.items("pods", "-l", "app.kubernetes.io/name=llm-operator")
    return pod


def restart_count(operator: Kubectl) -> int:
    count: int = operator_pod(operator)["status"]["containerStatuses"][0]["restartCount"]
    return count


def kill_operator(operator: Kubectl) -> None:
    status = operator_pod(operator)["status"]["containerStatuses"][0]
    container = status["containerID"].removeprefix("containerd://")
    listed = subprocess.run(
        [
            str(tools.path("ctr")),
            f"--address={paths.CONTAINERD_SOCKET}",
            "--namespace=k8s.io",
            "tasks",
            "list",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    (pid,) = [int(row.split()[1]) for row in listed.stdout.splitlines() if container in row]
    os.kill(pid, signal.SIGKILL)


def test_a_restarted_operator_changes_nothing(
    kubectl: Kubectl, operator: Kubectl, fake_nodes: None
):
    kubectl.apply(*(llm_deployment(name, target="cpu", **ON_FAKE_NODES) for name in MANY))
    eventually(lambda: everything_is_there(kubectl), within=90)
    before = settled_versions(kubectl)
    operator("rollout", "restart", "deployment/llm-operator")
    operator("rollout", "status", "deployment/llm-operator", "--timeout=60s")
    time.sleep(15)
    assert versions(kubectl) == before


def settled_versions(kubectl: Kubectl) -> dict[str, str]:
    """The versions once Kubernetes' own controllers have written their last word."""

    def unchanged() -> dict[str, str]:
        before = versions(kubectl)
        time.sleep(5)
        after = versions(kubectl)
        assert after == before
        return after

    return eventually(unchanged, within=60)


def versions(kubectl: Kubectl) -> dict[str, str]:
    """What changes with every write, whoever writes."""
    listed = kubectl.items(f"{KIND},deployments,services,pods")
    return {
        f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["resourceVersion"]
        for item in listed
    }


def test_an_idle_operator_writes_nothing(kubectl: Kubectl, fake_nodes: None, audit_log: Path):
    kubectl.apply(*(llm_deployment(name, target="cpu", **ON_FAKE_NODES) for name in MANY))
    eventually(lambda: everything_is_there(kubectl), within=90)
    writes = operator_writes(audit_log)
    assert writes, "the audit log shows no write of the operator: nothing could be proven"
    eventually(lambda: settled(audit_log), within=60)
    before = len(operator_writes(audit_log))
    time.sleep(30)
    assert operator_writes(audit_log)[before:] == []


def settled(audit_log: Path) -> bool:
    before = len(operator_writes(audit_log))
    time.sleep(5)
    return len(operator_writes(audit_log)) == before


def operator_writes(audit_log: Path) -> list[str]:
    """What the operator wrote, but the Lease by which it leads: that is renewed for ever."""
    with audit_log.open() as lines:
        events = [json.loads(line) for line in lines if OPERATOR_USER in line]
    return [
        f"{event['verb']} {event['requestURI']}"
        for event in events
        if event["verb"] in WRITE_VERBS
        and event["stage"] == "ResponseComplete"
        and event["objectRef"]["resource"] != "leases"
    ]
