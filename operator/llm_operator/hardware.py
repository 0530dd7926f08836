"""Which hardware an LLMDeployment runs on, and what a pod must say to get it. Pure.

Knows nodes by their facts and GPUs by their resource name, labels and taint. Does not know where
node facts come from, nor the rest of the pod.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from llm_operator import quantities
from llm_operator.api import Gpu, LLMDeploymentSpec
from llm_operator.podspec import Toleration
from llm_operator.status import Target

# Labels of NVIDIA's GPU feature discovery. Memory is in MiB.
PRODUCT_LABEL = "nvidia.com/gpu.product"
MEMORY_LABEL = "nvidia.com/gpu.memory"

_MEBIBYTE = 2**20
_GPU_ASKED_FOR = "auto: gpu settings ask for a GPU"

Taint = Mapping[str, Any]
Requirement = Mapping[str, Any]


@dataclass(frozen=True)
class NodeFacts:
    """What matters of a node when hardware is chosen."""

    name: str
    labels: Mapping[str, str]
    allocatable: Mapping[str, str]
    """Quantities of extended resources alone: others change too often and are not asked for."""
    taints: tuple[Taint, ...]
    schedulable: bool

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> Self:
        """The facts of a Node as the API server gives it."""
        spec, status = node.get("spec", {}), node.get("status", {})
        return cls(
            name=node["metadata"]["name"],
            labels=dict(node["metadata"].get("labels", {})),
            allocatable={
                name: amount
                for name, amount in status.get("allocatable", {}).items()
                if "/" in name
            },
            taints=tuple(dict(taint) for taint in spec.get("taints", ())),
            schedulable=not spec.get("unschedulable", False),
        )


@dataclass(frozen=True)
class Decision:
    """The hardware chosen, and why."""

    target: Target
    reason: str


def choose(
    spec: LLMDeploymentSpec,
    *,
    previous: Decision | None,
    gpu_image: bool,
    nodes: Iterable[NodeFacts] | None,
) -> Decision:
    """The hardware for `spec`.

    Args:
        spec: What the user asked for.
        previous: What was chosen before. It stays, so that nodes that come and go restart nothing.
        gpu_image: Whether there is an image for target gpu at all.
        nodes: The cluster's nodes; None if the operator may not look at them.
    """
    if spec.target != "auto":
        return Decision(spec.target, f"target is {spec.target}")
    if spec.gpu is not None:
        return Decision("gpu", _GPU_ASKED_FOR)
    if not gpu_image:
        return Decision("cpu", "auto: there is no image for gpu")
    if previous is not None and previous.reason != _GPU_ASKED_FOR:
        if previous.reason.startswith("auto: "):
            return previous
        return Decision(previous.target, f"auto: stays on {previous.target}, where it ran before")
    return _by_nodes(spec, nodes)


def _by_nodes(spec: LLMDeploymentSpec, nodes: Iterable[NodeFacts] | None) -> Decision:
    if nodes is None:
        return Decision("cpu", "auto: the operator does not watch nodes and no GPU is asked for")
    gpu = Gpu()
    for node in sorted(nodes, key=lambda node: node.name):
        if fits(spec, gpu, node):
            return Decision("gpu", f"auto: node {node.name} offers {gpu.resource_name}")
    return Decision("cpu", f"auto: no schedulable node that fits offers {gpu.resource_name}")


def fits(spec: LLMDeploymentSpec, gpu: Gpu, node: NodeFacts) -> bool:
    """Whether a replica could ever run on `node`, whatever runs there now."""
    offered = quantities.parse(node.allocatable.get(gpu.resource_name, 0))
    tolerations = [*spec.tolerations, gpu_toleration(gpu)]
    affinity = node_affinity(spec.affinity.node_affinity, gpu_requirements(gpu))
    return (
        node.schedulable
        and offered >= gpu.count
        and all(node.labels.get(key) == value for key, value in (spec.node_selector or {}).items())
        and _matches_affinity(affinity or {}, node)
        and all(
            any(_tolerates(toleration, taint) for toleration in tolerations)
            for taint in node.taints
            if taint.get("effect") in {"NoSchedule", "NoExecute"}
        )
    )


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect and toleration.effect != taint.get("effect"):
        return False
    if toleration.key and toleration.key != taint.get("key"):
        return False
    if toleration.operator == "Exists":
        return True
    return toleration.key is not None and (toleration.value or "") == taint.get("value", "")


def _matches_affinity(node_affinity: Mapping[str, Any], node: NodeFacts) -> bool:
    """Whether `node` satisfies one of the required terms."""
    required = node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if not required:
        return True
    return any(_meets_term(term, node) for term in required.get("nodeSelectorTerms", ()))


def _meets_term(term: Mapping[str, Any], node: NodeFacts) -> bool:
    """Whether `node` meets all that `term` says. One that says nothing fits no node."""
    labels, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not (labels or fields):
        return False
    return all(_meets(each, node.labels) for each in labels) and all(
        _meets(each, {"metadata.name": node.name}) for each in fields
    )


def _meets(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.get("key", ""))
    wanted = requirement.get("values", ())
    match requirement.get("operator"):
        case "In":
            return value in wanted
        case "NotIn":
            return value not in wanted
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" as operator:
            return _compares(value, operator, wanted)
        case _:
            return False


def _compares(value: str | None, operator: str, wanted: Iterable[str]) -> bool:
    try:
        have, bound = int(value or ""), int(next(iter(wanted), ""))
    except ValueError:
        return False
    return have > bound if operator == "Gt" else have < bound


def gpu_toleration(gpu: Gpu) -> Toleration:
    """Tolerates the taint that nodes with this kind of GPU usually carry."""
    vendor = gpu.resource_name.partition("/")[0]
    usual = vendor in {"nvidia.com", "amd.com"}
    # A MIG profile is a resource of its own, yet its node carries the taint of the vendor's GPUs.
    key = f"{vendor}/gpu" if usual else gpu.resource_name
    return Toleration(key=key, operator="Exists", effect="NoSchedule")


def gpu_requirements(gpu: Gpu) -> list[Requirement]:
    """Node label requirements of `gpu.products` and `gpu.minMemory`."""
    requirements: list[Requirement] = []
    if gpu.products:
        requirements.append(
            {"key": PRODUCT_LABEL, "operator": "In", "values": list(gpu.products)},
        )
    if gpu.min_memory is not None:
        mebibytes = math.ceil(quantities.parse(gpu.min_memory) / _MEBIBYTE)
        requirements.append(
            {"key": MEMORY_LABEL, "operator": "Gt", "values": [str(mebibytes - 1)]},
        )
    return requirements


def node_affinity(
    own: Mapping[str, Any] | None, requirements: list[Requirement]
) -> dict[str, Any] | None:
    """`own` with `requirements` added to each of its required terms: terms are alternatives."""
    if not requirements:
        return dict(own) if own else None
    affinity = dict(own or {})
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = required.get("nodeSelectorTerms") or [{}]
    affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {
        "nodeSelectorTerms": [
            term | {"matchExpressions": [*term.get("matchExpressions", ()), *requirements]}
            for term in terms
        ]
    }
    return affinity
