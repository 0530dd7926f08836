"""When an old pod has to go before a new one finds a place. Pure.

A rollout starts a new pod first, so that nothing is lost. That needs room for one more: where the
scheduler says there is none, because the old pod holds the last GPU or the only node that can mount
a claim, the old one goes first. So a rollout never waits for what it holds itself; and no pod that
serves goes for a GPU that its end would not bring.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llm_operator import hardware, reasons, render
from llm_operator.api import Gpu, LLMDeployment
from llm_operator.hardware import NodeFacts
from llm_operator.pods import Pod
from llm_operator.status import Target


def replaces_in_place(
    cr: LLMDeployment,
    *,
    target: Target,
    template: str | None,
    pods: Sequence[Pod],
    live: Mapping[str, Any] | None,
    pinned: bool,
    nodes: Iterable[NodeFacts] | None = None,
) -> bool:
    """Whether the Deployment of `cr` should stop an old pod before it starts a new one.

    Args:
        cr: The object.
        target: The hardware chosen.
        template: Digest of the wanted pod template.
        pods: The pods there are, oldest first.
        live: The Deployment as it is, if there is one.
        pinned: Whether a volume holds all pods on one node.
        nodes: The cluster's nodes; None if the operator may not look at them.
    """
    if cr.spec.rollout.strategy != "auto":
        return False
    if pinned:
        return True
    new = _newest(pods, template)
    old = [pod for pod in pods if pod not in new]
    if target != "gpu" or not _free_a_gpu(cr, old, nodes):
        return False
    # Once begun in this way, a rollout ends in this way.
    if live and render.replaces_in_place(live):
        return True
    return any(_lacks_gpu(pod, cr) for pod in new) or _over_quota(live, cr)


def _newest(pods: Sequence[Pod], template: str | None) -> list[Pod]:
    """Those of `pods`, oldest first, that a rollout ends with."""
    current = [pod for pod in pods if pod.template == template]
    return [pod for pod in current if pod.revision == current[-1].revision]


def _free_a_gpu(cr: LLMDeployment, old: Sequence[Pod], nodes: Iterable[NodeFacts] | None) -> bool:
    """Whether the end of one of the `old` pods could give a new one its place.

    Not if they hold no GPU, as those of target cpu, nor if no new pod could ever run on their
    nodes, because it wants another product or more GPUs than a node has.
    """
    gpu = cr.spec.gpu or Gpu()
    fitting = {node.name: hardware.fits(cr.spec, gpu, node) for node in nodes or ()}
    return any(
        gpu.resource_name in pod.devices and pod.node is not None and fitting.get(pod.node, True)
        for pod in old
    )


def _lacks_gpu(pod: Pod, cr: LLMDeployment) -> bool:
    """Whether the scheduler says that no GPU is free."""
    diagnosis = pod.diagnosis
    resource = (cr.spec.gpu or Gpu()).resource_name
    return (
        diagnosis is not None
        and diagnosis.reason == reasons.UNSCHEDULABLE
        and f"Insufficient {resource}" in diagnosis.message
    )


def _over_quota(live: Mapping[str, Any] | None, cr: LLMDeployment) -> bool:
    """Whether a quota on the GPU keeps the new pod from being created at all."""
    resource = (cr.spec.gpu or Gpu()).resource_name
    return any(
        condition["type"] == "ReplicaFailure"
        and condition["status"] == "True"
        and "exceeded quota" in condition.get("message", "")
        and resource in condition.get("message", "")
        for condition in (live or {}).get("status", {}).get("conditions", ())
    )
