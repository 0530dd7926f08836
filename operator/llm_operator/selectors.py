"""What is written as in Kubernetes and passed on word for word: selectors, affinity, peers.

The models give such parts a schema, so that `kubectl apply` refuses what the Deployment or the
NetworkPolicy would refuse later. Inside the operator they stay plain objects: nothing is lost or
added on the way. Knows their fields and rules. Does not know where they end up.

Affinity to pods has no schema: nobody reads it here, and twice its four selectors would be a sixth
of the CRD. It is kept whole, whatever the version of Kubernetes has in it, and the API server
checks it when the Deployment is written: what it refuses is told in the status.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema

from llm_operator.fields import (
    KEYS,
    ApiModel,
    LabelKey,
    LabelValue,
    ObjectName,
    rules,
)
from llm_operator.schema import structural

_PORT_NAME = r"^([0-9]+-)*[0-9]*[a-z][a-z0-9]*(-[a-z0-9]+)*$"


def as_written(model: type[BaseModel]) -> WithJsonSchema:
    """Marks a plain object that the API server checks by the schema of `model`."""
    return WithJsonSchema(structural(model))


class LabelRequirement(ApiModel):
    """A requirement on one label."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "(self.operator in ['In', 'NotIn']) == has(self.values)",
                "operators In and NotIn need values, others take none",
            )
        )
    )

    key: LabelKey
    """Key of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How it compares."""
    values: Annotated[tuple[LabelValue, ...], Field(min_length=1, max_length=32)] | None = None
    """Values of the label."""


class LabelSelector(ApiModel):
    """Selects by labels. An empty one selects everything."""

    match_labels: (
        Annotated[dict[LabelKey, LabelValue], Field(max_length=16, json_schema_extra=rules(KEYS))]
        | None
    ) = None
    """Labels that must be there."""
    match_expressions: Annotated[tuple[LabelRequirement, ...], Field(max_length=16)] | None = None
    """Further requirements."""


class NodeRequirement(ApiModel):
    """A requirement on one label of a node."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "(self.operator in ['Exists', 'DoesNotExist']) != has(self.values)"
                " && (!(self.operator in ['Gt', 'Lt']) || !has(self.values)"
                " || self.values.size() == 1 && self.values[0].matches('^[0-9]+$'))",
                "operators In and NotIn need values, Gt and Lt one whole number, others take none",
            )
        )
    )

    key: LabelKey
    """Key of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How it compares."""
    values: Annotated[tuple[LabelValue, ...], Field(min_length=1, max_length=32)] | None = None
    """Values of the label."""


class NodeNameRequirement(ApiModel):
    """A requirement on the name of a node."""

    key: Literal["metadata.name"]
    """Field of the node: its name."""
    operator: Literal["In", "NotIn"]
    """How it compares."""
    values: Annotated[tuple[ObjectName, ...], Field(min_length=1, max_length=1)]
    """The name."""


class NodeTerm(ApiModel):
    """A node fits if it meets all requirements. A term without any fits no node."""

    match_expressions: Annotated[tuple[NodeRequirement, ...], Field(max_length=16)] | None = None
    """Requirements on labels."""
    match_fields: Annotated[tuple[NodeNameRequirement, ...], Field(max_length=16)] | None = None
    """Requirements on the name."""


class RequiredNodes(ApiModel):
    """Nodes that may be used."""

    node_selector_terms: Annotated[tuple[NodeTerm, ...], Field(min_length=1, max_length=8)]
    """Alternatives, of which one must fit."""


Weight = Annotated[int, Field(ge=1, le=100)]


class PreferredNodes(ApiModel):
    """Nodes that are better than others."""

    weight: Weight
    """How much better."""
    preference: NodeTerm
    """Which nodes."""


class NodeAffinity(ApiModel):
    """Rules about nodes."""

    required_during_scheduling_ignored_during_execution: RequiredNodes | None = None
    """Nodes that may be used."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[tuple[PreferredNodes, ...], Field(max_length=8)] | None
    ) = None
    """Nodes that are better than others."""


class IpBlock(ApiModel):
    """A range of addresses."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "isCIDR(self.cidr) && cidr(self.cidr) == cidr(self.cidr).masked()"
                " && (!has(self.except) || self.except.all(each, isCIDR(each)"
                " && cidr(each) == cidr(each).masked() && cidr(self.cidr).containsCIDR(each)"
                " && cidr(each).prefixLength() > cidr(self.cidr).prefixLength()))",
                "cidr is a network such as 10.0.0.0/8, except names smaller ones within it",
            )
        )
    )

    cidr: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    """The range."""
    except_: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=64)], ...],
        Field(max_length=16, alias="except"),
    ] = ()
    """Ranges within it that are left out."""


class Peer(ApiModel):
    """Who is at the other end of a connection."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.ipBlock) != (has(self.podSelector) || has(self.namespaceSelector))",
                "a peer is an ipBlock, or else a podSelector, a namespaceSelector or both",
            )
        )
    )

    pod_selector: LabelSelector | None = None
    """Pods, by their labels: of the own namespace, or of those that namespaceSelector names."""
    namespace_selector: LabelSelector | None = None
    """Namespaces, by their labels."""
    ip_block: IpBlock | None = None
    """Addresses outside of the cluster."""


class EgressPort(ApiModel):
    """A port, or a range of ports."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.endPort) || (has(self.port) && type(self.port) == int"
                " && self.port <= self.endPort)",
                "endPort ends a range that begins with the number in port: set port to a number"
                " that is not greater",
            )
        )
    )

    port: (
        Annotated[
            int | str,
            WithJsonSchema(
                {
                    "x-kubernetes-int-or-string": True,
                    "minimum": 1,
                    "maximum": 65535,
                    "pattern": _PORT_NAME,
                    "maxLength": 15,
                }
            ),
        ]
        | None
    ) = None
    """Number or name of the port. Every port if not set."""
    end_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Last port of the range."""
    protocol: Literal["TCP", "UDP", "SCTP"] | None = None
    """Protocol. TCP if not set."""


class EgressRule(ApiModel):
    """Connections that pods may open."""

    to: Annotated[tuple[Peer, ...], Field(max_length=16)] | None = None
    """Whom they reach. Everybody if not set."""
    ports: Annotated[tuple[EgressPort, ...], Field(max_length=16)] | None = None
    """Ports that they reach. Every port if not set."""


AsPeer = Annotated[dict[str, Any], as_written(Peer)]
AsEgressRule = Annotated[dict[str, Any], as_written(EgressRule)]
AsNodeAffinity = Annotated[dict[str, Any], as_written(NodeAffinity)]
AsPodAffinity = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]
AsLabelSelector = Annotated[dict[str, Any], as_written(LabelSelector)]
