"""Has the operator that the chart installs for all namespaces rest for a while.

Two operators in one namespace would do the same work twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.harness import OPERATOR_NAMESPACE, Kubectl, eventually


@contextmanager
def alone(cluster: Kubectl) -> Iterator[None]:
    """Scale it to nothing and back; does nothing where none is installed."""
    installed = Kubectl(cluster.binary, cluster.kubeconfig, OPERATOR_NAMESPACE)
    if not installed.exists("deployment", "llm-operator"):
        yield
        return
    replicas = installed.json("get", "deployment", "llm-operator")["spec"]["replicas"]
    scale = ("scale", "deployment/llm-operator")
    installed(*scale, "--replicas=0")
    eventually(
        lambda: not installed.items("pods", "-l", "app.kubernetes.io/component=operator"),
        within=60,
    )
    try:
        yield
    finally:
        installed(*scale, f"--replicas={replicas}")
        installed("rollout", "status", "deployment/llm-operator", "--timeout=60s")
