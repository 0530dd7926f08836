"""The parts of a pod that a user writes as in a pod: resources, scheduling, environment.

Knows their fields and what in them contradicts itself. Selectors and affinity stand in
selectors. Does not know how they are combined with what the operator adds (podtemplate).
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from llm_operator.fields import (
    QUALIFIED_NAME,
    ApiModel,
    ConfigKey,
    LabelKey,
    LabelValue,
    ObjectName,
    Quantity,
    rules,
)
from llm_operator.selectors import AsLabelSelector, AsNodeAffinity, AsPodAffinity

_FIELD_PATH = (
    rf"^(metadata\.(name|namespace|uid|(labels|annotations)\['{QUALIFIED_NAME}'\])"
    r"|spec\.(nodeName|serviceAccountName)|status\.(hostIP|hostIPs|podIP|podIPs))$"
)
# requests name nothing else than limits: there these rules hold too.
_LIMITS = rules(
    (
        "self.all(name, name in ['cpu', 'memory', 'ephemeral-storage'] || (name.contains('/')"
        " && !format.qualifiedName().validate(name).hasValue()))",
        "resources are cpu, memory, ephemeral-storage, or an extended resource such as"
        " example.com/nic",
    ),
    (
        "self.all(name, !name.contains('/') || quantity(string(self[name])).isInteger())",
        "an extended resource such as example.com/nic comes in whole pieces: use a whole number",
    ),
)


class Resources(ApiModel):
    """Requests and limits of the server container, as in a pod. GPUs are asked for by spec.gpu."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.requests) || !has(self.limits) || self.requests.all(name,"
                " !(name in self.limits) || quantity(string(self.requests[name]))"
                ".compareTo(quantity(string(self.limits[name]))) <= 0)",
                "a request exceeds its limit: lower the request or raise the limit",
            ),
            (
                "!has(self.requests) || self.requests.all(name,"
                " name in ['cpu', 'memory', 'ephemeral-storage']"
                " || name in self.?limits.orValue({}) && quantity(string(self.requests[name]))"
                ".compareTo(quantity(string(self.limits[name]))) == 0)",
                "other resources than cpu, memory and ephemeral-storage are given as a whole: set"
                " them in limits, and in requests to the same number or not at all",
            ),
        )
    )

    requests: Annotated[dict[LabelKey, Quantity], Field(max_length=16)] | None = None
    """Resources the scheduler reserves for one replica. Parts of a core are written 500m or
    "0.5"."""
    limits: (
        Annotated[dict[LabelKey, Quantity], Field(max_length=16, json_schema_extra=_LIMITS)] | None
    ) = None
    """Most that one replica may use. The server runs as many threads as limits.cpu allows."""


class Toleration(ApiModel):
    """A taint that the pods tolerate, as in a pod."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.key) || (has(self.operator) && self.operator == 'Exists')",
                "a toleration without a key tolerates every taint: set operator to Exists, or name"
                " a key",
            ),
            (
                "!(has(self.operator) && self.operator == 'Exists') || !has(self.value)"
                " || self.value == ''",
                "operator Exists compares no value: remove value, or set operator to Equal",
            ),
            (
                "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                "tolerationSeconds belongs to effect NoExecute: set effect to NoExecute, or remove"
                " tolerationSeconds",
            ),
        )
    )

    key: LabelKey | None = None
    """Key of the taint. Every key if not set, with operator Exists."""
    operator: Literal["Exists", "Equal"] | None = None
    """How key and value relate to the taint. Equal if not set."""
    value: LabelValue | None = None
    """Value of the taint, with operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Every effect if not set."""
    toleration_seconds: Annotated[int, Field(ge=0, le=2_147_483_647)] | None = None
    """How long a NoExecute taint is tolerated. For ever if not set."""


class Affinity(ApiModel):
    """Scheduling constraints, as in a pod."""

    node_affinity: AsNodeAffinity | None = None
    """Rules about labels of nodes, as in a pod. Requirements from gpu are added to each term."""
    pod_affinity: AsPodAffinity | None = None
    """Rules about pods to be near to, all that a pod can say. Checked when the Deployment is
    written: the condition Ready tells what is wrong."""
    pod_anti_affinity: AsPodAffinity | None = None
    """Rules about pods to be apart from, in the same way."""


class TopologySpreadConstraint(ApiModel):
    """How the pods spread over nodes, zones and so on, as in a pod."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.minDomains) || self.whenUnsatisfiable == 'DoNotSchedule'",
                "minDomains belongs to whenUnsatisfiable DoNotSchedule: set it, or remove"
                " minDomains",
            ),
            (
                "!has(self.matchLabelKeys) || self.matchLabelKeys.all(key, has(self.labelSelector)"
                " ? !(key in self.labelSelector.?matchLabels.orValue({})"
                " || (has(self.labelSelector.matchExpressions)"
                " && self.labelSelector.matchExpressions.exists(each, each.key == key)))"
                " : !(key in ['app.kubernetes.io/name', 'app.kubernetes.io/instance']))",
                "a key of matchLabelKeys stands in the labelSelector already: remove it from one"
                " of them",
            ),
        )
    )

    max_skew: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Most pods that one domain may have more than another."""
    topology_key: LabelKey
    """Node label whose values are the domains, for example topology.kubernetes.io/zone."""
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    """Whether a pod waits or is placed anyway where the constraint cannot be met."""
    label_selector: AsLabelSelector | None = None
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
    key: ConfigKey
    """Key in its data."""
    optional: bool | None = None
    """Start without the variable when object or key does not exist."""


class FieldSelector(ApiModel):
    """A field of the pod."""

    field_path: Annotated[str, StringConstraints(max_length=350, pattern=_FIELD_PATH)]
    """Path of the field: metadata.name, namespace, uid, labels['KEY'] or annotations['KEY'],
    spec.nodeName or serviceAccountName, status.hostIP, hostIPs, podIP or podIPs."""


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

    name: Annotated[str, StringConstraints(max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Name of the variable."""
    value: Annotated[str, StringConstraints(max_length=32768)] | None = None
    """Value of the variable."""
    value_from: EnvVarSource | None = None
    """Where the value comes from instead."""
