"""What a pod says about itself: whether it is ready, and if not, why, in a sentence. Pure.

Knows the kubelet's and the scheduler's words and the exit codes of the inference server. Does not
know which pods should exist.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from llm_operator import reasons, render

Body = Mapping[str, Any]


# Exit codes of the inference server.
EXIT_BAD_SETTING = 2
EXIT_MODEL_LOAD_FAILED = 3

_PULL_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
_STARTING_REASONS = frozenset({"ContainerCreating", "PodInitializing"})
# The kubelet alternates between this prefix and the error alone; without it the message is still.
_BACK_OFF = re.compile(r'^Back-off pulling image "[^"]*": (?:\w+: )?')


@dataclass(frozen=True)
class Diagnosis:
    """Why a pod is not ready."""

    reason: str
    message: str
    failure: bool = False
    """Something is wrong, as opposed to not yet done."""
    stalled: bool = False
    """Waiting does not mend it."""


@dataclass(frozen=True)
class Pod:
    """The facts of one pod."""

    name: str
    created: str
    template: str | None
    """Digest of the template it was made from."""
    ready: bool
    counts: bool
    """Whether it is neither finished nor being deleted."""
    diagnosis: Diagnosis | None
    """Why it is not ready; None if it is, or if it says nothing yet."""

    @classmethod
    def of(cls, body: Body) -> Self:
        """The facts of a Pod as the API server gives it."""
        metadata, status = body["metadata"], body.get("status", {})
        stopping = "deletionTimestamp" in metadata
        ready = _condition(status, "Ready").get("status") == "True" and not stopping
        return cls(
            name=metadata["name"],
            created=metadata.get("creationTimestamp", ""),
            template=metadata.get("labels", {}).get(render.TEMPLATE_LABEL),
            ready=ready,
            counts=not stopping and status.get("phase") not in {"Failed", "Succeeded"},
            diagnosis=None if ready else _diagnose(metadata["name"], status),
        )


def _diagnose(pod: str, status: Body) -> Diagnosis | None:
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        message = scheduled.get("message", "the pod is not scheduled")
        return Diagnosis(reasons.UNSCHEDULABLE, message, failure=True)
    server = next(
        (each for each in status.get("containerStatuses", ()) if each["name"] == render.CONTAINER),
        None,
    )
    if server is None:
        return None
    return _waiting(pod, server) or _stopped(pod, server) or _running(pod, server, status)


def _waiting(pod: str, server: Body) -> Diagnosis | None:
    """A container that the kubelet cannot start."""
    waiting = server.get("state", {}).get("waiting", {})
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _PULL_REASONS:
        return Diagnosis(
            reasons.IMAGE_PULL_FAILED,
            _BACK_OFF.sub("", message) or reason,
            failure=True,
            stalled=True,
        )
    if not reason or reason in _STARTING_REASONS or reason == "CrashLoopBackOff":
        return None
    # For example CreateContainerConfigError: a Secret is missing. The kubelet tries again.
    return Diagnosis(reason, f"pod {pod}: {message or reason}", failure=True)


def _stopped(pod: str, server: Body) -> Diagnosis | None:
    """A container that ended, even if it runs again: it has not become ready since."""
    ended = server.get("state", {}).get("terminated") or server.get("lastState", {}).get(
        "terminated"
    )
    if not ended or server.get("started"):
        return None
    code = ended.get("exitCode", 0)
    said = _last_line(ended.get("message", ""))
    if code == EXIT_MODEL_LOAD_FAILED:
        reason, message = reasons.MODEL_LOAD_FAILED, said or "the model could not be loaded"
    elif code == EXIT_BAD_SETTING:
        reason, message = reasons.INVALID_SPEC, said or "the server refused a setting"
    elif ended.get("reason") == "OOMKilled":
        reason, message = reasons.OUT_OF_MEMORY, "out of memory: raise resources.limits.memory"
    else:
        reason = reasons.CRASH_LOOPING
        message = f"the server stopped with exit code {code}" + (f": {said}" if said else "")
    return Diagnosis(reason, f"pod {pod}: {message}", failure=True, stalled=True)


def _running(pod: str, server: Body, status: Body) -> Diagnosis | None:
    if "running" not in server.get("state", {}):
        return None
    if not server.get("started"):
        return Diagnosis(reasons.MODEL_LOADING, f"pod {pod} loads the model")
    ready = _condition(status, "Ready")
    message = ready.get("message") or "the server does not answer the readiness probe"
    return Diagnosis(reasons.NOT_READY, f"pod {pod}: {message}", failure=True)


def _condition(status: Body, type_: str) -> Body:
    conditions: list[Body] = status.get("conditions", [])
    return next((each for each in conditions if each["type"] == type_), {})


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
