"""The part of the API about who reaches the pods: Service, NetworkPolicy, monitoring.

Knows what a user may write. Does not know the objects that come of it (objects).
"""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from llm_operator.fields import AnnotationValue, ApiModel, LabelKey, LabelValue

_PASSED_THROUGH: dict[str, Any] = {"x-kubernetes-preserve-unknown-fields": True}

Rule = Annotated[dict[str, Any], Field(json_schema_extra=_PASSED_THROUGH)]


class Service(ApiModel):
    """The Service in front of the pods."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """How it is reached: from inside the cluster, or from outside too."""
    port: Annotated[int, Field(ge=1, le=65535)] = 80
    """Port of the Service."""
    annotations: Annotated[dict[LabelKey, AnnotationValue], Field(max_length=32)] | None = None
    """Annotations, for example for the cloud's load balancer."""


class NetworkPolicy(ApiModel):
    """Who may talk to the pods, and to whom they may talk."""

    enabled: bool = True
    """Whether there is a NetworkPolicy. With it the pods take connections on the serving port
    alone and, unless the model is downloaded from a hub, open none."""
    ingress_from: Annotated[tuple[Rule, ...], Field(max_length=16)] = ()
    """Peers that may connect to the serving port, as in a NetworkPolicy. Everybody if not set. The
    operator always may."""
    egress: Annotated[tuple[Rule, ...], Field(max_length=16)] = ()
    """Further connections that the pods may open, as rules of a NetworkPolicy."""


class Monitoring(ApiModel):
    """How Prometheus finds the pods."""

    enabled: bool = False
    """Whether there is a PodMonitor. Its API must be there: install the Prometheus Operator."""
    interval: Annotated[str, StringConstraints(max_length=8, pattern=r"^[1-9][0-9]*(s|m)$")] = "30s"
    """Time between two scrapes."""
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] | None = None
    """Labels by which Prometheus selects PodMonitors."""
