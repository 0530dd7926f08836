"""What stands in front of the pods: Service, NetworkPolicy, PodMonitor, PodDisruptionBudget. Pure.

Knows who may reach the pods and who looks at them. Does not know the pods (podtemplate).
"""

from urllib.parse import urlsplit

from llm_operator import names
from llm_operator.api import LLMDeployment
from llm_operator.manifest import Manifest

_DNS_PORT = 53
_SCRAPE_INTERVAL = "30s"
_NAMESPACE_LABEL = "kubernetes.io/metadata.name"


def service(cr: LLMDeployment) -> Manifest:
    """The Service in front of the ready pods."""
    wanted = cr.spec.service
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"annotations": wanted.annotations},
        "spec": {
            "type": wanted.type,
            "selector": names.selector(cr.metadata.name),
            "ports": [
                {
                    "name": names.PORT_NAME,
                    "port": wanted.port,
                    "protocol": "TCP",
                    "targetPort": names.PORT_NAME,
                    "appProtocol": "http",
                }
            ],
        },
    }


def network_policy(cr: LLMDeployment, operator_namespace: str | None) -> Manifest | None:
    """The NetworkPolicy of the pods, if `cr` wants one.

    Args:
        cr: The object.
        operator_namespace: Where the operator runs, which asks pods what they run on; None if it
            runs outside of the cluster.
    """
    policy = cr.spec.network_policy
    if not policy.enabled:
        return None
    serving: Manifest = {"ports": [{"port": names.PORT_NAME, "protocol": "TCP"}]}
    if policy.ingress_from:
        serving["from"] = [*policy.ingress_from, *_operator(operator_namespace)]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "spec": {
            "podSelector": {"matchLabels": names.selector(cr.metadata.name)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [serving],
            "egress": [*_to_hub(cr), *policy.egress],
        },
    }


def _operator(namespace: str | None) -> list[Manifest]:
    if namespace is None:
        return []
    return [
        {
            "namespaceSelector": {"matchLabels": {_NAMESPACE_LABEL: namespace}},
            "podSelector": {"matchLabels": names.OPERATOR_SELECTOR},
        }
    ]


def _to_hub(cr: LLMDeployment) -> list[Manifest]:
    """Name resolution and the hub's port: a policy cannot name a host outside of the cluster."""
    hub = cr.spec.model.source.hub
    if hub is None:
        return []
    dns = [{"port": _DNS_PORT, "protocol": protocol} for protocol in ("UDP", "TCP")]
    # The public hub sends large files from other hosts, all of them by https.
    ports = {443, _port(hub.endpoint)} if hub.endpoint else {443}
    return [
        {"ports": dns},
        {"ports": [{"port": port, "protocol": "TCP"} for port in sorted(ports)]},
    ]


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (80 if parts.scheme == "http" else 443)


def pod_monitor(cr: LLMDeployment) -> Manifest | None:
    """The PodMonitor of the pods, if `cr` wants one."""
    monitoring = cr.spec.monitoring
    if not monitoring.enabled:
        return None
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {"labels": monitoring.labels},
        "spec": {
            "selector": {"matchLabels": names.selector(cr.metadata.name)},
            "podMetricsEndpoints": [
                {
                    "port": names.PORT_NAME,
                    "path": "/metrics",
                    "interval": monitoring.interval or _SCRAPE_INTERVAL,
                }
            ],
        },
    }


def pod_disruption_budget(cr: LLMDeployment) -> Manifest | None:
    """Lets a drain stop one pod at a time; none for a single pod, which it would never let go."""
    if cr.spec.suspend or cr.spec.replicas <= 1:
        return None
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "spec": {
            "maxUnavailable": 1,
            # A pod that does not serve anyway must not keep a node from being drained.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": names.selector(cr.metadata.name)},
        },
    }
