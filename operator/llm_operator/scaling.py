"""The part of the API about the number of replicas when it is not fixed.

Knows what can be scaled by, and between which bounds. Does not know the objects of an autoscaler
(autoscalers).
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from llm_operator.fields import ApiModel, Url, rules


class ScalingMetric(ApiModel):
    """What the number of replicas follows."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.type == 'cpu' || has(self.target)",
                "autoscaling.metric.target is required for every type but cpu: set what one"
                " replica should have on average",
            ),
            (
                "self.type != 'cpu' || !has(self.target) || self.target <= 1000",
                "autoscaling.metric.target of type cpu is a percentage of resources.requests.cpu:"
                " use at most 1000",
            ),
            (
                "(self.type == 'prometheus') == (has(self.serverAddress) && has(self.query))"
                " && has(self.serverAddress) == has(self.query)",
                "autoscaling.metric.serverAddress and query belong to type prometheus, which needs"
                " both",
            ),
        )
    )

    type: Literal["cpu", "runningRequests", "waitingRequests", "prometheus"] = "cpu"
    """cpu: use of CPU in percent of resources.requests.cpu. runningRequests, waitingRequests: the
    server's own metrics vllm_num_requests_running and vllm_num_requests_waiting, averaged over the
    pods; the cluster must serve them as custom metrics. prometheus: the result of a query; KEDA
    must be installed."""
    target: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """What one replica should have on average. For cpu a percentage, 80 if not set."""
    server_address: Url | None = None
    """Address of Prometheus, for type prometheus."""
    query: Annotated[str, StringConstraints(min_length=1, max_length=2048)] | None = None
    """PromQL query whose result, divided by target, is the number of replicas, for type
    prometheus. To scale from zero it must count what waits outside of the pods."""


class Autoscaling(ApiModel):
    """Bounds for the number of replicas and what it follows. spec.replicas is then its result."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.minReplicas <= self.maxReplicas",
                "autoscaling.minReplicas exceeds autoscaling.maxReplicas: lower it or raise the"
                " maximum",
            ),
            (
                "self.minReplicas > 0 || (has(self.metric) && self.metric.type == 'prometheus')",
                "with autoscaling.minReplicas 0 nothing is left that could be measured in pods: use"
                " a metric of type prometheus, or set minReplicas to 1 or more",
            ),
        )
    )

    min_replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    """Least number of replicas. 0 needs a metric of type prometheus."""
    max_replicas: Annotated[int, Field(ge=1, le=10_000)]
    """Most replicas."""
    metric: ScalingMetric = ScalingMetric()
    """What the number follows. Use of CPU if not set."""
    scale_down_delay_seconds: Annotated[int, Field(ge=0, le=3600)] = 300
    """How long fewer replicas must have been enough before some are stopped. The last one is
    stopped after probes.startupBudgetSeconds at the earliest: it may still be loading."""
