"""The objects of an LLMDeployment, as plain dicts for server-side apply. Pure.

Knows the pod: container, probes, volumes, security, life cycle. The hardware and image are chosen
before (hardware, images), writing is somebody else's work (kube).

A pod template depends on the spec, the chosen hardware and image, and nothing else: not on the
operator's version, not on time. A golden test holds it, for a changed template restarts every pod.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from llm_operator import api, hardware
from llm_operator.api import Gpu, LLMDeployment, LLMDeploymentSpec, Probes, Target
from llm_operator.fields import ApiModel, LocalReference, PullPolicy

Manifest = dict[str, Any]

MANAGER = "llm-operator"
CONTAINER = "server"
PORT = 8080
SERVICE_PORT = 80
MODEL_DIR = "/model"

NAME_LABEL = "app.kubernetes.io/name"
INSTANCE_LABEL = "app.kubernetes.io/instance"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
TARGET_LABEL = f"{api.GROUP}/target"
TEMPLATE_LABEL = f"{api.GROUP}/template"
"""Digest of the pod template: tells the pods of the current generation from older ones."""

APP = "llm-inference"

_VERBATIM = ("affinity",)
"""What users pass through: there an empty selector says something, namely everything."""

_USER = 65532
_PRE_STOP_SECONDS = 5
"""How long a stopping pod still serves, until no proxy sends to it any more."""
_STOP_MARGIN_SECONDS = 5
_PULL_MARGIN_SECONDS = 600
"""Time for pulling images before a rollout counts as stuck, on top of the startup budget."""


def labels(name: str) -> dict[str, str]:
    """Labels of every object of the LLMDeployment `name`."""
    return {
        **selector(name),
        "app.kubernetes.io/component": "server",
        "app.kubernetes.io/part-of": "llm-operator",
        MANAGED_BY_LABEL: MANAGER,
    }


def selector(name: str) -> dict[str, str]:
    """Labels that select the pods of the LLMDeployment `name`; a Deployment keeps them for ever."""
    return {NAME_LABEL: APP, INSTANCE_LABEL: name}


def endpoint(cr: LLMDeployment) -> str:
    """Address of the Service inside the cluster."""
    return f"http://{cr.metadata.name}.{cr.metadata.namespace}.svc"


def deployment(
    cr: LLMDeployment,
    *,
    target: Target,
    image: str,
    pull_policy: PullPolicy | None = None,
    pull_secrets: tuple[LocalReference, ...] = (),
) -> Manifest:
    """The Deployment that serves `cr` on `target` from `image`.

    `pull_policy` and `pull_secrets` apply where the spec says nothing.
    """
    spec = cr.spec
    template = {
        "metadata": {"labels": labels(cr.metadata.name) | {TARGET_LABEL: target}},
        "spec": _pod(
            spec,
            target=target,
            image=image,
            pull_policy=spec.image.pull_policy or pull_policy,
            pull_secrets=spec.image.pull_secrets or pull_secrets,
        ),
    }
    template["metadata"]["labels"][TEMPLATE_LABEL] = _digest(template)
    return _pruned(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": _metadata(cr),
            "spec": {
                "replicas": spec.replicas,
                "selector": {"matchLabels": selector(cr.metadata.name)},
                "strategy": _strategy(target),
                "progressDeadlineSeconds": spec.probes.startup_budget_seconds
                + _PULL_MARGIN_SECONDS,
                "revisionHistoryLimit": 3,
                "template": template,
            },
        }
    )


def service(cr: LLMDeployment) -> Manifest:
    """The Service in front of the ready pods."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(cr),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(cr.metadata.name),
            "ports": [
                {
                    "name": "http",
                    "port": SERVICE_PORT,
                    "protocol": "TCP",
                    "targetPort": "http",
                    "appProtocol": "http",
                }
            ],
        },
    }


def template_digest(manifest: Mapping[str, Any]) -> str | None:
    """Digest of the pod template of a Deployment, as its pods carry it."""
    template = manifest.get("spec", {}).get("template", {})
    digest: str | None = template.get("metadata", {}).get("labels", {}).get(TEMPLATE_LABEL)
    return digest


def _metadata(cr: LLMDeployment) -> Manifest:
    return {
        "name": cr.metadata.name,
        "namespace": cr.metadata.namespace,
        "labels": labels(cr.metadata.name),
        "ownerReferences": [
            {
                "apiVersion": api.API_VERSION,
                "kind": api.KIND,
                "name": cr.metadata.name,
                "uid": cr.metadata.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def _strategy(target: Target) -> Manifest:
    """A CPU rollout never has fewer pods than before; a GPU rollout never needs a second GPU."""
    surge, unavailable = (0, 1) if target == "gpu" else (1, 0)
    return {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable},
    }


def _pod(
    spec: LLMDeploymentSpec,
    *,
    target: Target,
    image: str,
    pull_policy: PullPolicy | None,
    pull_secrets: tuple[LocalReference, ...],
) -> Manifest:
    gpu = (spec.gpu or Gpu()) if target == "gpu" else None
    tolerations = [*spec.tolerations, *([hardware.gpu_toleration(gpu)] if gpu else [])]
    return {
        "automountServiceAccountToken": False,
        # A Service named llm would otherwise set LLM_PORT in every pod of the namespace.
        "enableServiceLinks": False,
        "serviceAccountName": spec.service_account_name,
        "priorityClassName": spec.priority_class_name,
        "runtimeClassName": gpu.runtime_class_name if gpu else None,
        "imagePullSecrets": [_dump(secret) for secret in pull_secrets],
        "nodeSelector": spec.node_selector,
        "tolerations": [_dump(toleration) for toleration in tolerations],
        "affinity": _affinity(spec, gpu),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": _PRE_STOP_SECONDS
        + spec.server.drain_seconds
        + _STOP_MARGIN_SECONDS,
        "containers": [_container(spec, gpu=gpu, image=image, pull_policy=pull_policy)],
        "volumes": _volumes(spec, gpu),
    }


def _affinity(spec: LLMDeploymentSpec, gpu: Gpu | None) -> Manifest:
    members = {
        "nodeAffinity": hardware.node_affinity(
            spec.affinity.node_affinity, hardware.gpu_requirements(gpu) if gpu else []
        ),
        "podAffinity": spec.affinity.pod_affinity,
        "podAntiAffinity": spec.affinity.pod_anti_affinity,
    }
    return {name: member for name, member in members.items() if member}


def _container(
    spec: LLMDeploymentSpec, *, gpu: Gpu | None, image: str, pull_policy: PullPolicy | None
) -> Manifest:
    return {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": pull_policy,
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "env": _env(spec),
        "resources": _resources(spec, gpu),
        **_probes(spec.probes),
        "lifecycle": {"preStop": {"sleep": {"seconds": _PRE_STOP_SECONDS}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        # The server's last words say why it stopped; they become the message of a condition.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(spec, gpu),
    }


def _resources(spec: LLMDeploymentSpec, gpu: Gpu | None) -> Manifest:
    limits = dict(spec.resources.limits or {})
    if gpu:
        limits[gpu.resource_name] = gpu.count
    return {
        "requests": {name: str(amount) for name, amount in (spec.resources.requests or {}).items()},
        "limits": {name: str(amount) for name, amount in limits.items()},
    }


def _env(spec: LLMDeploymentSpec) -> list[Manifest]:
    """The server's settings. What the user leaves open is left to the server."""
    model, server = spec.model, spec.server
    values = {
        "LLM_MODEL_ID": model.id,
        "LLM_MODEL_REVISION": model.revision,
        "LLM_MODEL_DIR": MODEL_DIR,
        "LLM_SERVED_NAME": model.served_name,
        "LLM_TASK": model.task,
        "LLM_DTYPE": model.dtype,
        "LLM_MAX_LENGTH": model.max_length,
        "LLM_MAX_CONCURRENCY": server.max_concurrency,
        "LLM_MAX_QUEUE": server.max_queue,
        "LLM_REQUEST_TIMEOUT_SECONDS": server.request_timeout_seconds,
        "LLM_DRAIN_SECONDS": server.drain_seconds,
        "LLM_LOG_LEVEL": server.log_level,
    }
    env: list[Manifest] = [
        {"name": name, "value": str(value)} for name, value in values.items() if value is not None
    ]
    if "cpu" in (spec.resources.limits or {}):
        limit = {"containerName": CONTAINER, "resource": "limits.cpu", "divisor": "1"}
        env.append({"name": "LLM_THREADS", "valueFrom": {"resourceFieldRef": limit}})
    return env + [_dump(variable) for variable in server.env]


def _probes(probes: Probes) -> Manifest:
    """Startup waits for the model, readiness follows the server, liveness asks for the process."""
    return {
        "startupProbe": {
            **_get("/startupz"),
            "periodSeconds": probes.startup_period_seconds,
            "timeoutSeconds": 2,
            "failureThreshold": math.ceil(
                probes.startup_budget_seconds / probes.startup_period_seconds
            ),
        },
        "readinessProbe": {
            **_get("/readyz"),
            "periodSeconds": probes.readiness_period_seconds,
            "timeoutSeconds": 2,
            "failureThreshold": 3,
        },
        "livenessProbe": {
            **_get("/livez"),
            "periodSeconds": probes.liveness_period_seconds,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
    }


def _get(path: str) -> Manifest:
    return {"httpGet": {"path": path, "port": "http"}}


def _volumes(spec: LLMDeploymentSpec, gpu: Gpu | None) -> list[Manifest]:
    volumes: list[Manifest] = [{"name": "tmp", "emptyDir": {}}]
    if _shares_memory(gpu):
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
    source = spec.model.source
    if source.image:
        volumes.append({"name": "model", "image": _dump(source.image)})
    elif source.persistent_volume_claim:
        claim = source.persistent_volume_claim.claim_name
        volumes.append(
            {"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        )
    return volumes


def _mounts(spec: LLMDeploymentSpec, gpu: Gpu | None) -> list[Manifest]:
    mounts: list[Manifest] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108
    if _shares_memory(gpu):
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108
    source = spec.model.source
    if source.image or source.persistent_volume_claim:
        claim = source.persistent_volume_claim
        mounts.append(
            {
                "name": "model",
                "mountPath": MODEL_DIR,
                "readOnly": True,
                "subPath": claim.path if claim else None,
            }
        )
    return mounts


def _shares_memory(gpu: Gpu | None) -> bool:
    """GPUs of one pod exchange data through shared memory, of which a container has but 64 MB."""
    return gpu is not None and gpu.count > 1


def _dump(model: ApiModel) -> Manifest:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _digest(template: Manifest) -> str:
    """Ten hexadecimal digits over the pruned template."""
    canonical = json.dumps(_pruned(template), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def _pruned(node: Manifest) -> Manifest:
    """`node` without what is not said: None, and objects and lists that are left empty."""
    said = {
        name: child if name in _VERBATIM else _pruned_child(child) for name, child in node.items()
    }
    return {
        name: child
        for name, child in said.items()
        if child is not None and (child not in ({}, []) or name == "emptyDir")
    }


def _pruned_child(child: object) -> object:
    if isinstance(child, dict):
        return _pruned(child)
    if isinstance(child, list):
        return [_pruned_child(item) for item in child]
    return child
