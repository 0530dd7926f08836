"""Names, labels and annotations by which the operator knows its objects again. Pure.

Selectors are for ever: a Deployment keeps the one it was made with.
"""

from llm_operator.api import GROUP, LLMDeployment

MANAGER = "llm-operator"
APP = "llm-inference"

CONTAINER = "server"
PORT_NAME = "http"
PORT = 8080
_HTTP_PORT = 80

NAME_LABEL = "app.kubernetes.io/name"
INSTANCE_LABEL = "app.kubernetes.io/instance"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
TARGET_LABEL = f"{GROUP}/target"
TEMPLATE_LABEL = f"{GROUP}/template"
"""Digest of the pod template: tells the pods of the current generation from older ones."""
APPLIED_ANNOTATION = f"{GROUP}/applied"
"""Digest of all that the operator says of an object: tells when it says less than before."""
REVISION_LABEL = "pod-template-hash"
"""Kubernetes' own, of the pods of a Deployment: which of its templates they were made from."""
CONFIG_ANNOTATION = f"{GROUP}/config"
"""Digest of the Secrets and ConfigMaps that a pod reads when it starts."""

OPERATOR_SELECTOR = {
    "app.kubernetes.io/component": "operator",
    "app.kubernetes.io/part-of": "llm-operator",
}
"""Labels of the operator's own pods, whatever name the chart was installed under."""


def labels(name: str) -> dict[str, str]:
    """Labels of every object of the LLMDeployment `name`."""
    return {
        **selector(name),
        "app.kubernetes.io/component": "server",
        "app.kubernetes.io/part-of": "llm-operator",
        MANAGED_BY_LABEL: MANAGER,
    }


def selector(name: str) -> dict[str, str]:
    """Labels that select the pods of the LLMDeployment `name`."""
    return {NAME_LABEL: APP, INSTANCE_LABEL: name}


def endpoint(cr: LLMDeployment) -> str:
    """Address of the Service inside the cluster."""
    host, port = f"{cr.metadata.name}.{cr.metadata.namespace}.svc", cr.spec.service.port
    return f"http://{host}" if port == _HTTP_PORT else f"http://{host}:{port}"
