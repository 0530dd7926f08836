"""Who reaches the pods, whom they reach, and that the objects around them stay what they are."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dev.cluster import checks
from tests.e2e.harness import KIND, Kubectl, condition, eventually, llm_deployment
from tests.e2e.test_network_policy import API, Peers, enforced
from tests.e2e.traffic import first_answer

__all__ = ["enforced"]

REFUSED = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2).close()
    print("open")
except OSError as error:
    print(type(error).__name__)
"""
NAMED = """
import socket
try:
    print(socket.getaddrinfo("kubernetes.default.svc", 443)[0][4][0])
except OSError as error:
    print(type(error).__name__)
"""
# A policy binds some moments after it was made.
BINDS_WITHIN = 20
# Back in place sooner than by any list that is made now and then.
MENDED_WITHIN = 10


def python(kubectl: Kubectl, pod: str, code: str, *arguments: str) -> str:
    """Run Python in a server's container; what it printed."""
    return kubectl("exec", pod, "--", "python", "-c", code, *arguments).strip()


def reaches(kubectl: Kubectl, pod: str, address: str) -> bool:
    return python(kubectl, pod, REFUSED, *address.rsplit(":", 1)) == "open"


@pytest.fixture
def peers(cluster: Kubectl, enforced: None) -> Iterator[Peers]:
    """Pods in another namespace, that stand for clients and for everything else in a cluster."""
    name = f"peers-{uuid.uuid4().hex[:8]}"
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"team": name}},
    }
    cluster("apply", "-f", "-", stdin=json.dumps(namespace))
    yield Peers(Kubectl(cluster.binary, cluster.kubeconfig, name), checks.load_peer())
    cluster("delete", "namespace", name, "--wait=false")


def test_pods_serve_whom_they_should_and_reach_nobody(peers: Peers, kubectl: Kubectl):
    only = {"podSelector": {"matchLabels": {"app": "client"}}, **of_namespace(peers)}
    kubectl.apply(llm_deployment("closed", target="cpu", networkPolicy={"ingressFrom": [only]}))
    peers.start("client", "stranger")
    kubectl.wait_ready("closed")  # probes pass
    (pod,) = kubectl.pods_of("closed")
    name, served = pod["metadata"]["name"], f"{pod['status']['podIP']}:8080"
    service, other = f"closed.{kubectl.namespace}.svc:80", peers.address("client")
    peers.expect("stranger", {service: False, served: False})
    peers.expect("client", {service: True, served: True})
    device = eventually(
        lambda: kubectl.json("get", KIND, "closed")["status"].get("device"), within=30
    )
    assert device["type"] == "cpu", "the operator has asked the server"
    assert not reaches(kubectl, name, other)
    assert not reaches(kubectl, name, API)
    assert python(kubectl, name, NAMED) == "gaierror"

    patch(kubectl, networkPolicy={"ingressFrom": None})
    peers.expect("stranger", {service: True, served: True})
    assert "Paris" in first_answer(kubectl.service_url("closed"), "What is the capital of France?")

    patch(kubectl, networkPolicy={"egress": [{"to": [of_namespace(peers)]}]})
    eventually(lambda: reaches(kubectl, name, other), within=BINDS_WITHIN)
    assert not reaches(kubectl, name, API)

    patch(kubectl, networkPolicy={"enabled": False, "egress": None})
    eventually(lambda: not kubectl.exists("networkpolicy", "closed"), within=MENDED_WITHIN)
    eventually(lambda: reaches(kubectl, name, API), within=BINDS_WITHIN)
    (same,) = kubectl.pods_of("closed")
    assert same["metadata"]["name"] == name, "no policy restarts a pod"
    assert condition(same, "Ready")["status"] == "True"
    assert same["status"]["containerStatuses"][0]["restartCount"] == 0


def of_namespace(peers: Peers) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {"team": peers.kubectl.namespace}}}


def patch(kubectl: Kubectl, **spec: Any) -> None:
    kubectl("patch", KIND, "closed", "--type=merge", "-p", json.dumps({"spec": spec}))


Object = dict[str, Any]


def replicas(spec: Object) -> None:
    spec["replicas"] = 5


def image(spec: Object) -> None:
    spec["template"]["spec"]["containers"][0]["image"] = "localhost/other"


def ports(spec: Object) -> None:
    spec["ports"][0]["port"] = 81


def egress(spec: Object) -> None:
    spec["egress"] = [{}]


def selector(spec: Object) -> None:
    spec["selector"]["somebody"] = "else"


def pod_selector(spec: Object) -> None:
    spec["podSelector"]["matchLabels"]["somebody"] = "else"


def budget(spec: Object) -> None:
    spec["maxUnavailable"] = 2


def bounds(spec: Object) -> None:
    spec["maxReplicas"] = 9


EDITS: list[tuple[str, Callable[[Object], None]]] = [
    ("deployment", replicas),
    ("deployment", image),
    ("service", ports),
    ("service", selector),
    ("networkpolicy", egress),
    ("networkpolicy", pod_selector),
    ("poddisruptionbudget", budget),
    ("horizontalpodautoscaler", bounds),
]


def test_objects_that_somebody_edits_or_deletes_are_put_back(kubectl: Kubectl):
    kubectl.apply(everything("mended"))
    kinds = sorted({kind for kind, _ in EDITS})
    eventually(lambda: all(kubectl.exists(kind, "mended") for kind in kinds), within=30)
    wanted = {kind: spec_of(kubectl, kind) for kind in kinds}

    for kind, edit in EDITS:
        resource = kubectl.json("get", kind, "mended")
        edit(resource["spec"])
        resource["metadata"]["annotations"] = {"somebody": "was here"}
        resource["metadata"].pop("resourceVersion")
        kubectl("replace", "-f", "-", stdin=json.dumps(resource))
        eventually(lambda kind=kind: spec_of(kubectl, kind) == wanted[kind], within=MENDED_WITHIN)
    for kind in kinds:
        mended = kubectl.json("get", kind, "mended")
        assert mended["metadata"]["annotations"]["somebody"] == "was here", (
            "it is not the operator's"
        )

    before = {kind: uid(kubectl, kind) for kind in kinds}
    kubectl("delete", *(f"{kind}/mended" for kind in kinds), "--wait=false")
    for kind in kinds:
        eventually(lambda kind=kind: uid(kubectl, kind) != before[kind], within=60)
        assert spec_of(kubectl, kind) == wanted[kind]


def everything(name: str) -> Object:
    """An LLMDeployment with an object of every kind and pods that never start."""
    return llm_deployment(
        name,
        target="cpu",
        replicas=2,
        nodeSelector={"no-such": "node"},
        resources={"requests": {"cpu": "100m"}},
        autoscaling={"minReplicas": 2, "maxReplicas": 3},
    )


def spec_of(kubectl: Kubectl, kind: str) -> Object:
    """What the operator says of an object: what the API server adds may be another each time."""
    spec: Object = kubectl.json("get", kind, "mended")["spec"]
    return {name: value for name, value in spec.items() if not name.startswith("clusterIP")}


def uid(kubectl: Kubectl, kind: str) -> str:
    found: str = kubectl.json("get", kind, "mended")["metadata"]["uid"]
    return found


def test_what_others_say_of_an_object_stays(kubectl: Kubectl):
    annotated = everything("shared")
    annotated["spec"]["service"] = {"annotations": {"from": "spec"}}
    kubectl.apply(annotated)
    eventually(lambda: kubectl.exists("service", "shared"), within=30)
    assert kubectl.json("get", "service", "shared")["metadata"]["annotations"]["from"] == "spec"
    kubectl("label", "service", "shared", "team=llm")
    kubectl("annotate", "service", "shared", "note=theirs")
    kubectl(
        "patch", "service", "shared", "--type=merge",
        "-p", '{"spec": {"sessionAffinity": "ClientIP"}}',
    )  # fmt: skip
    # A restart by hand writes an annotation into the pod template.
    kubectl("rollout", "restart", "deployment/shared")
    changed = {"spec": {"service": {"port": 8000, "annotations": None}}}
    kubectl("patch", KIND, "shared", "--type=merge", "-p", json.dumps(changed))
    eventually(lambda: port_of(kubectl) == 8000, within=MENDED_WITHIN)
    service = kubectl.json("get", "service", "shared")
    assert service["metadata"]["labels"]["team"] == "llm"
    assert service["metadata"]["annotations"]["note"] == "theirs"
    assert "from" not in service["metadata"]["annotations"], "the spec says it no more"
    assert service["spec"]["sessionAffinity"] == "ClientIP"
    template = kubectl.json("get", "deployment", "shared")["spec"]["template"]
    assert "kubectl.kubernetes.io/restartedAt" in template["metadata"]["annotations"]


def port_of(kubectl: Kubectl) -> int:
    port: int = kubectl.json("get", "service", "shared")["spec"]["ports"][0]["port"]
    return port
