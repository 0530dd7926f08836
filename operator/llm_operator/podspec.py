"""The parts of a pod that a user writes as in a pod: resources, scheduling, environment.

Knows their fields and what in them contradicts itself. Does not know how they are combined with
what the operator adds (render, hardware).
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from llm_operator.fields import ApiModel, LabelKey, LabelValue, ObjectName, Quantity, rules


class Resources(ApiModel):
    """Requests and limits of the server container, as in a pod. GPUs are asked for by spec.gpu."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.requests) || !has(self.limits) || self.requests.all(name,"
                " !(name in self.limits) || quantity(string(self.requests[name]))"
                ".compareTo(quantity(string(self.limits[name]))) <= 0)",
                "a request exceeds its limit: lower the request or raise the limit",
            )
        )
    )

    requests: Annotated[dict[LabelKey, Quantity], Field(max_length=16)] | None = None
    """Resources the scheduler reserves for one replica."""
    limits: Annotated[dict[LabelKey, Quantity], Field(max_length=16)] | None = None
    """Most that one replica may use. The server runs as many threads as limits.cpu allows."""


class Toleration(ApiModel):
    """A taint that the pods tolerate, as in a pod."""

    key: LabelKey | None = None
    """Key of the taint. Every key if not set, with operator Exists."""
    operator: Literal["Exists", "Equal"] | None = None
    """How key and value relate to the taint. Equal if not set."""
    value: LabelValue | None = None
    """Value of the taint, with operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Every effect if not set."""
    toleration_seconds: Annotated[int, Field(ge=0)] | None = None
    """How long a NoExecute taint is tolerated. For ever if not set."""


_PASSED_THROUGH: dict[str, Any] = {"x-kubernetes-preserve-unknown-fields": True}


class Affinity(ApiModel):
    """Scheduling constraints, as in a pod. Unknown fields in it are refused by the Deployment."""

    node_affinity: Annotated[dict[str, Any], Field(json_schema_extra=_PASSED_THROUGH)] | None = None
    """Rules about nodes, as in a pod. Requirements from gpu are added to each of its terms."""
    pod_affinity: Annotated[dict[str, Any], Field(json_schema_extra=_PASSED_THROUGH)] | None = None
    """Rules about pods to be near to, as in a pod."""
    pod_anti_affinity: (
        Annotated[dict[str, Any], Field(json_schema_extra=_PASSED_THROUGH)] | None
    ) = None
    """Rules about pods to be apart from, as in a pod."""


class TopologySpreadConstraint(ApiModel):
    """How the pods spread over nodes, zones and so on, as in a pod."""

    max_skew: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Most pods that one domain may have more than another."""
    topology_key: LabelKey
    """Node label whose values are the domains, for example topology.kubernetes.io/zone."""
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    """Whether a pod waits or is placed anyway where the constraint cannot be met."""
    label_selector: Annotated[dict[str, Any], Field(json_schema_extra=_PASSED_THROUGH)] | None = (
        None
    )
    """Pods that are counted, as in a pod. The pods of this LLMDeployment if not set."""
    min_domains: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Least number of domains, with DoNotSchedule."""
    node_affinity_policy: Literal["Honor", "Ignore"] | None = None
    """Whether only nodes count that selector and affinity allow. Honor if not set."""
    node_taints_policy: Literal["Honor", "Ignore"] | None = None
    """Whether only nodes count whose taints are tolerated. Ignore if not set."""
    match_label_keys: Annotated[tuple[LabelKey, ...], Field(max_length=16)] = ()
    """Pod labels whose values must be equal too, for example pod-template-hash."""


class KeySelector(ApiModel):
    """A key of a Secret or ConfigMap in the namespace of the LLMDeployment."""

    name: ObjectName
    """Name of the object."""
    key: Annotated[
        str, StringConstraints(min_length=1, max_length=253, pattern=r"^[-._A-Za-z0-9]+$")
    ]
    """Key in its data."""
    optional: bool | None = None
    """Start without the variable when object or key does not exist."""


class FieldSelector(ApiModel):
    """A field of the pod."""

    field_path: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    """Path of the field, for example spec.nodeName."""


class EnvVarSource(ApiModel):
    """Where the value of a variable comes from: exactly one of the members."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldRef)]"
                ".filter(given, given).size() == 1",
                "valueFrom names exactly one of secretKeyRef, configMapKeyRef and fieldRef",
            )
        )
    )

    secret_key_ref: KeySelector | None = None
    """Key of a Secret."""
    config_map_key_ref: KeySelector | None = None
    """Key of a ConfigMap."""
    field_ref: FieldSelector | None = None
    """Field of the pod."""


class WholeReference(ApiModel):
    """A Secret or ConfigMap, all of whose keys are taken."""

    name: ObjectName
    """Name of the object."""
    optional: bool | None = None
    """Start without it when it does not exist."""


class EnvFromSource(ApiModel):
    """A Secret or ConfigMap whose keys become environment variables, as in a container."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.secretRef) != has(self.configMapRef)",
                "an entry of envFrom names exactly one of secretRef and configMapRef",
            )
        )
    )

    prefix: (
        Annotated[
            str,
            StringConstraints(max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"),
        ]
        | None
    ) = None
    """Put before every key."""
    secret_ref: WholeReference | None = None
    """The Secret."""
    config_map_ref: WholeReference | None = None
    """The ConfigMap."""


class EnvVar(ApiModel):
    """An environment variable, as in a container."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!self.name.startsWith('LLM_')",
                "variables that begin with LLM_ are made from the spec's own fields:"
                " set the field instead",
            ),
            (
                "!(has(self.value) && has(self.valueFrom))",
                "a variable has a value or a valueFrom: remove one of them",
            ),
        )
    )

    name: Annotated[
        str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    ]
    """Name of the variable."""
    value: Annotated[str, StringConstraints(max_length=32768)] | None = None
    """Value of the variable."""
    value_from: EnvVarSource | None = None
    """Where the value comes from instead."""
