"""Nodes that do not exist, as many as asked, for tests of scale and of scheduling.

kwok keeps them Ready and says of each pod on them that it runs. They are tainted: a pod lands on
one only when it tolerates `kwok.x-k8s.io/node=fake:NoSchedule`.
"""

import json

from . import gpu
from .gpu import Gpus
from .kubectl import Json, get, kubectl

LABEL = "type=kwok"
PREFIX = "fake-"
TAINT = {"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}
CAPACITY = {"cpu": "32", "memory": "256Gi", "ephemeral-storage": "1Ti", "pods": "250"}


def name(index: int) -> str:
    """The name of the fake node of this index, from 0 on."""
    return f"{PREFIX}{index}"


def manifest(index: int, gpus: Gpus) -> Json:
    """One fake node."""
    amounts = CAPACITY | ({gpu.RESOURCE: str(gpus.count)} if gpus.count else {})
    labels = {
        "type": "kwok",
        "kubernetes.io/hostname": name(index),
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name(index),
            "labels": labels | (gpu.labels(gpus) if gpus.count else {}),
            "annotations": {"kwok.x-k8s.io/node": "fake", "node.alpha.kubernetes.io/ttl": "0"},
        },
        "spec": {"taints": [TAINT]},
        "status": {"capacity": amounts, "allocatable": amounts},
    }


def present() -> list[str]:
    """The names of the fake nodes there are."""
    return [node["metadata"]["name"] for node in _all()]


def scale(count: int, gpus: Gpus) -> None:
    """Have exactly `count` fake nodes with these GPUs each; those with others are made anew."""
    wanted = {name(index): manifest(index, gpus) for index in range(count)}
    there = {node["metadata"]["name"]: node for node in _all()}
    stale = [n for n, node in there.items() if n not in wanted or not _same(node, wanted[n])]
    if stale:
        # Deleted all at once, then awaited: kubectl by itself awaits them one by one.
        kubectl("delete", "node", "--wait=false", *stale)
        kubectl("wait", "--for=delete", *(f"node/{name}" for name in stale))
    missing = [node for n, node in wanted.items() if n not in there or n in stale]
    if missing:
        # Created, not applied: only a node's creation takes its status along.
        nodes = {"apiVersion": "v1", "kind": "List", "items": missing}
        kubectl("create", "-f", "-", text=json.dumps(nodes))
        kubectl("wait", "--for=condition=Ready", "node", "-l", LABEL, "--timeout=110s")


def _all() -> list[Json]:
    """The nodes made here; the bench has fake nodes of its own, under other names."""
    nodes = get("nodes", "-l", LABEL)["items"]
    return [node for node in nodes if node["metadata"]["name"].startswith(PREFIX)]


def _same(node: Json, wanted: Json) -> bool:
    kept = set(wanted["metadata"]["labels"].items()) <= set(node["metadata"]["labels"].items())
    amounts = node["status"].get("capacity", {}).get(gpu.RESOURCE)
    return kept and amounts == wanted["status"]["capacity"].get(gpu.RESOURCE)
