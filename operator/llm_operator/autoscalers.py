"""What changes the number of replicas: HorizontalPodAutoscaler or KEDA's ScaledObject. Pure.

Both scale the LLMDeployment itself, by its scale subresource: what they write is spec.replicas, and
the operator passes it on. So nobody has to agree on who owns the replicas of the Deployment.
"""

from llm_operator import api
from llm_operator.api import LLMDeployment
from llm_operator.manifest import Manifest
from llm_operator.scaling import Autoscaling

_CPU_PERCENT = 80
_POD_METRICS = {
    "runningRequests": "vllm_num_requests_running",
    "waitingRequests": "vllm_num_requests_waiting",
}


def horizontal_pod_autoscaler(cr: LLMDeployment) -> Manifest | None:
    """The HorizontalPodAutoscaler of `cr`, if it wants one."""
    scaling = cr.spec.autoscaling
    if scaling is None or cr.spec.suspend or scaling.metric.type == "prometheus":
        return None
    delay = {"stabilizationWindowSeconds": scaling.scale_down_delay_seconds}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "spec": {
            "scaleTargetRef": _target(cr),
            "minReplicas": scaling.min_replicas,
            "maxReplicas": scaling.max_replicas,
            "metrics": [_metric(scaling)],
            "behavior": {"scaleDown": delay},
        },
    }


def _metric(scaling: Autoscaling) -> Manifest:
    metric = scaling.metric
    if metric.type == "cpu":
        target = {"type": "Utilization", "averageUtilization": metric.target or _CPU_PERCENT}
        return {"type": "Resource", "resource": {"name": "cpu", "target": target}}
    return {
        "type": "Pods",
        "pods": {
            "metric": {"name": _POD_METRICS[metric.type]},
            "target": {"type": "AverageValue", "averageValue": str(metric.target)},
        },
    }


def scaled_object(cr: LLMDeployment) -> Manifest | None:
    """The ScaledObject of `cr`, if it scales by a query."""
    scaling = cr.spec.autoscaling
    if scaling is None or cr.spec.suspend or scaling.metric.type != "prometheus":
        return None
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "spec": {
            "scaleTargetRef": _target(cr),
            "minReplicaCount": scaling.min_replicas,
            "maxReplicaCount": scaling.max_replicas,
            # A pod that still loads its model does not make what it is for go down: without time
            # to finish, it would be stopped before it ever served.
            "cooldownPeriod": max(
                scaling.scale_down_delay_seconds, cr.spec.probes.startup_budget_seconds
            ),
            "advanced": {
                "horizontalPodAutoscalerConfig": {
                    "behavior": {
                        "scaleDown": {
                            "stabilizationWindowSeconds": scaling.scale_down_delay_seconds
                        }
                    }
                }
            },
            "triggers": [
                {
                    "type": "prometheus",
                    "metadata": {
                        "serverAddress": scaling.metric.server_address,
                        "query": scaling.metric.query,
                        "threshold": str(scaling.metric.target),
                    },
                }
            ],
        },
    }


def _target(cr: LLMDeployment) -> Manifest:
    return {"apiVersion": api.API_VERSION, "kind": api.KIND, "name": cr.metadata.name}
