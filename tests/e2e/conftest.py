"""The cluster, the installed operator and a namespace of its own for each test."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dev.cluster import paths, tools
from tests.e2e.harness import KIND, OPERATOR_NAMESPACE, Kubectl, eventually

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster() -> Kubectl:
    """The development cluster, which ``make test-e2e`` brings up."""
    kubeconfig = paths.KUBECONFIG
    assert kubeconfig.exists(), "no cluster: run `make up` first"
    return Kubectl(str(tools.path("kubectl")), kubeconfig)


@pytest.fixture(scope="session")
def operator(cluster: Kubectl) -> Kubectl:
    """kubectl in the operator's namespace, with the chart installed from this checkout."""
    helm = [
        str(tools.path("helm")), "upgrade", "--install", "llm-operator",
        str(ROOT / "deploy/helm/llm-operator"), f"--kubeconfig={cluster.kubeconfig}",
        f"--namespace={OPERATOR_NAMESPACE}", "--create-namespace",
        f"--values={ROOT / 'dev/demo/values.yaml'}", "--wait", "--timeout=120s",
    ]  # fmt: skip
    done = subprocess.run(helm, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return Kubectl(cluster.binary, cluster.kubeconfig, OPERATOR_NAMESPACE)


@pytest.fixture
def kubectl(cluster: Kubectl, operator: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a fresh namespace that enforces Pod Security ``restricted``."""
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    namespace: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
        },
    }
    cluster("apply", "-f", "-", stdin=json.dumps(namespace))
    inside = Kubectl(cluster.binary, cluster.kubeconfig, name)
    yield inside
    # The next test gets the two cores for itself: wait until no pod is left here.
    inside("delete", KIND, "--all", "--wait=false")
    cluster("delete", "namespace", name, "--wait=false")
    eventually(lambda: not inside.items("pods"), within=90)


@pytest.fixture(scope="session")
def node(cluster: Kubectl) -> str:
    """The real node's name."""
    nodes = cluster.items("nodes", "-l", "type!=kwok")
    assert len(nodes) == 1
    name: str = nodes[0]["metadata"]["name"]
    return name


def dev_cluster(*arguments: str) -> None:
    """Run a command of the development cluster."""
    command = ["python3", "-m", "dev.cluster", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def gpu_node(node: str) -> Iterator[str]:
    """The real node, with two GPUs as the scheduler sees it (no device behind them)."""
    dev_cluster("gpu", "--node", node, "--count", "2", "--product", "NVIDIA-H100-80GB-HBM3")
    yield node
    dev_cluster("gpu", "--node", node, "--count", "0")


@pytest.fixture(scope="session")
def fake_nodes() -> Iterator[None]:
    """Two nodes whose pods are Ready without a process behind them."""
    dev_cluster("fake-nodes", "2")
    yield
    dev_cluster("fake-nodes", "0")


@pytest.fixture(scope="session")
def audit_log() -> Path:
    """The API server's record of writes: one JSON object a line."""
    return paths.LOGS / "audit.log"
