"""All objects of an LLMDeployment, as plain dicts for server-side apply. Pure.

Knows which objects there are, whose they are, and the Deployment. What is in the pods is in
podtemplate, what stands around them in exposures and autoscalers; hardware and image are chosen
before (hardware, images), writing is somebody else's work (kube).
"""

from collections.abc import Mapping
from typing import Any

from llm_operator import api, autoscalers, exposures, names
from llm_operator.api import LLMDeployment
from llm_operator.manifest import Manifest, digest, pruned

_PULL_MARGIN_SECONDS = 600
"""Time for pulling images before a rollout counts as stuck, on top of the startup budget."""


def objects(
    cr: LLMDeployment,
    template: Manifest,
    *,
    in_place: bool = False,
    operator_namespace: str | None = None,
) -> list[Manifest]:
    """Every object that `cr` should have. What is not among them should not be there.

    Args:
        cr: The object, with its hardware profile merged into its spec.
        template: Their pod template.
        in_place: Whether an old pod has to go before a new one finds a place.
        operator_namespace: Where the operator runs; None if outside of the cluster.
    """
    wanted = (
        deployment(cr, template, in_place=in_place),
        exposures.service(cr),
        exposures.network_policy(cr, operator_namespace),
        exposures.pod_disruption_budget(cr),
        exposures.pod_monitor(cr),
        autoscalers.horizontal_pod_autoscaler(cr),
        autoscalers.scaled_object(cr),
    )
    return [_owned(cr, manifest) for manifest in wanted if manifest is not None]


def deployment(cr: LLMDeployment, template: Manifest, *, in_place: bool = False) -> Manifest:
    """The Deployment that serves `cr`."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "spec": {
            "replicas": replicas(cr),
            "selector": {"matchLabels": names.selector(cr.metadata.name)},
            "strategy": _strategy(cr, in_place=in_place),
            "progressDeadlineSeconds": cr.spec.probes.startup_budget_seconds + _PULL_MARGIN_SECONDS,
            "revisionHistoryLimit": 3,
            "template": template,
        },
    }


def replicas(cr: LLMDeployment) -> int:
    """Number of pods that should run."""
    return 0 if cr.spec.suspend else cr.spec.replicas


def replaces_in_place(manifest: Mapping[str, Any]) -> bool:
    """Whether a Deployment stops an old pod before it starts a new one."""
    update = manifest.get("spec", {}).get("strategy", {}).get("rollingUpdate") or {}
    return str(update.get("maxSurge", 1)) == "0"


def _strategy(cr: LLMDeployment, *, in_place: bool) -> Manifest:
    """Never fewer pods than before, unless there is no place for one more."""
    rollout = cr.spec.rollout
    if rollout.strategy == "Recreate":
        return {"type": "Recreate"}
    surge: int | str = 0 if in_place else 1
    unavailable: int | str = 1 if in_place else 0
    if rollout.strategy == "RollingUpdate":
        surge = 1 if rollout.max_surge is None else rollout.max_surge
        unavailable = rollout.max_unavailable or 0
        if str(surge) in {"0", "0%"} and str(unavailable) in {"0", "0%"}:
            unavailable = 1
    return {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable},
    }


def _owned(cr: LLMDeployment, manifest: Manifest) -> Manifest:
    """`manifest` with name, labels and owner, without what it does not say."""
    own = manifest.get("metadata", {})
    metadata = {
        "name": cr.metadata.name,
        "namespace": cr.metadata.namespace,
        "labels": {**(own.get("labels") or {}), **names.labels(cr.metadata.name)},
        "annotations": own.get("annotations"),
        "ownerReferences": [
            {
                "apiVersion": api.API_VERSION,
                "kind": api.KIND,
                "name": cr.metadata.name,
                "uid": cr.metadata.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
    result = pruned({**manifest, "metadata": metadata})
    said = {names.APPLIED_ANNOTATION: digest(result)}
    metadata = {
        **result["metadata"],
        "annotations": result["metadata"].get("annotations", {}) | said,
    }
    return {**result, "metadata": metadata}
