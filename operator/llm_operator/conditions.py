"""The status of an LLMDeployment from what exists. Pure.

Knows what Deployments and pods say about themselves and which sentence helps a user most. Does not
know how they got there, nor how a status is written.

`Ready` is true only while a pod of the current generation is ready. `Reconciling` and `Stalled`
are there only while true, so that kstatus, `helm --wait` and Flux read the object right.
`Accelerated` is there with target gpu, `Autoscaled` with autoscaling.
"""

import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_operator import names, reasons, render
from llm_operator.api import LLMDeployment
from llm_operator.hardware import Decision
from llm_operator.pods import Diagnosis, Pod

Body = Mapping[str, Any]
Status = dict[str, Any]

READY = "Ready"
RECONCILING = "Reconciling"
STALLED = "Stalled"
ACCELERATED = "Accelerated"
AUTOSCALED = "Autoscaled"

_MESSAGE_LIMIT = 1024
_SETTLING_REASONS = frozenset({"InvalidSelector", "AmbiguousSelector"})
"""What a HorizontalPodAutoscaler says when it looks before the status has the pods' selector, or
while the one before it is not yet gone."""
_SETTLING = dt.timedelta(seconds=20)
"""Until when it has looked again: every 15 seconds, and stamps are whole seconds."""
_POD_NAME = re.compile(r'^pods "[^"]*" is')


@dataclass(frozen=True)
class Problem:
    """Why the objects of the current generation could not be written."""

    reason: str
    message: str
    stalled: bool = False
    """Only a change by a person mends it."""
    transient: bool = False
    """The API server had no time; what serves goes on serving."""
    final: bool = False
    """Only a change of the spec mends it: nothing to try again."""
    aside: bool = False
    """It concerns an object beside those that serve: what serves goes on serving."""


@dataclass(frozen=True)
class Observed:
    """What exists for one LLMDeployment."""

    template: str | None
    """Digest of the wanted pod template; None if nothing could be rendered."""
    deployment: Body | None
    pods: Sequence[Pod]
    decision: Decision | None = None
    image: str | None = None
    problem: Problem | None = None
    device: Mapping[str, Any] | None = None
    """What the newest ready pod's server says it runs on."""
    cold_start: Mapping[str, Any] | None = None
    """How that pod came to serve."""
    autoscaler: Body | None = None
    """The HorizontalPodAutoscaler or ScaledObject."""

    @property
    def current(self) -> list[Pod]:
        """The pods of the current generation."""
        return [pod for pod in self.pods if self.template and pod.template == self.template]


@dataclass(frozen=True)
class _Verdict:
    ready: bool
    reason: str
    message: str
    reconciling: bool = False
    stalled: bool = False
    stalled_reason: str = ""
    """Why it is stalled, where that is not why it is not ready."""


def status(cr: LLMDeployment, observed: Observed, *, now: str) -> Status:
    """The whole status of `cr`.

    Args:
        cr: The object with its previous status, whose transition times are kept.
        observed: What exists.
        now: Current time as Kubernetes writes it, used where a condition changed its status.
    """
    pods = observed.pods
    ready = sum(pod.ready for pod in pods)
    result: Status = {
        "observedGeneration": cr.metadata.generation,
        "conditions": _conditions(cr, observed, now),
        "replicas": len(pods),
        "readyReplicas": ready,
        "updatedReplicas": len(observed.current),
        "replicasReady": f"{ready}/{render.replicas(cr)}",
        "selector": ",".join(
            f"{key}={value}" for key, value in sorted(names.selector(cr.metadata.name).items())
        ),
        "endpoint": names.endpoint(cr),
    }
    if observed.decision:
        result["target"] = observed.decision.target
        result["targetReason"] = observed.decision.reason
    if observed.image:
        result["image"] = observed.image
    if observed.device:
        result["device"] = dict(observed.device)
    if observed.cold_start:
        result["coldStart"] = dict(observed.cold_start)
    return result


def condition(status_: Body, type_: str) -> Body | None:
    """The condition `type_` of a status, if it is there."""
    return next((each for each in status_.get("conditions", ()) if each["type"] == type_), None)


def _verdict(cr: LLMDeployment, observed: Observed) -> _Verdict:
    problem = observed.problem
    ready = sum(pod.ready for pod in observed.current)
    if problem and not ((problem.transient or problem.aside) and ready):
        return _Verdict(
            ready=False,
            reason=problem.reason,
            message=problem.message + _previous(observed),
            reconciling=not problem.stalled,
            stalled=problem.stalled,
        )
    if render.replicas(cr) == 0:
        return _scaled_to_zero(cr, observed)
    if ready:
        return _serving(cr, observed, ready)
    return _not_serving(observed)


def _scaled_to_zero(cr: LLMDeployment, observed: Observed) -> _Verdict:
    left = len(observed.pods)
    why = "spec.suspend is true" if cr.spec.suspend else "spec.replicas is 0"
    return _Verdict(
        ready=False,
        reason=reasons.SUSPENDED if cr.spec.suspend else reasons.SCALED_TO_ZERO,
        message=f"{why}: {_pods(left)} left to stop" if left else f"{why}: nothing serves",
        reconciling=left > 0,
    )


def _serving(cr: LLMDeployment, observed: Observed, ready: int) -> _Verdict:
    problem, replicas = observed.problem, render.replicas(cr)
    complete = ready == replicas == len(observed.pods) and not problem
    message = f"{ready} of {replicas} replicas serve {cr.spec.model.id}"
    hindrance = problem or _diagnosis(observed)
    if not complete and hindrance:
        message += f"; {hindrance.message}"
    stalled = problem.stalled if problem else not complete and _deadline_exceeded(observed)
    return _Verdict(
        ready=True,
        reason=reasons.MODEL_SERVING,
        message=message,
        # Never both: kstatus takes what it finds first, so work that is stuck would never fail.
        reconciling=not complete and not stalled,
        stalled=stalled,
        stalled_reason=problem.reason if problem else reasons.PROGRESS_DEADLINE_EXCEEDED,
    )


def _not_serving(observed: Observed) -> _Verdict:
    diagnosis = _diagnosis(observed)
    suffix = _previous(observed)
    if diagnosis is None:
        return _Verdict(
            ready=False,
            reason=reasons.ROLLOUT_IN_PROGRESS,
            message="waiting for the first pod to become ready" + suffix,
            reconciling=True,
        )
    stalled = diagnosis.stalled or _deadline_exceeded(observed)
    return _Verdict(
        ready=False,
        reason=diagnosis.reason,
        message=diagnosis.message + suffix,
        reconciling=not stalled,
        stalled=stalled,
    )


def _previous(observed: Observed) -> str:
    """That pods of another generation serve, if they do."""
    old = sum(pod.ready for pod in observed.pods) - sum(pod.ready for pod in observed.current)
    return f"; {_pods(old)} of the previous generation serve" if old else ""


def _diagnosis(observed: Observed) -> Diagnosis | None:
    """What hinders the current generation: the worst pod says it, else the Deployment."""
    found = [pod.diagnosis for pod in observed.current if not pod.ready and pod.diagnosis]
    failures = [diagnosis for diagnosis in found if diagnosis.failure]
    if failures:
        return next((failure for failure in failures if failure.stalled), failures[0])
    return _replica_failure(observed.deployment) or (found[0] if found else None)


def _replica_failure(deployment: Body | None) -> Diagnosis | None:
    """Why the Deployment cannot even create pods, in the words of the API server."""
    failure = _deployment_condition(deployment, "ReplicaFailure")
    if failure is None or failure["status"] != "True":
        return None
    # Each attempt names another pod; without the name the message is still.
    message = _POD_NAME.sub("pods are", failure.get("message", ""))
    reason = reasons.QUOTA_EXCEEDED if "exceeded quota" in message else reasons.POD_CREATION_FAILED
    return Diagnosis(reason=reason, message=message, failure=True)


def _deadline_exceeded(observed: Observed) -> bool:
    progressing = _deployment_condition(observed.deployment, "Progressing")
    return (
        progressing is not None and progressing.get("reason") == reasons.PROGRESS_DEADLINE_EXCEEDED
    )


def _deployment_condition(deployment: Body | None, type_: str) -> Body | None:
    """What the Deployment says of itself as it is now, not as it was before the last change."""
    if deployment is None:
        return None
    said = deployment.get("status", {})
    if said.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return None
    return condition(said, type_)


def _conditions(cr: LLMDeployment, observed: Observed, now: str) -> list[Status]:
    verdict = _verdict(cr, observed)
    ready = _Aspect(READY, str(verdict.ready), verdict.reason, verdict.message)
    aspects: list[_Aspect | None] = [ready]
    if verdict.reconciling:
        reason = reasons.ROLLOUT_IN_PROGRESS if verdict.ready else verdict.reason
        aspects.append(_Aspect(RECONCILING, "True", reason, verdict.message))
    if verdict.stalled:
        reason = verdict.stalled_reason or verdict.reason
        aspects.append(_Aspect(STALLED, "True", reason, verdict.message))
    aspects += [_accelerated(observed), _autoscaled(cr, observed, now)]
    before = {each.type: each for each in cr.status.conditions}
    return [
        {
            "type": aspect.type,
            "status": aspect.status,
            "reason": aspect.reason,
            "message": _short(aspect.message),
            "lastTransitionTime": before[aspect.type].last_transition_time
            if aspect.type in before and before[aspect.type].status == aspect.status
            else now,
            "observedGeneration": cr.metadata.generation,
        }
        for aspect in aspects
        if aspect is not None
    ]


@dataclass(frozen=True)
class _Aspect:
    """A condition without its times."""

    type: str
    status: str
    reason: str
    message: str


def _accelerated(observed: Observed) -> _Aspect | None:
    """Whether the server really uses the GPU it was given."""
    if observed.decision is None or observed.decision.target != "gpu":
        return None
    device = observed.device
    if device is None:
        message = "no server of the current generation has said yet what it runs on"
        return _Aspect(ACCELERATED, "Unknown", reasons.NOT_REPORTED, message)
    name = device.get("name") or device["type"]
    if device["type"] == "cpu":
        message = (
            f"a GPU was asked for but the server runs on cpu ({name}): see that the image is one"
            " for gpu and that the node's driver and device plugin work"
        )
        return _Aspect(ACCELERATED, "False", reasons.CPU_FALLBACK, message)
    return _Aspect(ACCELERATED, "True", reasons.GPU_IN_USE, f"the server runs on {name}")


def _autoscaled(cr: LLMDeployment, observed: Observed, now: str) -> _Aspect | None:
    """Whether the autoscaler can do its work, in its own words."""
    if cr.spec.autoscaling is None or cr.spec.suspend:
        return None
    said = _said_by(observed.autoscaler)
    if said is None:
        message = "the autoscaler has not said anything yet"
        return _Aspect(AUTOSCALED, "Unknown", reasons.NOT_REPORTED, message)
    if settles_in(observed.autoscaler, now=now):
        message = "the autoscaler has not found the pods yet"
        return _Aspect(AUTOSCALED, "Unknown", reasons.NOT_REPORTED, message)
    reason = said.get("reason") or reasons.NOT_REPORTED
    return _Aspect(AUTOSCALED, said["status"], reason, said.get("message", ""))


def settles_in(autoscaler: Body | None, *, now: str) -> float:
    """Seconds until what the autoscaler says counts; 0 if it does.

    What it says at its first look of pods that it cannot tell from others, the second mends.
    """
    said = _said_by(autoscaler) or {}
    since = said.get("lastTransitionTime")
    if said.get("reason") not in _SETTLING_REASONS or not since:
        return 0.0
    age = dt.datetime.fromisoformat(now) - dt.datetime.fromisoformat(since)
    return max(0.0, (_SETTLING - age).total_seconds())


def _said_by(autoscaler: Body | None) -> Body | None:
    status_ = (autoscaler or {}).get("status", {})
    return condition(status_, "ScalingActive") or condition(status_, READY)


def _short(message: str) -> str:
    return message if len(message) <= _MESSAGE_LIMIT else message[: _MESSAGE_LIMIT - 1] + "…"


def _pods(count: int) -> str:
    return f"{count} pod" if count == 1 else f"{count} pods"


def read_pods(bodies: Iterable[Body], *, since: str) -> list[Pod]:
    """The pods in `bodies` that count, oldest first: neither finished nor about to stop.

    A pod older than its LLMDeployment, created at `since`, is left from a deleted one of the same
    name, and will soon be gone too.
    """
    found = (Pod.of(body) for body in bodies)
    counting = (pod for pod in found if pod.counts and pod.created >= since)
    return sorted(counting, key=lambda pod: (pod.created, pod.name))
