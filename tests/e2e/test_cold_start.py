"""How long a real model took to come up, and what it runs on, as the status tells it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.conftest import local_operator, served_namespace
from tests.e2e.harness import KIND, MODEL, Kubectl, condition, eventually, llm_deployment

pytestmark = pytest.mark.exclusive

Json = dict[str, Any]

PHASES = (
    "scheduled",
    "imagePulled",
    "containerStarted",
    "processUp",
    "weightsLoaded",
    "warmedUp",
    "ready",
)
BY_SERVER = ("processUp", "weightsLoaded", "warmedUp")
NAME = "measured"


@dataclass(frozen=True)
class Started:
    """A model that serves.

    Attributes:
        kubectl: in its namespace.
        waited: Seconds from `kubectl apply` until it was seen ready.
    """

    kubectl: Kubectl
    waited: float

    @property
    def status(self) -> Json:
        """Its status."""
        found: Json = self.kubectl.json("get", KIND, NAME)["status"]
        return found

    def measured(self) -> Json:
        """Its status, once it tells what the server said."""
        status = self.status
        assert set(BY_SERVER) < set(status.get("coldStart", {})), status
        assert status.get("device"), status
        return status


@pytest.fixture(scope="module")
def started(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Started]:
    """The development image's model, serving with one thread."""
    with served_namespace(request, tmp_path_factory.mktemp("operator")) as kubectl:
        began = time.monotonic()
        resources = {"requests": {"cpu": "100m"}, "limits": {"cpu": "1", "memory": "3Gi"}}
        kubectl.apply(llm_deployment(NAME, target="cpu", resources=resources))
        kubectl.wait_ready(NAME)
        yield Started(kubectl, time.monotonic() - began)


def test_phases_add_up_to_the_time_it_took(started: Started):
    cold_start = eventually(started.measured, within=30)["coldStart"]
    (pod,) = started.kubectl.pods_of(NAME)
    assert cold_start["pod"] == pod["metadata"]["name"]
    assert [name for name in cold_start if name in PHASES] == sorted(PHASES)
    seconds = {name: cold_start[name] for name in PHASES}
    assert min(seconds.values()) >= 0
    total = float(cold_start["total"].removesuffix("s"))
    assert sum(seconds.values()) == pytest.approx(total, abs=0.5)
    assert total <= started.waited + 2
    # Python and torch take their time, and so do 270 MB of weights: no phase is a mere zero.
    assert seconds["processUp"] > 0
    assert seconds["weightsLoaded"] > 0
    assert seconds["imagePulled"] == 0, "the node has the image"
    assert "imageBytes" not in cold_start, "the kubelet tells it when it pulls"


def test_the_device_is_what_the_server_was_given(started: Started):
    device = eventually(started.measured, within=30)["device"]
    assert device["type"] == "cpu"
    assert device["dtype"] in {"bfloat16", "float32"}
    assert device["threads"] == 1, "resources.limits.cpu is 1"
    assert device["memory"] == 3 * 1024**3, "resources.limits.memory is 3Gi"
    assert device["name"]


def test_columns_of_kubectl_get(started: Started):
    status = eventually(started.measured, within=30)
    assert table(started.kubectl("get", KIND)) == {
        "NAME": NAME,
        "MODEL": MODEL,
        "TARGET": "cpu",
        "REPLICAS": "1/1",
        "READY": "True",
        "REASON": "ModelServing",
        "COLD-START": status["coldStart"]["total"],
    }
    wide = table(started.kubectl("get", KIND, "-o", "wide"))
    assert list(wide)[7:] == ["DEVICE", "IMAGE", "ENDPOINT", "MESSAGE"]
    assert wide["DEVICE"] == status["device"]["name"]
    assert wide["IMAGE"] == status["image"] == "localhost/llm-inference:smollm2-cpu"
    assert wide["ENDPOINT"] == f"http://{NAME}.{started.kubectl.namespace}.svc"
    assert wide["MESSAGE"] == f"1 of 1 replicas serve {MODEL}"


def table(printed: str) -> dict[str, str]:
    """The one row that kubectl printed, by its columns, without the age."""
    head, row = printed.splitlines()
    columns = [(found.group(), found.start()) for found in re.finditer(r"\S+", head)]
    ends = [start for _, start in columns[1:]] + [None]
    cells = {name: row[start:end].strip() for (name, start), end in zip(columns, ends, strict=True)}
    assert cells.pop("AGE")
    return cells


def test_another_operator_finds_nothing_to_ask_or_to_write(
    started: Started, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
):
    before = started.kubectl.json("get", KIND, NAME)
    eventually(started.measured, within=30)
    with ExitStack() as stack:
        if request.config.getoption("--local-operator"):
            # Two that act: had the new one anything to say, it would.
            folder = tmp_path_factory.mktemp("another-operator")
            stack.enter_context(local_operator(started.kubectl.namespace, folder))
        else:
            operator: Kubectl = request.getfixturevalue("operator")
            operator("rollout", "restart", "deployment/llm-operator")
            operator("rollout", "status", "deployment/llm-operator", "--timeout=90s")
        time.sleep(15)  # it starts, lists twice within ten seconds, and asks who is new
        after = started.kubectl.json("get", KIND, NAME)
    assert after["status"] == before["status"]
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


def test_a_server_that_starts_anew_in_its_pod_had_one_cold_start(started: Started):
    before = eventually(started.measured, within=30)
    (pod,) = started.kubectl.pods_of(NAME)
    # The first process ends in peace, and the kubelet starts another.
    started.kubectl("exec", pod["metadata"]["name"], "--", "python", "-c", STOP)

    def not_ready() -> bool:
        ready = condition(started.kubectl.json("get", KIND, NAME), "Ready")
        return ready["status"] == "False"

    eventually(not_ready, within=60, every=0.2)
    assert "device" not in started.status, "nobody serves, so nobody says on what"
    started.kubectl.wait_ready(NAME)
    after = eventually(started.measured, within=30)
    (same,) = started.kubectl.pods_of(NAME)
    assert same["metadata"]["uid"] == pod["metadata"]["uid"]
    assert same["status"]["containerStatuses"][0]["restartCount"] == 1
    assert after["coldStart"] == before["coldStart"]
    assert after["device"] == before["device"]


STOP = "import os, signal; os.kill(1, signal.SIGTERM)"


def test_a_newer_pod_takes_the_place_of_the_old(started: Started):
    before = eventually(started.measured, within=30)["coldStart"]
    started.kubectl("delete", "pod", before["pod"], "--wait=false")

    def replaced() -> Json:
        status = started.measured()
        assert status["coldStart"]["pod"] != before["pod"]
        return status

    status = eventually(replaced, within=180)
    (pod,) = started.kubectl.pods_of(NAME)
    assert status["coldStart"]["pod"] == pod["metadata"]["name"]
    assert status["readyReplicas"] == 1
