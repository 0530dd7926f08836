"""The chart as installed: its own test passes, and the operator may do what it must and no more."""

from __future__ import annotations

import subprocess

import pytest

from dev.cluster import tools
from tests.e2e.harness import OPERATOR_NAMESPACE, OPERATOR_USER, CommandError, Kubectl


def test_the_charts_own_test_passes(operator: Kubectl):
    command = [
        *(str(tools.path("helm")), "test", "llm-operator", f"--namespace={operator.namespace}"),
        *(f"--kubeconfig={operator.kubeconfig}", "--timeout=120s"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Succeeded" in done.stdout


HERE = f"--namespace={OPERATOR_NAMESPACE}"


def may(operator: Kubectl, verb: str, resource: str, *where: str) -> bool:
    scope = where or ("-A",)
    try:
        answer = operator("auth", "can-i", verb, resource, f"--as={OPERATOR_USER}", *scope)
    except CommandError as refusal:
        answer = str(refusal)
    return answer.strip() == "yes"


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("list", "llmdeployments.llm-operator.dev"),
        ("patch", "deployments.apps"),
        ("patch", "services"),
        ("delete", "networkpolicies.networking.k8s.io"),
        ("create", "poddisruptionbudgets.policy"),
        ("patch", "horizontalpodautoscalers.autoscaling"),
        ("watch", "pods"),
        ("watch", "secrets"),
        ("get", "persistentvolumeclaims"),
        ("create", "events"),
    ],
)
def test_the_operator_may_do_its_work(operator: Kubectl, verb: str, resource: str):
    assert may(operator, verb, resource)


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("create", "secrets"),
        ("patch", "configmaps"),
        ("create", "pods"),
        ("update", "leases.coordination.k8s.io"),
        ("create", "pods/exec"),
        ("patch", "nodes"),
        ("create", "clusterrolebindings.rbac.authorization.k8s.io"),
        ("patch", "customresourcedefinitions.apiextensions.k8s.io"),
        ("delete", "llmdeployments.llm-operator.dev"),
    ],
)
def test_the_operator_may_do_no_more(operator: Kubectl, verb: str, resource: str):
    assert not may(operator, verb, resource)


def test_the_operator_may_keep_its_own_lease_alone(operator: Kubectl):
    assert may(operator, "update", "leases.coordination.k8s.io/llm-operator", HERE)
    assert not may(operator, "update", "leases.coordination.k8s.io/other", HERE)
    assert not may(operator, "delete", "leases.coordination.k8s.io/llm-operator", HERE)
    lease = operator.json("get", "lease", "llm-operator")["spec"]
    pods = {pod["metadata"]["name"] for pod in operator.items("pods")}
    assert lease["holderIdentity"].partition("_")[0] in pods
