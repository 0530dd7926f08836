"""Network policies bind pods in the development cluster, once they are enforced."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from dev.cluster import checks, lifecycle, network, network_policies
from tests.e2e.harness import Kubectl, eventually

SERVED, OTHER = 8080, 9090
API = f"{network.API_SERVICE}:443"
# A policy binds some moments after it was made: the enforcer watches, and writes whole rule sets.
BINDS_WITHIN = 20


@dataclass(frozen=True)
class Peers:
    """Pods that try connections, and serve on two ports.

    Attributes:
        kubectl: In the namespace where they run.
        image: What they run.
    """

    kubectl: Kubectl
    image: str

    def start(self, *names: str, **container: Any) -> None:
        """Start pods, labelled ``app=<name>``, and wait until they are ready.

        Args:
            names: Theirs.
            container: More fields of their container.
        """
        self.kubectl.apply(*(self._pod(name, container) for name in names))
        pods = [f"pod/{name}" for name in names]
        self.kubectl("wait", "--for=condition=Ready", *pods, "--timeout=60s")

    def address(self, name: str, port: int = SERVED) -> str:
        """Where a pod serves."""
        return f"{self.kubectl.json('get', 'pod', name)['status']['podIP']}:{port}"

    def reach(self, name: str, address: str) -> str:
        """How a connection from a pod ends: ``open``, or why it does not open."""
        return self.kubectl("exec", name, "--", "/peer", "reach", address).strip()

    def resolve(self, name: str, host: str = "kubernetes.default.svc") -> str:
        """Whether a pod gets an answer from the cluster's name server."""
        return self.kubectl("exec", name, "--", "/peer", "resolve", host).strip()

    def expect(self, name: str, outcomes: dict[str, bool]) -> None:
        """Wait until a pod reaches these addresses, or does not.

        Args:
            name: The pod's.
            outcomes: Address → whether connections to it open.

        Raises:
            AssertionError: Not so in time; names what it reaches.
        """

        def so() -> bool:
            seen = {address: self.reach(name, address) for address in outcomes}
            assert {address: end == "open" for address, end in seen.items()} == outcomes, seen
            return True

        eventually(so, within=BINDS_WITHIN)

    def _pod(self, name: str, container: dict[str, Any]) -> dict[str, Any]:
        peer = {
            "name": "peer",
            "image": self.image,
            "imagePullPolicy": "Never",
            "args": ["serve", str(SERVED), str(OTHER)],
            **container,
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"containers": [peer], "terminationGracePeriodSeconds": 1},
        }


def policy(name: str, app: str, **spec: Any) -> dict[str, Any]:
    """A NetworkPolicy for the pods labelled ``app=<app>``."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {"podSelector": {"matchLabels": {"app": app}}, **spec},
    }


@pytest.fixture(scope="module")
def enforced() -> Iterator[None]:
    """Network policies bind in this module's tests, and in no other's."""
    network_policies.switch(on=True)
    yield
    network_policies.switch(on=False)
    assert network_policies.leftovers() == []


@pytest.fixture
def peers(cluster: Kubectl, enforced: None) -> Iterator[Peers]:
    """A fresh namespace to start peers in."""
    name = f"network-{uuid.uuid4().hex[:8]}"
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    cluster("apply", "-f", "-", stdin=json.dumps(namespace))
    yield Peers(Kubectl(cluster.binary, cluster.kubeconfig, name), checks.load_peer())
    cluster("delete", "namespace", name, "--wait=false")


def test_a_pod_that_may_not_call_out_reaches_nobody(peers: Peers):
    peers.start("client", "server", "bystander")
    everything = [peers.address("server"), API]
    peers.expect("client", dict.fromkeys(everything, True))
    assert peers.resolve("client") == "found"

    peers.kubectl.apply(policy("deny", "client", policyTypes=["Egress"]))
    peers.expect("client", dict.fromkeys(everything, False))
    assert peers.resolve("client") == "unanswered"
    peers.expect("bystander", dict.fromkeys(everything, True))

    peers.kubectl("delete", "networkpolicy", "deny")
    peers.expect("client", dict.fromkeys(everything, True))
    assert peers.resolve("client") == "found"


def test_only_the_allowed_port_of_a_pod_is_reached(peers: Peers):
    peers.start("client", "server")
    served, other = peers.address("server"), peers.address("server", OTHER)
    peers.expect("client", {served: True, other: True})
    ports = [{"protocol": "TCP", "port": SERVED}]
    peers.kubectl.apply(
        policy("allow", "server", policyTypes=["Ingress"], ingress=[{"ports": ports}])
    )
    peers.expect("client", {served: True, other: False})


def test_only_allowed_pods_reach_a_pod_through_its_service(peers: Peers):
    peers.start("client", "stranger", "server")
    peers.kubectl("expose", "pod", "server", "--port=80", f"--target-port={SERVED}")
    service = f"server.{peers.kubectl.namespace}.svc:80"
    source = {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}
    peers.expect("stranger", {service: True})
    peers.kubectl.apply(policy("allow", "server", policyTypes=["Ingress"], ingress=[source]))
    peers.expect("stranger", {service: False})
    peers.expect("client", {service: True})


def test_the_kubelet_probes_pods_that_nobody_else_may_reach(peers: Peers):
    peers.start("client")
    peers.kubectl.apply(policy("deny", "server", policyTypes=["Ingress", "Egress"]))
    often = {"httpGet": {"path": "/", "port": SERVED}, "periodSeconds": 1, "timeoutSeconds": 10}
    peers.start("server", readinessProbe=often, livenessProbe=often)
    peers.expect("client", {peers.address("server"): False})
    time.sleep(8)  # of blocked probes, refused at once, the third in a row would restart it
    peers.kubectl("wait", "--for=condition=Ready", "pod/server", "--timeout=10s")
    server = peers.kubectl.json("get", "pod", "server")
    assert server["status"]["containerStatuses"][0]["restartCount"] == 0


def test_status_tells_of_the_enforcer(enforced: None, capsys: pytest.CaptureFixture[str]):
    assert lifecycle.status()
    assert f"{network_policies.NAME} " in capsys.readouterr().out


def test_without_the_enforcer_every_connection_passes_again(peers: Peers):
    peers.start("client", "server")
    server = peers.address("server")
    peers.kubectl.apply(policy("deny", "client", policyTypes=["Egress"]))
    peers.expect("client", {server: False})
    network_policies.switch(on=False)
    try:
        assert peers.reach("client", server) == "open"
        assert network_policies.leftovers() == []
    finally:
        network_policies.switch(on=True)
    peers.expect("client", {server: False})
