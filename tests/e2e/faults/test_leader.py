"""Several operators: one acts, another takes its place, and who lost its place acts no more.

The operators are processes of this machine, each with an account of its own, so that the API
server's audit log tells who wrote. They serve one namespace that no other test uses.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.e2e.harness import KIND, WRITE_VERBS, Kubectl, eventually, llm_deployment

from .api_proxy import ApiProxy

ROOT = Path(__file__).parents[3]
LEASE_SECONDS = 15


@dataclass
class Operator:
    """One operator.

    Attributes:
        name: Its account, which begins the name of the process in the Lease.
        process: What runs.
        url: Where it answers probes.
        log: What it wrote.
    """

    name: str
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def leads(self) -> bool:
        return self._metric("llm_operator_leader") == 1

    def reconciled(self) -> bool:
        return self._metric('llm_operator_reconciles_total{outcome="success"}') > 0

    def follows(self) -> bool:
        return self._get("/readyz") == "follower\n"

    def _metric(self, name: str) -> float:
        lines = [line for line in self._get("/metrics").splitlines() if line.startswith(name)]
        return float(lines[0].split()[-1]) if lines else 0

    def _get(self, path: str) -> str:
        try:
            return httpx.get(self.url + path, timeout=5).text
        except httpx.TransportError as error:
            raise AssertionError(f"{self.name}: {error}; {self.log.read_text()}") from error

    def wait(self) -> int:
        return self.process.wait(timeout=30)


@pytest.fixture
def namespace(cluster: Kubectl) -> Iterator[Kubectl]:
    """A namespace with one LLMDeployment, that runs no pod."""
    name = f"leader-{uuid.uuid4().hex[:8]}"
    cluster("create", "namespace", name)
    inside = Kubectl(cluster.binary, cluster.kubeconfig, name)
    inside.apply(llm_deployment("smollm2", target="cpu", replicas=0))
    yield inside
    inside("delete", KIND, "--all", "--wait=false")
    cluster("delete", "namespace", name, "--wait=false")


@pytest.fixture
def start(namespace: Kubectl, tmp_path: Path) -> Iterator[Callable[..., Operator]]:
    """Starts an operator under an account of its own."""
    started: list[Operator] = []

    def start(name: str, *, server: str = "", code: str = "", **settings: str) -> Operator:
        kubeconfig = tmp_path / f"{name}.kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(_account(namespace, name, server)))
        port = _free_port()
        log = tmp_path / f"{name}.log"
        program = ["-c", code] if code else ["-m", "llm_operator"]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT / "operator"),
            "KUBECONFIG": str(kubeconfig),
            "LLM_OPERATOR_HEALTH_PORT": str(port),
            "LLM_OPERATOR_NAMESPACE": namespace.namespace,
            "LLM_OPERATOR_POD_NAME": name,
            "LLM_OPERATOR_WATCH_NAMESPACES": namespace.namespace,
            "LLM_OPERATOR_WATCH_NODES": "false",
            "LLM_OPERATOR_RUNTIME_IMAGE_REPOSITORY": "localhost/llm-inference",
            **{f"LLM_OPERATOR_{key.upper()}": value for key, value in settings.items()},
        }
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, *program], env=environment, stderr=sink, stdout=sink
            )
        operator = Operator(name, process, f"http://127.0.0.1:{port}", log)
        started.append(operator)
        return operator

    yield start
    for operator in started:
        if operator.process.poll() is None:
            operator.process.kill()
            operator.process.wait()


def _account(namespace: Kubectl, name: str, server: str) -> dict[str, Any]:
    """A kubeconfig of a ServiceAccount that may do everything in the namespace, and no more."""
    namespace("create", "serviceaccount", name)
    namespace(
        *("create", "rolebinding", name, "--clusterrole=cluster-admin"),
        f"--serviceaccount={namespace.namespace}:{name}",
    )
    config: dict[str, Any] = yaml.safe_load(namespace.kubeconfig.read_text())
    if server:
        config["clusters"][0]["cluster"] = {"server": server}
    config["users"][0]["user"] = {"token": namespace("create", "token", name).strip()}
    return config


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture
def pair(start: Callable[..., Operator]) -> tuple[Operator, Operator]:
    """A leader that has done its work and a follower."""
    leader = start("one")
    eventually(lambda: leader.leads() and leader.reconciled(), within=30)
    follower = start("two")
    eventually(follower.follows, within=30)
    return leader, follower


def holder(namespace: Kubectl) -> str:
    spec = namespace.json("get", "lease", "llm-operator")["spec"]
    name: str = spec["holderIdentity"].partition("_")[0]
    return name


def writes(namespace: Kubectl, audit_log: Path, operator: Operator) -> list[str]:
    """What an operator wrote, but its Lease: time, verb and path."""
    user = f"system:serviceaccount:{namespace.namespace}:{operator.name}"
    with audit_log.open() as lines:
        events = [json.loads(line) for line in lines if f'"{user}"' in line]
    return [
        f"{event['stageTimestamp']} {event['verb']} {event['requestURI']}"
        for event in events
        if event["verb"] in WRITE_VERBS and event["stage"] == "ResponseComplete"
    ]


def test_one_acts_and_the_other_writes_nothing_at_all(
    namespace: Kubectl, pair: tuple[Operator, Operator], audit_log: Path
):
    leader, follower = pair
    assert holder(namespace) == leader.name
    assert not follower.leads()
    time.sleep(5)
    assert writes(namespace, audit_log, leader)
    assert writes(namespace, audit_log, follower) == []
    follower.process.send_signal(signal.SIGTERM)
    assert follower.wait() == 0
    assert holder(namespace) == leader.name


def test_a_leader_told_to_stop_hands_over_at_once(
    namespace: Kubectl, pair: tuple[Operator, Operator]
):
    leader, follower = pair
    leader.process.send_signal(signal.SIGTERM)
    # Well before the record would have run out by itself.
    eventually(
        lambda: follower.leads() and follower.reconciled(), within=LEASE_SECONDS / 2, every=0.1
    )
    assert leader.wait() == 0
    assert "Traceback" not in leader.log.read_text()
    lease = namespace.json("get", "lease", "llm-operator")["spec"]
    assert lease["leaseTransitions"] == 1
    events = namespace.items("events", "--field-selector=involvedObject.kind=Lease")
    assert sorted(event["message"].partition("_")[0] for event in events) == ["one", "two"]


def test_a_killed_leader_is_replaced(namespace: Kubectl, pair: tuple[Operator, Operator]):
    leader, follower = pair
    leader.process.kill()
    eventually(lambda: follower.leads() and follower.reconciled(), within=2 * LEASE_SECONDS)
    assert holder(namespace) == follower.name


def test_a_restarted_process_of_the_same_pod_leads_at_once(
    namespace: Kubectl, start: Callable[..., Operator]
):
    first = start("one")
    eventually(first.reconciled, within=30)
    first.process.kill()
    first.wait()
    again = start("again", pod_name="one")
    eventually(again.reconciled, within=30)
    assert "following" not in again.log.read_text()


def test_who_slept_through_its_time_writes_nothing_when_it_wakes(
    namespace: Kubectl, pair: tuple[Operator, Operator], audit_log: Path
):
    leader, follower = pair
    leader.process.send_signal(signal.SIGSTOP)
    eventually(lambda: follower.leads() and follower.reconciled(), within=2 * LEASE_SECONDS)
    # What the sleeper will see first when it wakes is work to do.
    patch = json.dumps({"spec": {"model": {"servedName": "other"}}})
    namespace("patch", KIND, "smollm2", "--type=merge", "-p", patch)
    namespace("delete", "service", "smollm2")
    eventually(lambda: namespace.exists("service", "smollm2"), within=30)
    before = writes(namespace, audit_log, leader)
    leader.process.send_signal(signal.SIGCONT)
    assert leader.wait() == 3
    time.sleep(2)
    assert writes(namespace, audit_log, leader) == before
    assert "leads no more" in leader.log.read_text()
    assert holder(namespace) == follower.name


def test_a_leader_cut_off_from_the_api_server_stops(
    namespace: Kubectl, start: Callable[..., Operator]
):
    with ApiProxy(namespace.kubeconfig) as proxy:
        leader = start("one", server=proxy.url)
        eventually(leader.reconciled, within=30)
        follower = start("two")
        eventually(follower.follows, within=30)
        proxy.hang = True
        assert leader.wait() == 3
        assert not follower.leads(), "the old leader outlived its time"
        eventually(lambda: follower.leads() and follower.reconciled(), within=2 * LEASE_SECONDS)


IMPATIENT = """
from llm_operator import deafness
deafness.PATIENCE_SECONDS = 5
import sys
from llm_operator.__main__ import main
sys.exit(main())
"""


def test_an_operator_whose_watches_fell_silent_ends(
    namespace: Kubectl, start: Callable[..., Operator]
):
    with ApiProxy(namespace.kubeconfig) as proxy:
        operator = start("one", server=proxy.url, code=IMPATIENT, resync_seconds="2")
        eventually(operator.reconciled, within=30)
        time.sleep(15)
        assert operator.process.poll() is None, operator.log.read_text()
        proxy.swallow_watches = True
        namespace.apply(llm_deployment("unheard-of", target="cpu", replicas=0))
        assert operator.wait() == 1
    text = operator.log.read_text()
    assert "nothing more is told by the watch of" in text
    assert f"llmdeployments in {namespace.namespace}" in text
    # The list that gave it away has mended what was missed.
    assert namespace.exists("deployment", "unheard-of")
