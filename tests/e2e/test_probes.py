"""A loading model is left in peace, and no request meets a pod that cannot serve."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import httpx
import pytest

from tests.e2e.harness import (
    KIND,
    CommandError,
    Kubectl,
    chat,
    condition,
    eventually,
    llm_deployment,
    steady_traffic,
)

pytestmark = pytest.mark.exclusive


def parse(timestamp: str) -> datetime:
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00"))


def startupz(kubectl: Kubectl, pod: str) -> dict:
    path = f"/api/v1/namespaces/{kubectl.namespace}/pods/{pod}:8080/proxy/startupz"
    answer: dict = json.loads(kubectl("get", "--raw", path))
    return answer


def test_a_slow_load_is_not_killed_gets_no_traffic_and_is_ready_when_it_serves(kubectl: Kubectl):
    # A thirtieth of a core makes a real load take half a minute.
    slow = {"limits": {"cpu": "30m", "memory": "2Gi"}, "requests": {"cpu": "30m"}}
    probes = {"livenessPeriodSeconds": 2}
    kubectl.apply(llm_deployment("slow", target="cpu", resources=slow, probes=probes))
    pod = eventually(lambda: kubectl.pods_of("slow"), within=30)[0]["metadata"]["name"]
    eventually(
        lambda: (
            condition(kubectl.json("get", "pod", pod), "PodReadyToStartContainers").get("status")
            == "True"
        ),
        within=60,
    )

    url = kubectl.service_url("slow")
    with pytest.raises(httpx.HTTPError):
        chat(url, "Too early?", timeout=2)
    kubectl.wait_ready("slow", timeout=400)

    resource = kubectl.json("get", "pod", pod)
    (server,) = resource["status"]["containerStatuses"]
    assert server["restartCount"] == 0
    started = parse(server["state"]["running"]["startedAt"])
    ready = parse(condition(resource, "Ready")["lastTransitionTime"])
    report = startupz(kubectl, pod)
    phases = report["phases"]
    load = timedelta(seconds=sum(phases[name] for name in ("importing", "loading", "warming")))
    assert load > timedelta(seconds=20), "the load was not slow: nothing is proven"
    # A second of probe period, one of time-stamp rounding on each side.
    assert ready - (started + load) <= timedelta(seconds=4)
    assert chat(url, "Say yes.", max_tokens=2, timeout=120)


def test_a_rollout_loses_no_request(kubectl: Kubectl):
    kubectl.apply(llm_deployment("rolled", target="cpu"))
    kubectl.wait_ready("rolled")
    (old,) = kubectl.pods_of("rolled")
    with steady_traffic(kubectl.service_url("rolled")) as traffic:
        eventually(lambda: traffic.answered >= 3, within=60)
        kubectl.apply(llm_deployment("rolled", target="cpu", server={"maxConcurrency": 4}))
        eventually(lambda: rolled_over(kubectl, old), within=180)
        answered = traffic.answered
        eventually(lambda: traffic.answered >= answered + 3, within=60)
    assert traffic.failures == []
    kubectl.wait_ready("rolled", timeout=30)


def rolled_over(kubectl: Kubectl, old: dict) -> bool:
    status = kubectl.json("get", KIND, "rolled")["status"]
    try:
        kubectl("get", "pod", old["metadata"]["name"])
    except CommandError:
        return status.get("updatedReplicas") == 1 and status.get("readyReplicas") == 1
    return False
