"""Give the node GPUs it does not have: the extended resource and the labels of a real GPU node.

The labels are those that NVIDIA's GPU feature discovery writes. The scheduler and the kubelet take
the resource for real; a container finds no device.
"""

import json
from dataclasses import dataclass

from .commands import ClusterError
from .kubectl import Json, get, kubectl
from .network import NODE_NAME

RESOURCE = "nvidia.com/gpu"
PREFIX = "nvidia.com/"

# product name up to the first hyphen after the maker → (family, compute capability)
FAMILIES = {
    "T4": ("turing", "7.5"),
    "A10": ("ampere", "8.6"),
    "A100": ("ampere", "8.0"),
    "L4": ("ada-lovelace", "8.9"),
    "L40S": ("ada-lovelace", "8.9"),
    "H100": ("hopper", "9.0"),
    "H200": ("hopper", "9.0"),
    "B200": ("blackwell", "10.0"),
}


@dataclass(frozen=True)
class Gpus:
    """The GPUs of one node: how many, what they are, MiB of memory of each."""

    count: int
    product: str = "NVIDIA-H100-80GB-HBM3"
    memory: int = 81559


def labels(gpus: Gpus) -> dict[str, str]:
    """The labels of a node with these GPUs."""
    made = {
        "gpu.present": "true",
        "gpu.count": str(gpus.count),
        "gpu.product": gpus.product,
        "gpu.memory": str(gpus.memory),
        "gpu.replicas": "1",
        "gpu.sharing-strategy": "none",
        "mig.capable": "false",
    }
    model = gpus.product.removeprefix("NVIDIA-").removeprefix("Tesla-").partition("-")[0]
    if model in FAMILIES:
        family, capability = FAMILIES[model]
        major, minor = capability.split(".")
        made |= {
            "gpu.family": family,
            "gpu.compute.major": major,
            "gpu.compute.minor": minor,
        }
    return {PREFIX + name: value for name, value in made.items()}


def give(name: str, gpus: Gpus) -> None:
    """Give a node these GPUs in place of what it had; none at all when the count is 0.

    Raises:
        ClusterError: there is no such node.
    """
    node = get("node", name)
    had = [label for label in node["metadata"]["labels"] if label.startswith(PREFIX)]
    changes: dict[str, str | None] = dict.fromkeys(had)
    if gpus.count:
        changes |= labels(gpus)
    _patch(name, {"metadata": {"labels": changes}})
    _set_capacity(name, gpus.count)


def restore() -> None:
    """Give the node the GPUs its labels speak of: a kubelet that starts sets them to zero."""
    count = get("node", NODE_NAME)["metadata"]["labels"].get(f"{PREFIX}gpu.count")
    if count:
        _set_capacity(NODE_NAME, int(count))


def _set_capacity(name: str, count: int) -> None:
    amount = str(count) if count else None
    status = {"capacity": {RESOURCE: amount}, "allocatable": {RESOURCE: amount}}
    _patch(name, {"status": status}, "--subresource=status")


def _patch(name: str, patch: Json, *arguments: str) -> None:
    try:
        kubectl("patch", "node", name, "--type=merge", "-p", json.dumps(patch), *arguments)
    except ClusterError as error:
        raise ClusterError(f"cannot change the node {name}: {error}") from None
