"""The part of the API about who reaches the pods: Service, NetworkPolicy, monitoring.

Knows what a user may write. Does not know the objects that come of it (exposures).
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from llm_operator.fields import KEYS, AnnotationValue, ApiModel, LabelKey, LabelValue, rules
from llm_operator.selectors import AsEgressRule, AsPeer


class Service(ApiModel):
    """The Service in front of the pods."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """How it is reached: from inside the cluster, or from outside too."""
    port: Annotated[int, Field(ge=1, le=65535)] = 80
    """Port of the Service."""
    annotations: (
        Annotated[
            dict[LabelKey, AnnotationValue], Field(max_length=32, json_schema_extra=rules(KEYS))
        ]
        | None
    ) = None
    """Annotations, for example for the cloud's load balancer."""


class NetworkPolicy(ApiModel):
    """Who may talk to the pods, and to whom they may talk."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.enabled || !(has(self.ingressFrom) || has(self.egress))",
                "without a NetworkPolicy everybody may connect, whatever networkPolicy.ingressFrom"
                " and egress say: remove them, or set networkPolicy.enabled to true",
            )
        )
    )

    enabled: bool = True
    """Whether there is a NetworkPolicy. With it the pods take connections on the serving port
    alone and, unless the model is downloaded from a hub, open none."""
    ingress_from: Annotated[tuple[AsPeer, ...], Field(max_length=16)] = ()
    """Peers that may connect to the serving port, as in a NetworkPolicy. Everybody if not set. The
    operator always may."""
    egress: Annotated[tuple[AsEgressRule, ...], Field(max_length=16)] = ()
    """Further connections that the pods may open, as rules of a NetworkPolicy."""


class Monitoring(ApiModel):
    """How Prometheus finds the pods."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.enabled || !(has(self.interval) || has(self.labels))",
                "monitoring.interval and labels are those of a PodMonitor: set monitoring.enabled"
                " to true, or remove them",
            )
        )
    )

    enabled: bool = False
    """Whether there is a PodMonitor. Its API must be there: install the Prometheus Operator."""
    interval: (
        Annotated[str, StringConstraints(max_length=8, pattern=r"^[1-9][0-9]*(s|m)$")] | None
    ) = None
    """Time between two scrapes, as in 15s. 30s if not set."""
    labels: (
        Annotated[dict[LabelKey, LabelValue], Field(max_length=16, json_schema_extra=rules(KEYS))]
        | None
    ) = None
    """Labels by which Prometheus selects PodMonitors."""
