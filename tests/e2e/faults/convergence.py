"""Whether a namespace holds exactly what its LLMDeployments say, and who serves in it.

Knows which objects an LLMDeployment has and how its spec shows in them. Takes everything from the
API server, past the operator and its proxy. Does not know what went wrong before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.e2e.harness import KIND, ON_FAKE_NODES, Kubectl, condition, llm_deployment

Body = dict[str, Any]

MANAGED = "app.kubernetes.io/managed-by=llm-operator"
INSTANCE = "app.kubernetes.io/instance"
TEMPLATE = "llm-operator.dev/template"

# The kinds of objects an LLMDeployment has, and when it has one.
OBJECTS: dict[str, Callable[[Body], bool]] = {
    "Deployment": lambda _: True,
    "Service": lambda _: True,
    "NetworkPolicy": lambda _: True,
    "PodDisruptionBudget": lambda cr: cr["spec"]["replicas"] > 1,
}


def fake(name: str, mark: int = 0, **spec: Any) -> Body:
    """An LLMDeployment on fake nodes; `mark` shows in its pod template, so that it can change."""
    return llm_deployment(
        name, target="cpu", server={"maxQueue": mark}, **{**ON_FAKE_NODES, **spec}
    )


def marks(kubectl: Kubectl) -> dict[str, int]:
    """The mark in the spec of each LLMDeployment."""
    return {
        item["metadata"]["name"]: item["spec"]["server"]["maxQueue"]
        for item in kubectl.items(KIND)
        if "maxQueue" in item["spec"].get("server", {})
    }


def assert_converged(kubectl: Kubectl, wanted: Iterable[str]) -> bool:
    """Check all of a namespace that has the LLMDeployments `wanted` and no others.

    Raises:
        AssertionError: Something is not as the specs say; the message names all of it.
    """
    kinds = ",".join(OBJECTS)
    listed = kubectl.items(f"{KIND},{kinds},replicaset,pod")
    crs = {cr["metadata"]["name"]: cr for cr in listed if cr["kind"] == "LLMDeployment"}
    assert sorted(crs) == sorted(wanted)
    wrong = [f for cr in crs.values() for f in (*_own_faults(cr), *_object_faults(cr, listed))]
    wrong += _strangers(crs, managed(kubectl))
    assert not wrong, "\n".join(["not converged:", *wrong])
    return True


def managed(kubectl: Kubectl) -> list[Body]:
    """Every object that carries the operator's label, of all kinds that it makes."""
    kinds = ",".join((*OBJECTS, "ReplicaSet", "Pod"))
    return kubectl.items(kinds, "-l", MANAGED)


def _own_faults(cr: Body) -> list[str]:
    """What its status says wrong: the generation, and Ready."""
    name, status = cr["metadata"]["name"], cr.get("status", {})
    faults = [
        f"{name}: {each['type']}={each['status']} {each['message']}"
        for each in status.get("conditions", [])
        if (each["type"], each["status"]) != ("Ready", "True")
    ]
    if status.get("observedGeneration") != cr["metadata"]["generation"]:
        faults.append(f"{name}: generation {cr['metadata']['generation']} is not observed")
    if not status:
        faults.append(f"{name}: has no status")
    replicas = cr["spec"]["replicas"]
    counts = {n: status.get(n) for n in ("replicas", "readyReplicas", "updatedReplicas")}
    if set(counts.values()) != {replicas}:
        faults.append(f"{name}: {counts} for {replicas} replicas")
    return faults


def _object_faults(cr: Body, listed: list[Body]) -> list[str]:
    """Which of its objects are missing or differ from its spec."""
    name = cr["metadata"]["name"]
    own = [item for item in listed if is_controlled_by(item, cr)]
    faults = []
    for kind, has_one in OBJECTS.items():
        there = [item["metadata"]["name"] for item in own if item["kind"] == kind]
        if there != ([name] if has_one(cr) else []):
            faults.append(f"{name}: its {kind} is {there}")
    for deployment in (item for item in own if item["kind"] == "Deployment"):
        faults += _deployment_faults(cr, deployment, listed)
    return faults


def _deployment_faults(cr: Body, deployment: Body, listed: list[Body]) -> list[str]:
    """Where the Deployment and its pods are not what the spec says, Ready or not."""
    name, template = cr["metadata"]["name"], deployment["spec"]["template"]
    env = {v["name"]: v.get("value") for v in template["spec"]["containers"][0]["env"]}
    said = {
        "LLM_MODEL_ID": cr["spec"]["model"]["id"],
        "LLM_MAX_QUEUE": str(cr["spec"]["server"]["maxQueue"])
        if "maxQueue" in cr["spec"].get("server", {})
        else None,
    }
    differ = [f"{n}={env.get(n)} for {v}" for n, v in said.items() if env.get(n) != v]
    if deployment["spec"]["replicas"] != cr["spec"]["replicas"]:
        differ.append(f"replicas={deployment['spec']['replicas']}")
    pods = [pod for pod in listed if pod["kind"] == "Pod" and instance(pod) == name]
    current = template["metadata"]["labels"][TEMPLATE]
    ready = [
        condition(pod, "Ready").get("status") == "True"
        and pod["metadata"]["labels"][TEMPLATE] == current
        for pod in pods
    ]
    if ready != [True] * cr["spec"]["replicas"]:
        differ.append(f"{len(pods)} pods, ready and current: {ready}")
    return [f"{name}: its Deployment has {each}" for each in differ]


def _strangers(crs: dict[str, Body], objects: list[Body]) -> list[str]:
    """Objects that the operator made and that no living LLMDeployment owns, or that are double."""
    uids = {item["metadata"]["uid"] for item in [*crs.values(), *objects]}
    ownerless = [
        f"{title(item)} has no living owner"
        for item in objects
        if not any(owner["uid"] in uids for owner in item["metadata"].get("ownerReferences", []))
    ]
    made = Counter((item["kind"], instance(item)) for item in objects if item["kind"] in OBJECTS)
    return ownerless + [f"{n} times {what}" for what, n in made.items() if n > 1]


def is_controlled_by(item: Body, owner: Body) -> bool:
    """Whether `owner` is the controller of `item`."""
    references = item["metadata"].get("ownerReferences", [])
    return any(r.get("controller") and r["uid"] == owner["metadata"]["uid"] for r in references)


def instance(item: Body) -> str:
    """Name of the LLMDeployment that an object says it belongs to."""
    name: str = item["metadata"].get("labels", {}).get(INSTANCE, "")
    return name


def title(item: Body) -> str:
    """Kind and name."""
    return f"{item['kind']} {item['metadata']['name']}"


@dataclass(frozen=True)
class Serving:
    """The pods of some LLMDeployments, each with how often its containers were restarted."""

    pods: dict[str, int]

    @classmethod
    def now(cls, kubectl: Kubectl, names: Iterable[str]) -> Serving:
        """The pods as they are."""
        wanted = set(names)
        return cls(
            {
                f"{instance(pod)} {pod['metadata']['uid']}": sum(
                    status["restartCount"]
                    for status in pod.get("status", {}).get("containerStatuses", [])
                )
                for pod in kubectl.items("pods", "-l", MANAGED)
                if instance(pod) in wanted
            }
        )

    def without(self, name: str) -> Serving:
        """The same but for one LLMDeployment."""
        left = {pod: count for pod, count in self.pods.items() if pod.split()[0] != name}
        return Serving(left)
