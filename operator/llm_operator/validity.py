"""What is wrong with a spec that the API server could not see. Pure.

CEL in the CRD refuses what contradicts itself within one object. Here is what depends on something
else: on the hardware profiles the operator was installed with, and on a claim's access modes.
"""

from collections.abc import Collection, Mapping

from llm_operator import quantities
from llm_operator.api import LLMDeployment, LLMDeploymentSpec
from llm_operator.profiles import HardwareProfile, merged
from llm_operator.volumes import claim_of, writes_to_claim

_MANY_NODES = frozenset({"ReadWriteMany", "ReadOnlyMany"})


class InvalidSpecError(ValueError):
    """The spec cannot be met. The message says what to change."""


def resolve(cr: LLMDeployment, profiles: Mapping[str, HardwareProfile]) -> LLMDeployment:
    """`cr` with its hardware profile merged into its spec.

    Raises:
        InvalidSpecError: there is no such profile, or it contradicts the spec.
    """
    name = cr.spec.hardware_profile
    if name is not None:
        cr = cr.model_copy(update={"spec": _with_profile(cr.spec, name, profiles)})
    _check_autoscaling(cr.spec)
    _check_resources(cr.spec)
    return cr


def _with_profile(
    spec: LLMDeploymentSpec, name: str, profiles: Mapping[str, HardwareProfile]
) -> LLMDeploymentSpec:
    profile = profiles.get(name)
    if profile is None:
        there = ", ".join(sorted(profiles)) or "none"
        msg = f"hardwareProfile: there is no profile {name}; the operator knows {there}"
        raise InvalidSpecError(msg)
    if profile.gpu and spec.target == "cpu":
        msg = (
            f"hardwareProfile {name} asks for a GPU but target is cpu: set target to auto or gpu,"
            " or name another profile"
        )
        raise InvalidSpecError(msg)
    if profile.gpu and spec.image.cpu and not spec.image.gpu:
        msg = (
            f"hardwareProfile {name} asks for a GPU but image names only a cpu image: add image.gpu"
        )
        raise InvalidSpecError(msg)
    return merged(spec, profile)


def _check_autoscaling(spec: LLMDeploymentSpec) -> None:
    scaling = spec.autoscaling
    if scaling is None or scaling.metric.type != "cpu":
        return
    if not any("cpu" in (part or {}) for part in (spec.resources.requests, spec.resources.limits)):
        msg = (
            "autoscaling follows the use of CPU in percent of resources.requests.cpu, which is not"
            " set: set it, or choose another autoscaling.metric.type"
        )
        raise InvalidSpecError(msg)


def _check_resources(spec: LLMDeploymentSpec) -> None:
    """Requests and limits may come from different places, spec and profile."""
    limits = spec.resources.limits or {}
    for name, amount in (spec.resources.requests or {}).items():
        if name in limits and quantities.parse(amount) > quantities.parse(limits[name]):
            msg = f"resources.requests.{name} exceeds resources.limits.{name}: lower the request"
            raise InvalidSpecError(msg)


def check_claim(cr: LLMDeployment, access_modes: Collection[str]) -> None:
    """Check that all pods of `cr` can mount the claim they share.

    Args:
        cr: The object.
        access_modes: Access modes of the PersistentVolumeClaim.

    Raises:
        InvalidSpecError: they cannot.
    """
    if not is_pinned(cr.spec, access_modes):
        return
    scaling = cr.spec.autoscaling
    most = max(cr.spec.replicas, scaling.max_replicas if scaling else 0)
    if most > 1:
        msg = (
            f"PersistentVolumeClaim {claim_of(cr.spec)} can be mounted on one node alone"
            f" ({', '.join(sorted(access_modes))}) but there may be {most} replicas: use a claim"
            " with access mode ReadWriteMany, or one replica"
        )
        raise InvalidSpecError(msg)


def is_pinned(spec: LLMDeploymentSpec, access_modes: Collection[str]) -> bool:
    """Whether the claim holds all pods on one node."""
    fitting = {"ReadWriteMany"} if writes_to_claim(spec) else _MANY_NODES
    return claim_of(spec) is not None and bool(access_modes) and not fitting & set(access_modes)
