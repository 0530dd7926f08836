"""How Flux, Argo CD, Helm and kpt read an LLMDeployment and what is made of it: by kstatus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dev.cluster import checks
from tests.e2e.harness import (
    KIND,
    ON_FAKE_NODES,
    Kubectl,
    eventually,
    llm_deployment,
)
from tests.e2e.verdicts import watched

CHILDREN = "deployments,services,networkpolicies,poddisruptionbudgets"


def fake(**spec: Any) -> dict[str, Any]:
    return llm_deployment("judged", target="cpu", **ON_FAKE_NODES, **spec)


def test_work_in_progress_is_never_called_done_or_failed(
    kubectl: Kubectl, fake_nodes: None, tmp_path: Path
):
    with watched(kubectl, "judged", tmp_path / "states") as seen:
        kubectl.apply(fake(replicas=2))
        eventually(lambda: seen()[-1:] == ["Current"], within=60)
        assert seen() == ["InProgress", "Current"]
        for child in kubectl.items(CHILDREN, "-l", "app.kubernetes.io/instance=judged"):
            assert checks.status(child)["status"] == "Current", child["kind"]

        kubectl.apply(fake(replicas=2, server={"logLevel": "debug"}))
        eventually(lambda: len(seen()) == 4, within=60)
        # Nobody may take what was true before the change for its success.
        assert seen() == ["InProgress", "Current"] * 2

        kubectl("delete", KIND, "judged", "--cascade=foreground")
        eventually(lambda: len(seen()) > 4, within=60)
        assert seen()[4:] == ["Terminating"]


def test_a_change_before_the_operator_saw_it_is_in_progress(kubectl: Kubectl, fake_nodes: None):
    kubectl.apply(fake())
    kubectl.wait_ready("judged", timeout=60)
    resource = kubectl.json("get", KIND, "judged")
    assert checks.status(resource)["status"] == "Current"
    resource["metadata"]["generation"] += 1  # as the API server does before anybody else acts
    verdict = checks.status(resource)
    assert verdict["status"] == "InProgress"
    assert "generation" in verdict["message"]


@pytest.mark.parametrize("stopped", [{"suspend": True}, {"replicas": 0}])
def test_what_was_stopped_does_not_serve(kubectl: Kubectl, stopped: dict[str, Any]):
    """Ready says that somebody is served. Whoever waits for it has to wait while nobody is."""
    kubectl.apply(fake(**stopped))
    kubectl(
        "wait", "--for=jsonpath={.status.observedGeneration}=1", f"{KIND}/judged", "--timeout=30s"
    )
    resource = kubectl.json("get", KIND, "judged")
    assert checks.status(resource)["status"] == "InProgress"
    conditions = {each["type"]: each["status"] for each in resource["status"]["conditions"]}
    assert conditions == {"Ready": "False"}
