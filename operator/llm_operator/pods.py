"""What a pod says about itself: whether it is ready, and if not, why, in a sentence. Pure.

Knows the kubelet's and the scheduler's words and the exit codes of the inference server. Does not
know which pods should exist.
"""

import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from llm_operator import names, reasons

Body = Mapping[str, Any]


# Exit codes of the inference server.
EXIT_BAD_SETTING = 2
EXIT_MODEL_LOAD_FAILED = 3

_CRASHES = 3
"""Restarts after which a crash no longer counts as passing."""

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


# Warnings of the kubelet about a pod whose containers do not even begin.
_VOLUME_WARNINGS = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume"})
_SANDBOX_WARNING = "FailedCreatePodSandBox"
_PULL_SECRET_WARNING = "FailedToRetrieveImagePullSecret"  # noqa: S105 - a reason, no secret
# Each attempt has an id of its own; without it the message is still.
_IDS = re.compile(r"\b[0-9a-f]{12,}\b")


@dataclass(frozen=True)
class Warned:
    """A warning among the Events of a pod."""

    reason: str
    message: str


@dataclass(frozen=True)
class Diagnosis:
    """Why a pod is not ready."""

    reason: str
    message: str
    failure: bool = False
    """Something is wrong, as opposed to not yet done."""
    stalled: bool = False
    """Waiting does not mend it."""
    in_words_of_events: bool = False
    """Only the pod's Events may tell what holds it up."""


@dataclass(frozen=True)
class Pod:
    """The facts of one pod."""

    name: str
    uid: str
    address: str | None
    """IP address, once it has one."""
    created: str
    scheduled: str | None
    """When a node was found."""
    started: str | None
    """When the server's container last started."""
    ready_since: str | None
    """When it last became ready, while it is."""
    template: str | None
    """Digest of the template it was made from."""
    ready: bool
    counts: bool
    """Whether it is neither finished nor being deleted."""
    diagnosis: Diagnosis | None
    """Why it is not ready; None if it is, or if it says nothing yet."""
    node: str | None = None
    """Where it runs, once that is decided."""
    devices: frozenset[str] = frozenset()
    """Names of the extended resources that its server asks for."""

    @classmethod
    def of(cls, body: Body) -> Self:
        """The facts of a Pod as the API server gives it."""
        metadata, status = body["metadata"], body.get("status", {})
        stopping = "deletionTimestamp" in metadata
        readiness = _condition(status, "Ready")
        ready = readiness.get("status") == "True" and not stopping
        scheduled = _condition(status, "PodScheduled")
        server = _named(status.get("containerStatuses", ()), names.CONTAINER)
        return cls(
            name=metadata["name"],
            uid=metadata.get("uid", ""),
            address=status.get("podIP"),
            created=metadata.get("creationTimestamp", ""),
            scheduled=scheduled.get("lastTransitionTime")
            if scheduled.get("status") == "True"
            else None,
            started=server.get("state", {}).get("running", {}).get("startedAt"),
            ready_since=readiness.get("lastTransitionTime") if ready else None,
            template=metadata.get("labels", {}).get(names.TEMPLATE_LABEL),
            ready=ready,
            counts=not stopping and status.get("phase") not in {"Failed", "Succeeded"},
            diagnosis=None if ready else _diagnose(body),
            node=body.get("spec", {}).get("nodeName"),
            devices=_devices(body),
        )


def explained(pod: Pod, warnings: Sequence[Warned]) -> Pod:
    """`pod` with a diagnosis in the words of the warnings about it, newest first."""
    if pod.diagnosis is None:
        return pod
    for warning in warnings:
        said = _IDS.sub("…", warning.message)
        if pod.diagnosis.reason == reasons.IMAGE_PULL_FAILED:
            if warning.reason == _PULL_SECRET_WARNING:
                message = f"{pod.diagnosis.message}; {said}"
                return replace(pod, diagnosis=replace(pod.diagnosis, message=message))
        elif warning.reason in _VOLUME_WARNINGS:
            return _held_up(pod, reasons.VOLUME_NOT_READY, said)
        elif warning.reason == _SANDBOX_WARNING:
            return _held_up(pod, reasons.SANDBOX_FAILED, said)
    return pod


def _held_up(pod: Pod, reason: str, said: str) -> Pod:
    message = f"pod {pod.name}: {said}"
    diagnosis = Diagnosis(reason, message, failure=True, in_words_of_events=True)
    return replace(pod, diagnosis=diagnosis)


def _diagnose(body: Body) -> Diagnosis | None:
    pod, status = body["metadata"]["name"], body.get("status", {})
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        message = scheduled.get("message", "the pod is not scheduled")
        claim = "persistentvolumeclaim" in message.lower()
        reason = reasons.VOLUME_NOT_READY if claim else reasons.UNSCHEDULABLE
        return Diagnosis(reason, message, failure=True)
    server = _named(status.get("containerStatuses", ()), names.CONTAINER)
    if not server:
        return None
    budget = _startup_budget(body)
    return _waiting(pod, server) or _stopped(pod, server, budget) or _running(pod, server, status)


def _waiting(pod: str, server: Body) -> Diagnosis | None:
    """A container that the kubelet cannot start."""
    waiting = server.get("state", {}).get("waiting", {})
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _PULL_REASONS:
        said = _BACK_OFF.sub("", message) or reason
        return Diagnosis(
            reasons.IMAGE_PULL_FAILED,
            said,
            failure=True,
            stalled=True,
            in_words_of_events=True,
        )
    if reason in _STARTING_REASONS:
        message = f"pod {pod} is being prepared: volumes and image"
        return Diagnosis(reasons.ROLLOUT_IN_PROGRESS, message, in_words_of_events=True)
    if not reason or reason == "CrashLoopBackOff":
        return None
    # For example CreateContainerConfigError: a Secret is missing. The kubelet tries again.
    return Diagnosis(reason, f"pod {pod}: {message or reason}", failure=True)


def _stopped(pod: str, server: Body, budget: int | None) -> Diagnosis | None:
    """A container that ended, even if it runs again: it has not started since."""
    ended = server.get("state", {}).get("terminated") or server.get("lastState", {}).get(
        "terminated"
    )
    if not ended or server.get("started"):
        return None
    reason, message = _last_words(ended, budget)
    # A server may stop once for a reason that passes, such as a driver that was not yet there.
    passing = reason == reasons.CRASH_LOOPING and server.get("restartCount", 0) < _CRASHES
    return Diagnosis(reason, f"pod {pod}: {message}", failure=True, stalled=not passing)


def _last_words(ended: Body, budget: int | None) -> tuple[str, str]:
    """Reason and message for a container state `terminated`."""
    code = ended.get("exitCode", 0)
    said = _last_line(ended.get("message", ""))
    if code == EXIT_MODEL_LOAD_FAILED:
        return reasons.MODEL_LOAD_FAILED, said or "the model could not be loaded"
    if code == EXIT_BAD_SETTING:
        return reasons.INVALID_SPEC, said or "the server refused a setting"
    if ended.get("reason") == "OOMKilled":
        return reasons.OUT_OF_MEMORY, "out of memory: raise resources.limits.memory"
    if budget is not None and _seconds(ended) >= budget:
        message = f"not started within {budget} s: raise probes.startupBudgetSeconds"
        return reasons.STARTUP_BUDGET_EXCEEDED, message
    message = f"the server stopped with exit code {code}"
    return reasons.CRASH_LOOPING, f"{message}: {said}" if said else message


def _running(pod: str, server: Body, status: Body) -> Diagnosis | None:
    running = server.get("state", {}).get("running")
    if running is None:
        return None
    ready = _condition(status, "Ready")
    # Between the startup probe and the first readiness probe there is a moment of neither.
    never_ready = ready.get("lastTransitionTime", "~") <= running.get("startedAt", "")
    if server.get("started") is False or (never_ready and not server.get("ready")):
        return Diagnosis(reasons.MODEL_LOADING, f"pod {pod} loads the model")
    if server.get("ready"):
        # The kubelet last said ready; since then the node controller says not: no word from it.
        return Diagnosis(reasons.NODE_LOST, f"pod {pod}: its node does not answer", failure=True)
    message = ready.get("message") or "the readiness probe fails"
    return Diagnosis(reasons.NOT_READY, f"pod {pod}: {message}", failure=True)


def _devices(body: Body) -> frozenset[str]:
    server = _named(body.get("spec", {}).get("containers", ()), names.CONTAINER)
    return frozenset(name for name in server.get("resources", {}).get("limits", {}) if "/" in name)


def _startup_budget(body: Body) -> int | None:
    """Seconds that the kubelet gives the server to start."""
    server = _named(body.get("spec", {}).get("containers", ()), names.CONTAINER)
    probe = server.get("startupProbe")
    return int(probe["periodSeconds"] * probe["failureThreshold"]) if probe else None


def _seconds(ended: Body) -> float:
    """How long a container ran; 0 if it does not say."""
    try:
        started, finished = (
            dt.datetime.fromisoformat(ended[field]) for field in ("startedAt", "finishedAt")
        )
    except (KeyError, ValueError, TypeError):
        return 0
    return (finished - started).total_seconds()


def _condition(status: Body, type_: str) -> Body:
    return next((each for each in status.get("conditions", ()) if each["type"] == type_), {})


def _named(items: Iterable[Body], name: str) -> Body:
    return next((item for item in items if item["name"] == name), {})


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
