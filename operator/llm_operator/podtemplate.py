"""The pods of an LLMDeployment: container, probes, life cycle, security, scheduling. Pure.

A pod template depends on the spec, the chosen hardware and image and the digest of the Secrets it
reads, and on nothing else: not on the operator's version, not on time. A golden test holds it, for
a changed template restarts every pod.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_operator import hardware, names
from llm_operator.api import Gpu, LLMDeploymentSpec, Probes
from llm_operator.fields import LocalReference, PullPolicy
from llm_operator.manifest import Manifest, digest, dump
from llm_operator.status import Target
from llm_operator.volumes import Files, files

_USER = 65532
_PRE_STOP_SECONDS = 5
"""How long a stopping pod still serves, until no proxy sends to it any more."""
_STOP_MARGIN_SECONDS = 5
_SPREAD_OVER = ("topology.kubernetes.io/zone", "kubernetes.io/hostname")


@dataclass(frozen=True)
class Choices:
    """What is decided about the pods before they are rendered."""

    target: Target
    image: str
    pull_policy: PullPolicy | None = None
    """Applies where the spec says nothing."""
    pull_secrets: tuple[LocalReference, ...] = ()
    """Apply where the spec says nothing."""
    config_digest: str | None = None
    """Digest of the Secrets and ConfigMaps that pods read when they start, if they read any."""


def template(name: str, spec: LLMDeploymentSpec, choices: Choices) -> Manifest:
    """The pod template of the LLMDeployment `name`."""
    metadata: Manifest = {
        "labels": {
            **(spec.pod_labels or {}),
            **names.labels(name),
            names.TARGET_LABEL: choices.target,
        }
    }
    annotations = dict(spec.pod_annotations or {})
    if choices.config_digest:
        annotations[names.CONFIG_ANNOTATION] = choices.config_digest
    if annotations:
        metadata["annotations"] = annotations
    result = {"metadata": metadata, "spec": _pod(name, spec, choices)}
    metadata["labels"][names.TEMPLATE_LABEL] = digest(result)
    return result


def digest_of(template_: Mapping[str, Any]) -> str | None:
    """Digest of a pod template, as its pods carry it."""
    found: str | None = template_.get("metadata", {}).get("labels", {}).get(names.TEMPLATE_LABEL)
    return found


def _pod(name: str, spec: LLMDeploymentSpec, choices: Choices) -> Manifest:
    gpu = (spec.gpu or Gpu()) if choices.target == "gpu" else None
    tolerations = [*spec.tolerations, *([hardware.gpu_toleration(gpu)] if gpu else [])]
    found = files(spec, gpu)
    return {
        "automountServiceAccountToken": False,
        # A Service named llm would otherwise set LLM_PORT in every pod of the namespace.
        "enableServiceLinks": False,
        "serviceAccountName": spec.service_account_name,
        "priorityClassName": spec.priority_class_name,
        "schedulerName": spec.scheduler_name,
        "runtimeClassName": gpu.runtime_class_name if gpu else None,
        "imagePullSecrets": [
            dump(secret) for secret in spec.image.pull_secrets or choices.pull_secrets
        ],
        "nodeSelector": spec.node_selector,
        "tolerations": [dump(toleration) for toleration in tolerations],
        "affinity": _affinity(spec, gpu),
        "topologySpreadConstraints": _spread(name, spec),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": 0,
            # Volumes of a hub's cache come owned by root; their group makes them writable.
            "fsGroup": _USER if spec.model.source.hub else None,
            "fsGroupChangePolicy": "OnRootMismatch" if spec.model.source.hub else None,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": _PRE_STOP_SECONDS
        + spec.server.drain_seconds
        + _STOP_MARGIN_SECONDS,
        "containers": [_container(spec, gpu, choices, found)],
        "volumes": found.volumes,
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


def _spread(name: str, spec: LLMDeploymentSpec) -> list[Manifest]:
    """The spec's constraints, else as even as possible over zones and nodes."""
    own = {"matchLabels": names.selector(name)}
    if spec.topology_spread_constraints is not None:
        return [
            {"labelSelector": own, **dump(constraint)}
            for constraint in spec.topology_spread_constraints
        ]
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": own,
        }
        for key in _SPREAD_OVER
    ]


def _container(
    spec: LLMDeploymentSpec, gpu: Gpu | None, choices: Choices, found: Files
) -> Manifest:
    return {
        "name": names.CONTAINER,
        "image": choices.image,
        "imagePullPolicy": spec.image.pull_policy or choices.pull_policy,
        "ports": [{"name": names.PORT_NAME, "containerPort": names.PORT, "protocol": "TCP"}],
        "env": _env(spec, found),
        "envFrom": [dump(source) for source in spec.server.env_from],
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
        "volumeMounts": found.mounts,
    }


def _resources(spec: LLMDeploymentSpec, gpu: Gpu | None) -> Manifest:
    limits = dict(spec.resources.limits or {})
    if gpu:
        limits[gpu.resource_name] = gpu.count
    return {
        "requests": {name: str(amount) for name, amount in (spec.resources.requests or {}).items()},
        "limits": {name: str(amount) for name, amount in limits.items()},
    }


def _env(spec: LLMDeploymentSpec, found: Files) -> list[Manifest]:
    """The server's settings. What the user leaves open is left to the server."""
    model, server = spec.model, spec.server
    values = {
        "LLM_MODEL_ID": model.id,
        "LLM_MODEL_REVISION": model.revision,
        "LLM_SERVED_NAME": model.served_name,
        "LLM_TASK": model.task,
        "LLM_DTYPE": model.dtype,
        "LLM_QUANTIZATION": model.quantization,
        "LLM_MAX_LENGTH": model.max_length,
        "LLM_MAX_CONCURRENCY": server.max_concurrency,
        "LLM_MAX_QUEUE": server.max_queue,
        "LLM_MAX_QUEUE_TOKENS": server.max_queue_tokens,
        "LLM_MAX_BODY_BYTES": server.max_body_bytes,
        "LLM_REQUEST_TIMEOUT_SECONDS": server.request_timeout_seconds,
        "LLM_RECEIVE_TIMEOUT_SECONDS": server.receive_timeout_seconds,
        "LLM_STEP_TIMEOUT_SECONDS": server.step_timeout_seconds,
        "LLM_STREAM_COMMENT_SECONDS": server.stream_comment_seconds,
        "LLM_DRAIN_SECONDS": server.drain_seconds,
        "LLM_LOG_LEVEL": server.log_level,
        "LLM_LOG_FORMAT": server.log_format,
    }
    env: list[Manifest] = [
        {"name": name, "value": str(value)} for name, value in values.items() if value is not None
    ]
    if "cpu" in (spec.resources.limits or {}):
        limit = {"containerName": names.CONTAINER, "resource": "limits.cpu", "divisor": "1"}
        env.append({"name": "LLM_THREADS", "valueFrom": {"resourceFieldRef": limit}})
    return env + found.env + [dump(variable) for variable in server.env]


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
    return {"httpGet": {"path": path, "port": names.PORT_NAME}}
