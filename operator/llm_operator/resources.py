"""The kinds of objects that the operator deals with, and where the API server keeps them. Pure."""

from dataclasses import dataclass
from urllib.parse import quote

from llm_operator import api


@dataclass(frozen=True)
class Resource:
    """A kind of namespaced object and where the API server keeps it."""

    api_version: str
    kind: str
    plural: str

    def path(self, namespace: str, name: str = "") -> str:
        """Path of the object, or of the collection without a name or without a namespace."""
        path = f"/apis/{self.api_version}" if "/" in self.api_version else "/api/v1"
        if namespace:
            path += f"/namespaces/{quote(namespace)}"
        path += f"/{self.plural}"
        return f"{path}/{quote(name)}" if name else path


LLM_DEPLOYMENT = Resource(api.API_VERSION, api.KIND, api.PLURAL)
DEPLOYMENT = Resource("apps/v1", "Deployment", "deployments")
SERVICE = Resource("v1", "Service", "services")
POD = Resource("v1", "Pod", "pods")
NODE = Resource("v1", "Node", "nodes")
EVENT = Resource("v1", "Event", "events")
SECRET = Resource("v1", "Secret", "secrets")
CONFIG_MAP = Resource("v1", "ConfigMap", "configmaps")
PERSISTENT_VOLUME_CLAIM = Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
NETWORK_POLICY = Resource("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
POD_DISRUPTION_BUDGET = Resource("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
HORIZONTAL_POD_AUTOSCALER = Resource(
    "autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"
)
SCALED_OBJECT = Resource("keda.sh/v1alpha1", "ScaledObject", "scaledobjects")
POD_MONITOR = Resource("monitoring.coreos.com/v1", "PodMonitor", "podmonitors")

OPTIONAL = frozenset({SCALED_OBJECT, POD_MONITOR})
"""Kinds that a cluster has only if something else is installed."""
OWNED = (
    DEPLOYMENT,
    SERVICE,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    HORIZONTAL_POD_AUTOSCALER,
    SCALED_OBJECT,
    POD_MONITOR,
)
"""Kinds of which an LLMDeployment may have one object, that carries its name."""
