"""What a pod says about itself: whether it is ready, and if not, why, in a sentence. Pure.

Knows the kubelet's and the scheduler's words and the exit codes of the inference server. Does not
know which pods should exist.
"""

import datetime as dt
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
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
# Before Kubernetes 1.32 the prefix is all there is, and the error is in an Event.
_BARE_BACK_OFF = re.compile(r'^Back-off pulling image "[^"]*"$')
_PULL_FAILED = re.compile(r'^Failed to pull image "[^"]*": ')
_SOURCE_PORT = re.compile(r":\d+(?=->)")

# Warnings of the kubelet about a pod whose containers do not even begin.
VOLUME_WARNINGS = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume"})
SANDBOX_WARNING = "FailedCreatePodSandBox"
_PULL_WARNING = "Failed"
_PULL_SECRET_WARNING = "FailedToRetrieveImagePullSecret"  # noqa: S105 - a reason, no secret
_PROBE_WARNING = "Unhealthy"
# Said now and then beside the warning that tells which volume fails, and why.
_NO_VOLUMES = "Unable to attach or mount volumes"
_NOT_READY = "Readiness probe failed: "
# Each attempt has an id of its own; without it the message is still.
_IDS = re.compile(r"(?<![0-9a-f])[0-9a-f]{12,}(?![0-9a-f])")


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
    revision: str = ""
    """Which of the Deployment's templates it was made from, also if only somebody's annotation
    tells them apart, as after `kubectl rollout restart`."""
    restarts: int = 0
    """How often its server was started anew."""

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
            revision=metadata.get("labels", {}).get(names.REVISION_LABEL, ""),
            restarts=server.get("restartCount", 0),
        )


def explained(pod: Pod, warnings: Sequence[Warned]) -> Pod:
    """`pod` with a diagnosis in the words of the warnings about it, newest first."""
    diagnosis = pod.diagnosis
    if diagnosis is None or not diagnosis.in_words_of_events:
        return pod
    if diagnosis.reason == reasons.IMAGE_PULL_FAILED:
        return replace(pod, diagnosis=_pull_explained(diagnosis, warnings))
    if diagnosis.reason == reasons.NOT_READY:
        said = [w for w in _said(warnings, {_PROBE_WARNING}) if w.startswith(_NOT_READY)]
        message = f"pod {pod.name}: {said[0]}" if said else diagnosis.message
        return replace(pod, diagnosis=replace(diagnosis, message=message))
    volumes = _said(warnings, VOLUME_WARNINGS)
    # Each volume has a warning of its own, and each in turn is the newest.
    which = sorted({each for each in volumes if not each.startswith(_NO_VOLUMES)}) or volumes[:1]
    if which:
        return _held_up(pod, reasons.VOLUME_NOT_READY, "; ".join(which))
    sandbox = _said(warnings, {SANDBOX_WARNING})
    return _held_up(pod, reasons.SANDBOX_FAILED, sandbox[0]) if sandbox else pod


def _pull_explained(diagnosis: Diagnosis, warnings: Sequence[Warned]) -> Diagnosis:
    message = diagnosis.message
    if _BARE_BACK_OFF.match(message):
        failed = (_PULL_FAILED.sub("", each) for each in _said(warnings, {_PULL_WARNING}))
        why = next((each for each in failed if not each.startswith("Error: ")), None)
        message = _SOURCE_PORT.sub("", why) if why else message
    secrets = _said(warnings, {_PULL_SECRET_WARNING})
    return replace(diagnosis, message="; ".join([message, *secrets[:1]]))


def _said(warnings: Sequence[Warned], kinds: Collection[str]) -> list[str]:
    """What warnings of these kinds say, newest first, without what is new in each attempt."""
    return [_IDS.sub("…", warning.message) for warning in warnings if warning.reason in kinds]


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
    return _waiting(pod, server) or _stopped(body, server) or _running(body, server)


def _waiting(pod: str, server: Body) -> Diagnosis | None:
    """A container that the kubelet cannot start."""
    waiting = server.get("state", {}).get("waiting", {})
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _PULL_REASONS:
        said = _SOURCE_PORT.sub("", _BACK_OFF.sub("", message)) or reason
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
    return Diagnosis(reason, f"pod {pod}: {_IDS.sub('…', message) or reason}", failure=True)


def _stopped(body: Body, server: Body) -> Diagnosis | None:
    """A container that ended, even if it runs again: it has not started since."""
    ended = server.get("state", {}).get("terminated") or server.get("lastState", {}).get(
        "terminated"
    )
    if not ended or server.get("started"):
        return None
    # It stopped being ready after that run began.
    served = _condition(body["status"], "Ready").get("lastTransitionTime", "") > ended.get(
        "startedAt", "~"
    )
    reason, message = _last_words(ended, body, served=served)
    again = server.get("restartCount", 0) >= _CRASHES
    return Diagnosis(
        reason,
        f"pod {body['metadata']['name']}: {message}",
        failure=True,
        stalled=again or not _may_pass(reason, body, served=served),
    )


def _may_pass(reason: str, body: Body, *, served: bool) -> bool:
    """Whether the next start may go better than the one that failed."""
    if reason == reasons.CRASH_LOOPING:
        return True  # a driver, for example, that was not yet there
    if reason == reasons.OUT_OF_MEMORY:
        return served  # loading needs as much each time, requests do not
    if reason in {reasons.MODEL_LOAD_FAILED, reasons.STARTUP_BUDGET_EXCEEDED}:
        return _downloads(body)
    return False


def _last_words(ended: Body, body: Body, *, served: bool) -> tuple[str, str]:
    """Reason and message for a container state `terminated`."""
    code = ended.get("exitCode", 0)
    said = _IDS.sub("…", _last_line(ended.get("message", "")))
    if code == EXIT_MODEL_LOAD_FAILED:
        return reasons.MODEL_LOAD_FAILED, said or "the model could not be loaded"
    if code == EXIT_BAD_SETTING:
        return reasons.INVALID_SPEC, said or "the server refused a setting"
    if ended.get("reason") == "OOMKilled":
        return reasons.OUT_OF_MEMORY, _out_of_memory(body, served=served)
    budget = _startup_budget(body)
    if budget is not None and not served and _seconds(ended) >= budget:
        message = f"not started within {budget} s: raise probes.startupBudgetSeconds"
        return reasons.STARTUP_BUDGET_EXCEEDED, message
    message = f"the server stopped with exit code {code}"
    return reasons.CRASH_LOOPING, f"{message}: {said}" if said else message


def _out_of_memory(body: Body, *, served: bool) -> str:
    when = "while it served" if served else "before it served"
    limit = _server_spec(body).get("resources", {}).get("limits", {}).get("memory")
    if limit:
        return f"out of memory {when}, with a limit of {limit}: raise resources.limits.memory"
    return (
        f"out of memory {when}: the node had none left; set resources.requests.memory to what the"
        " model needs"
    )


def _running(body: Body, server: Body) -> Diagnosis | None:
    running = server.get("state", {}).get("running")
    if running is None:
        return None
    pod, ready = body["metadata"]["name"], _condition(body["status"], "Ready")
    # Between the startup probe and the first readiness probe there is a moment of neither.
    never_ready = ready.get("lastTransitionTime", "~") <= running.get("startedAt", "")
    if server.get("started") is False or (never_ready and not server.get("ready")):
        return Diagnosis(reasons.MODEL_LOADING, f"pod {pod} loads the model")
    if server.get("ready"):
        # The kubelet last said ready; since then the node controller says not: no word from it.
        node = body.get("spec", {}).get("nodeName", "")
        message = f"pod {pod}: its node {node} does not answer"
        return Diagnosis(reasons.NODE_LOST, message, failure=True)
    message = ready.get("message") or "the readiness probe fails"
    return Diagnosis(
        reasons.NOT_READY, f"pod {pod}: {message}", failure=True, in_words_of_events=True
    )


def _devices(body: Body) -> frozenset[str]:
    limits = _server_spec(body).get("resources", {}).get("limits", {})
    return frozenset(name for name in limits if "/" in name)


def _startup_budget(body: Body) -> int | None:
    """Seconds that the kubelet gives the server to start."""
    probe = _server_spec(body).get("startupProbe")
    return int(probe["periodSeconds"] * probe["failureThreshold"]) if probe else None


def _downloads(body: Body) -> bool:
    """Whether the server fetches its model when it starts: the hub may answer the next time."""
    variable = _named(_server_spec(body).get("env", ()), "LLM_MODEL_SOURCE")
    return variable.get("value") == "hub"


def _server_spec(body: Body) -> Body:
    return _named(body.get("spec", {}).get("containers", ()), names.CONTAINER)


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
