"""A status over the life of a model: rollouts that get stuck, and Events when something is news."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

from dev.cluster import checks
from tests.e2e.harness import (
    KIND,
    ON_FAKE_NODES,
    Kubectl,
    condition,
    eventually,
    llm_deployment,
)
from tests.e2e.verdicts import watched

IMPOSSIBLE = {"requests": {"cpu": "4000"}}
CPU_IMAGE = "localhost/llm-inference:smollm2-cpu"


def get(kubectl: Kubectl, name: str) -> dict:
    return kubectl.json("get", KIND, name)


def ready(kubectl: Kubectl, name: str) -> tuple[str | None, str | None]:
    """Status and reason of Ready, once they speak of the spec as it is."""
    resource = get(kubectl, name)
    found = condition(resource, "Ready")
    assert found.get("observedGeneration") == resource["metadata"]["generation"]
    return found["status"], found["reason"]


def becomes(kubectl: Kubectl, name: str, *wanted: str, within: float = 60) -> None:
    def did() -> bool:
        found = ready(kubectl, name)
        assert found == wanted
        return True

    eventually(did, within=within)


def fake(name: str, **spec: object) -> dict:
    return llm_deployment(name, **({"target": "cpu"} | ON_FAKE_NODES | spec))


def age_the_rollout(kubectl: Kubectl, name: str) -> None:
    """Let the Deployment's last progress be a day ago: its controller says what that means."""
    live = kubectl.json("get", "deployment", name)
    for each in live["status"]["conditions"]:
        if each["type"] == "Progressing":
            long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
            each["lastUpdateTime"] = long_ago.strftime("%Y-%m-%dT%H:%M:%SZ")
    patch = json.dumps({"status": {"conditions": live["status"]["conditions"]}})
    kubectl("patch", "deployment", name, "--subresource=status", "--type=merge", f"--patch={patch}")


def stalled(kubectl: Kubectl, name: str) -> dict:
    """The object, once it is stalled."""
    resource = get(kubectl, name)
    assert condition(resource, "Stalled").get("status") == "True", resource["status"]
    assert not condition(resource, "Reconciling")
    assert checks.status(resource)["status"] == "Failed"
    return resource


def test_a_rollout_that_is_stuck_while_the_old_generation_serves(
    kubectl: Kubectl, fake_nodes: None, tmp_path: Path
):
    kubectl.apply(fake("stuck"))
    kubectl.wait_ready("stuck", timeout=60)
    kubectl.apply(fake("stuck", resources=IMPOSSIBLE))
    becomes(kubectl, "stuck", "False", "Unschedulable")

    resource = get(kubectl, "stuck")
    told = condition(resource, "Ready")["message"]
    assert "Insufficient cpu" in told
    assert "1 pod of the previous generation serve" in told
    assert resource["status"]["readyReplicas"] == 1
    assert checks.status(resource)["status"] == "InProgress"

    age_the_rollout(kubectl, "stuck")
    resource = eventually(lambda: stalled(kubectl, "stuck"), within=30)
    assert condition(resource, "Stalled")["reason"] == "Unschedulable"
    assert condition(resource, "Ready")["message"] == told

    with watched(kubectl, "stuck", tmp_path / "states") as seen:
        eventually(lambda: seen() == ["Failed"], within=30)
        kubectl.apply(fake("stuck", resources={"requests": {"cpu": "1"}}))
        eventually(lambda: seen()[-1] == "Current", within=60)
        # The new generation was never stuck, though the Deployment's status still says so at first.
        assert seen() == ["Failed", "InProgress", "Current"]


def test_replicas_that_find_no_place_are_told_while_others_serve(
    kubectl: Kubectl, fake_nodes: None
):
    # There is one node, and each pod wants one for itself.
    apart = {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {
                    "topologyKey": "kubernetes.io/hostname",
                    "labelSelector": {"matchLabels": {"app.kubernetes.io/instance": "crowded"}},
                }
            ]
        }
    }
    one_node = {"kubernetes.io/hostname": "fake-0"}
    kubectl.apply(fake("crowded", replicas=2, affinity=apart, nodeSelector=one_node))
    becomes(kubectl, "crowded", "True", "ModelServing")
    eventually(
        lambda: "anti-affinity" in condition(get(kubectl, "crowded"), "Ready")["message"], within=30
    )
    resource = get(kubectl, "crowded")
    assert condition(resource, "Ready")["message"].startswith("1 of 2 replicas serve")
    assert condition(resource, "Reconciling")["reason"] == "RolloutInProgress"

    age_the_rollout(kubectl, "crowded")
    resource = eventually(lambda: stalled(kubectl, "crowded"), within=30)
    assert condition(resource, "Ready")["status"] == "True", "one pod serves: that is the truth"
    assert condition(resource, "Stalled")["reason"] == "ProgressDeadlineExceeded"
    eventually(
        lambda: events_about(kubectl, "crowded")[-1] == ("Warning", "ProgressDeadlineExceeded"),
        within=10,
    )


def test_events_over_a_whole_life_are_one_for_each_news(kubectl: Kubectl, fake_nodes: None):
    kubectl.apply(fake("life"))
    becomes(kubectl, "life", "True", "ModelServing")
    kubectl.apply(fake("life", resources=IMPOSSIBLE))
    becomes(kubectl, "life", "False", "Unschedulable")
    kubectl.apply(fake("life"))
    becomes(kubectl, "life", "True", "ModelServing")
    kubectl.apply(fake("life", suspend=True))
    becomes(kubectl, "life", "False", "Suspended")
    kubectl.apply(fake("life", suspend=False))
    becomes(kubectl, "life", "True", "ModelServing")

    news = [
        ("Normal", "ModelServing"),
        ("Warning", "Unschedulable"),
        ("Normal", "ModelServing"),
        ("Normal", "Suspended"),
        ("Normal", "ModelServing"),
    ]
    eventually(lambda: len(events_about(kubectl, "life")) >= len(news), within=10)
    assert events_about(kubectl, "life") == news
    described = kubectl("describe", KIND, "life")
    assert "Insufficient cpu" in described.partition("Events:")[2]


def events_about(kubectl: Kubectl, name: str) -> list[tuple[str, str]]:
    """Type and reason of the Events about one LLMDeployment, in the order they were written."""
    fields = f"involvedObject.kind=LLMDeployment,involvedObject.name={name}"
    found = kubectl.items("events", f"--field-selector={fields}")
    assert all(event["count"] == 1 for event in found)
    found.sort(key=lambda event: int(event["metadata"]["resourceVersion"]))
    return [(event["type"], event["reason"]) for event in found]


def test_a_server_that_was_given_a_gpu_and_runs_on_cpu_is_found_out(
    kubectl: Kubectl, gpu_node: str
):
    kubectl.apply(llm_deployment("fallback", target="gpu", image={"gpu": CPU_IMAGE}))
    resource = eventually(lambda: accelerated(kubectl, "fallback", "Unknown"), within=30)
    assert condition(resource, "Accelerated")["reason"] == "NotReported"

    kubectl.wait_ready("fallback")
    resource = eventually(lambda: accelerated(kubectl, "fallback", "False"), within=60)
    told = condition(resource, "Accelerated")
    assert told["reason"] == "CPUFallback"
    assert "a GPU was asked for but the server runs on cpu" in told["message"]
    assert resource["status"]["target"] == "gpu"
    assert resource["status"]["device"]["type"] == "cpu"
    # It serves, and says how: whether that will do is for people to judge.
    assert condition(resource, "Ready")["status"] == "True"
    assert checks.status(resource)["status"] == "Current"
    eventually(
        lambda: ("Warning", "CPUFallback") in events_about(kubectl, "fallback"),
        within=10,
    )

    kubectl.apply(llm_deployment("fallback", target="cpu", replicas=0))
    eventually(lambda: not condition(get(kubectl, "fallback"), "Accelerated"), within=30)


def accelerated(kubectl: Kubectl, name: str, status: str) -> dict:
    """The object, once its condition Accelerated has this status."""
    resource = get(kubectl, name)
    assert condition(resource, "Accelerated").get("status") == status
    return resource
