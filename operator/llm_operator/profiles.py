"""Hardware profiles: what the platform team keeps so that others only name it. Pure.

Knows what a profile may say and how it is merged into a spec: what the spec says goes first. Does
not know where profiles are kept (settings).
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError

from llm_operator import quantities
from llm_operator.api import Gpu, LLMDeploymentSpec
from llm_operator.fields import SUBDOMAIN, ApiModel, LabelKey, LabelValue, ObjectName
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
        about = f"hardware profile {name}"
        if not re.fullmatch(SUBDOMAIN, name):
            msg = f"{about}: a profile's name has lower-case letters, digits, dashes and dots"
            raise ProfileError(msg)
        if not isinstance(body, Mapping):
            msg = f'{about}: write its fields as an object, for example {{"gpu": {{"count": 1}}}}'
            raise ProfileError(msg)
        if unknown := _unknown(body, structural(cls)):
            msg = f"{about}: {unknown} is not a field of a profile"
            raise ProfileError(msg)
        try:
            profile = cls.model_validate(body)
        except ValidationError as error:
            msg = f"{about}: {_sentence(error)}"
            raise ProfileError(msg) from None
        if senseless := _senseless(profile):
            msg = f"{about}: {senseless}"
            raise ProfileError(msg)
        return profile


def _sentence(error: ValidationError) -> str:
    # A quantity that is neither integer nor text is two errors at one place.
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"] if part not in {"int", "str"})
    return f"{path}: {first['msg'].removeprefix('Value error, ')}"


def _senseless(profile: HardwareProfile) -> str | None:
    """What the API server would refuse in a spec, of the mistakes that are easily made."""
    requests, limits = profile.resources.requests or {}, profile.resources.limits or {}
    gpus = {"nvidia.com/gpu", "amd.com/gpu", (profile.gpu or Gpu()).resource_name}
    if gpus & (requests.keys() | limits.keys()):
        return "GPUs are asked for by gpu.count and gpu.resourceName: remove them from resources"
    for name, amount in requests.items():
        if name in limits and quantities.parse(amount) > quantities.parse(limits[name]):
            return f"resources.requests.{name} exceeds resources.limits.{name}: lower the request"
    if any(not each.key and each.operator != "Exists" for each in profile.tolerations):
        return (
            "a toleration without a key tolerates every taint: set operator to Exists, or name a"
            " key"
        )
    return None


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
