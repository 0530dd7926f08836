"""Hardware profiles: what the platform team keeps so that others only name it. Pure.

Knows what a profile may say and how it is merged into a spec: what the spec says goes first. Does
not know where profiles are kept (settings).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError

from llm_operator.api import Gpu, LLMDeploymentSpec
from llm_operator.fields import ApiModel, LabelKey, LabelValue, ObjectName
from llm_operator.podspec import Affinity, Resources, Toleration, TopologySpreadConstraint
from llm_operator.schema import structural


class ProfileError(ValueError):
    """A profile cannot be used. The message is one sentence."""


class HardwareProfile(ApiModel):
    """Hardware under one name."""

    gpu: Gpu | None = None
    """The GPUs of one replica. Naming any asks for a GPU."""
    resources: Resources = Resources()
    """CPU, memory and other resources of one replica."""
    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] | None = None
    """Labels that a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints that the pods tolerate."""
    affinity: Affinity = Affinity()
    """Scheduling constraints."""
    topology_spread_constraints: (
        Annotated[tuple[TopologySpreadConstraint, ...], Field(max_length=8)] | None
    ) = None
    """How the pods spread."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods."""
    scheduler_name: ObjectName | None = None
    """Scheduler of the pods."""

    @classmethod
    def read(cls, name: str, body: object) -> Self:
        """The profile `name` as written in the settings.

        Raises:
            ProfileError: it says what no profile can say.
        """
        try:
            profile = cls.model_validate(body)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            path = ".".join(str(part) for part in first["loc"])
            msg = f"hardware profile {name}: {path}: {first['msg']}"
            raise ProfileError(msg) from None
        if unknown := _unknown(body, structural(cls)):
            msg = f"hardware profile {name}: {unknown} is not a field of a profile"
            raise ProfileError(msg)
        return profile


def _unknown(body: object, schema: Mapping[str, Any], path: str = "") -> str | None:
    """Path of the first field of `body` that `schema` does not have."""
    if isinstance(body, list | tuple):
        items = schema.get("items", {})
        return next(filter(None, (_unknown(item, items, f"{path}[]") for item in body)), None)
    if not isinstance(body, Mapping) or "properties" not in schema:
        return None
    for name, child in body.items():
        where = f"{path}.{name}" if path else str(name)
        if name not in schema["properties"]:
            return where
        if found := _unknown(child, schema["properties"][name], where):
            return found
    return None


def merged(spec: LLMDeploymentSpec, profile: HardwareProfile) -> LLMDeploymentSpec:
    """`spec` with what `profile` adds to it."""
    resources = Resources(
        requests=_merged_keys(profile.resources.requests, spec.resources.requests),
        limits=_merged_keys(profile.resources.limits, spec.resources.limits),
    )
    affinity = Affinity(
        node_affinity=spec.affinity.node_affinity or profile.affinity.node_affinity,
        pod_affinity=spec.affinity.pod_affinity or profile.affinity.pod_affinity,
        pod_anti_affinity=spec.affinity.pod_anti_affinity or profile.affinity.pod_anti_affinity,
    )
    spread = spec.topology_spread_constraints
    return spec.model_copy(
        update={
            "gpu": spec.gpu or profile.gpu,
            "resources": resources,
            "node_selector": _merged_keys(profile.node_selector, spec.node_selector),
            "tolerations": (*profile.tolerations, *spec.tolerations),
            "affinity": affinity,
            "topology_spread_constraints": profile.topology_spread_constraints
            if spread is None
            else spread,
            "priority_class_name": spec.priority_class_name or profile.priority_class_name,
            "scheduler_name": spec.scheduler_name or profile.scheduler_name,
        }
    )


def _merged_keys(
    base: Mapping[str, Any] | None, over: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    return {**(base or {}), **(over or {})} or None
