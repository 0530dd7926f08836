"""Pod starts on the development cluster: from `kubectl create` to the pod's condition Ready.

The image is on the node. Pods are the bench's own, with a readiness probe each second, so that all
variants are started in the same way. Knows pods and namespaces; does not know what is compared.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.image.variants import Variant
from dev.cluster.kubectl import apply, kubectl

NAMESPACE = "bench-image"
READY_WITHIN = 180
PORT = 8080


@contextmanager
def namespace() -> Iterator[None]:
    """A namespace for the pods, removed with all in it."""
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    try:
        yield
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", timeout=180)


def measure(variant: Variant, hub: str) -> float:
    """Seconds from the creation of a pod of a variant's cpu image until it is Ready.

    Args:
        variant: whose image.
        hub: an address of the hub that pods reach.

    Raises:
        ClusterError: It did not become Ready.
    """
    pod = manifest(variant, hub)
    name = pod["metadata"]["name"]
    began = time.perf_counter()
    try:
        kubectl("create", "-f", "-", text=json.dumps(pod))
        waits = ("--for=condition=Ready", f"--timeout={READY_WITHIN}s")
        kubectl("wait", f"pod/{name}", "-n", NAMESPACE, *waits, timeout=READY_WITHIN + 20)
        return time.perf_counter() - began
    finally:
        ends = ("--ignore-not-found", "--grace-period=1")
        kubectl("delete", "pod", name, "-n", NAMESPACE, *ends, timeout=180)


def manifest(variant: Variant, hub: str) -> dict[str, Any]:
    """A pod that serves the model from a variant's cpu image."""
    container: dict[str, Any] = {
        "name": "server",
        "image": variant.image("cpu").reference,
        "imagePullPolicy": "Never",
        "env": [{"name": n, "value": v} for n, v in variant.settings(hub).items()],
        "ports": [{"containerPort": PORT}],
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": PORT},
            "periodSeconds": 1,
            "timeoutSeconds": 2,
        },
    }
    spec: dict[str, Any] = {
        "containers": [container],
        "restartPolicy": "Never",
        # The variables of Services could look like settings of the server.
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
    }
    if variant.read_only:
        container["securityContext"] = {"readOnlyRootFilesystem": True}
        container["volumeMounts"] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - of the pod
        spec["volumes"] = [{"name": "tmp", "emptyDir": {}}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": variant.name, "namespace": NAMESPACE},
        "spec": spec,
    }
