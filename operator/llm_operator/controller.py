"""Brings one LLMDeployment to what its spec says, from whatever state it is in.

Knows the order: choose hardware and image, render, write what differs, tell in the status. What is
right is decided by the pure modules; when it runs, and how often, is the business of handlers and
work queue.
"""

import datetime as dt
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from llm_operator import (
    coldstart,
    conditions,
    hardware,
    images,
    names,
    ownership,
    pods,
    podtemplate,
    reasons,
    render,
    rollout,
    validity,
    volumes,
)
from llm_operator.api import LLMDeployment
from llm_operator.cache import Body, Cache, Key
from llm_operator.conditions import Observed, Problem
from llm_operator.configs import Configs
from llm_operator.events import event
from llm_operator.hardware import Decision
from llm_operator.inspection import Inspection
from llm_operator.kube import ApiError, Kube
from llm_operator.manifest import Manifest
from llm_operator.pods import Pod
from llm_operator.podtemplate import Choices
from llm_operator.references import references
from llm_operator.resources import (
    DEPLOYMENT,
    EVENT,
    HORIZONTAL_POD_AUTOSCALER,
    LLM_DEPLOYMENT,
    PERSISTENT_VOLUME_CLAIM,
    SCALED_OBJECT,
)
from llm_operator.settings import Settings
from llm_operator.telemetry import Telemetry
from llm_operator.workqueue import Retry
from llm_operator.writer import Writer

logger = logging.getLogger(__name__)

# Steps on the way, not worth a warning to a person.
_QUIET_REASONS = frozenset({reasons.ROLLOUT_IN_PROGRESS, reasons.MODEL_LOADING})
_WANTED_REASONS = frozenset({reasons.SCALED_TO_ZERO, reasons.SUSPENDED})
_GONE = frozenset({404, 409})

_LISTEN_SECONDS = 15.0
"""When to look again at a pod about which only Events tell."""
_PATIENCE = dt.timedelta(seconds=10)
"""How long the preparation of a pod takes without anybody asking why."""


@dataclass(frozen=True)
class Plan:
    """What should exist for one LLMDeployment."""

    decision: Decision | None = None
    image: str | None = None
    manifests: Sequence[Manifest] = ()
    template: str | None = None
    """Digest of the pod template."""
    problem: Problem | None = None


class Controller:
    """Reconciles LLMDeployments.

    Args:
        kube: Where objects are written.
        cache: What is known of them.
        settings: What the person who installed the operator decided.
        inspection: Who asks pods.
        configs: Who knows what Secrets and ConfigMaps hold; None if they may not be read.
        telemetry: Who counts.
    """

    def __init__(
        self,
        *,
        kube: Kube,
        cache: Cache,
        settings: Settings,
        inspection: Inspection,
        configs: Configs | None,
        telemetry: Telemetry,
    ) -> None:
        self._kube = kube
        self._cache = cache
        self._settings = settings
        self._inspection = inspection
        self._configs = configs
        self._telemetry = telemetry
        self._writer = Writer(kube=kube, cache=cache)

    async def reconcile(self, key: Key) -> float | None:
        """Bring the LLMDeployment `key` one step, usually the only one, nearer to its spec.

        Writes nothing if everything is as it should be.

        Returns:
            Seconds after which it wants to look again, if it does.

        Raises:
            Retry: something is in the way that may go away by itself.
        """
        body = self._cache.get(LLM_DEPLOYMENT, key)
        if body is None or "deletionTimestamp" in body["metadata"]:
            self._forget(key)
            return None
        cr, problem = _read(body)
        found = self._pods(cr, key)
        plan = Plan(problem=problem)
        if problem is None:
            cr, plan = await self._plan(cr, key, found)
            if plan.problem is None:
                problem = await self._writer.write(cr, key, plan.manifests)
                found = self._pods(cr, key)  # a Deployment that was taken up brings its own
            else:
                problem = plan.problem
        observed = self._observe(cr, key, plan, found)
        await self._report(body, cr, replace(observed, problem=problem))
        if problem and not problem.final:
            raise Retry(f"{problem.reason}: {problem.message}")
        waits = [_listen_in(pod) for pod in found if _told_by_events(pod)]
        # An autoscaler that says the same at its next look is not heard of again.
        settles = conditions.settles_in(observed.autoscaler, now=_now())
        return min([*waits, *filter(None, [settles])], default=None)

    def _forget(self, key: Key) -> None:
        self._inspection.keep(key, ())
        if self._configs:
            self._configs.forget(key)

    def _pods(self, cr: LLMDeployment, key: Key) -> list[Pod]:
        """The pods of `cr`, with what the kubelet's Events tell of those that do not begin."""
        found = conditions.read_pods(self._cache.pods(key), since=self._since(cr, key))
        self._inspection.keep(key, found)
        return [
            pods.explained(pod, self._inspection.warnings_about(key, pod))
            if _needs_explanation(pod)
            else pod
            for pod in found
        ]

    def _since(self, cr: LLMDeployment, key: Key) -> str:
        """Since when `cr` has pods: those of a Deployment that was taken up are older than it."""
        created = cr.metadata.creation_timestamp
        live = self._cache.get(DEPLOYMENT, key)
        if live is None or not ownership.owned(live, cr):
            return created
        taken_up: str = live["metadata"].get("creationTimestamp", created)
        return min(created, taken_up)

    async def _plan(
        self, cr: LLMDeployment, key: Key, found: Sequence[Pod]
    ) -> tuple[LLMDeployment, Plan]:
        """`cr` with its hardware profile, and what should exist for it."""
        try:
            cr = validity.resolve(cr, self._settings.hardware_profiles)
            access_modes = await self._access_modes(cr, key)
            validity.check_claim(cr, access_modes)
            config_digest = await self._config_digest(cr, key)
        except validity.InvalidSpecError as error:
            # A claim may be made anew; a profile cannot appear before the operator is restarted.
            problem = Problem(reasons.INVALID_SPEC, str(error), stalled=True, final=False)
            return cr, Plan(problem=problem)
        except ApiError as error:
            return cr, Plan(problem=Problem(reasons.API_ERROR, str(error), transient=True))
        default = self._settings.runtime_image
        nodes = list(self._cache.nodes()) if self._settings.watch_nodes else None
        decision = hardware.choose(
            cr.spec,
            previous=self._previous(cr, key),
            gpu_image=images.reference(cr.spec.image, default, "gpu") is not None,
            nodes=nodes,
        )
        image = images.reference(cr.spec.image, default, decision.target)
        if image is None:
            message = (
                f"no image for target {decision.target}: set spec.image, or a default when"
                " installing the operator (runtime.image.repository of the chart)"
            )
            problem = Problem(reasons.INVALID_SPEC, message, stalled=True, final=True)
            return cr, Plan(decision, problem=problem)
        choices = Choices(
            target=decision.target,
            image=image,
            pull_policy=default.pull_policy,
            pull_secrets=default.pull_secrets,
            config_digest=config_digest,
        )
        template = podtemplate.template(cr.metadata.name, cr.spec, choices)
        in_place = rollout.replaces_in_place(
            cr,
            target=decision.target,
            template=podtemplate.digest_of(template),
            pods=found,
            live=self._cache.get(DEPLOYMENT, key),
            pinned=validity.is_pinned(cr.spec, access_modes),
            nodes=nodes,
        )
        manifests = render.objects(
            cr, template, in_place=in_place, operator_namespace=self._settings.namespace or None
        )
        return cr, Plan(decision, image, manifests, podtemplate.digest_of(template))

    async def _access_modes(self, cr: LLMDeployment, key: Key) -> Sequence[str]:
        """Access modes of the claim that the pods share; none if there is no claim yet."""
        claim = volumes.claim_of(cr.spec)
        if claim is None:
            return ()
        live = await self._kube.get(PERSISTENT_VOLUME_CLAIM, key[0], claim)
        return tuple(live["spec"].get("accessModes", ())) if live else ()

    async def _config_digest(self, cr: LLMDeployment, key: Key) -> str | None:
        if self._configs is None:
            return None
        live = self._cache.get(DEPLOYMENT, key)
        before = None
        if live is not None and ownership.owned(live, cr):
            annotations = live["spec"]["template"]["metadata"].get("annotations") or {}
            before = annotations.get(names.CONFIG_ANNOTATION)
        return await self._configs.digest(key, references(cr.spec), before=before)

    def _previous(self, cr: LLMDeployment, key: Key) -> Decision | None:
        """What was chosen before, by the status, else by the Deployment."""
        if cr.status.target:
            return Decision(cr.status.target, cr.status.target_reason or "")
        live = self._cache.get(DEPLOYMENT, key)
        if live is None or not ownership.owned(live, cr):
            return None
        labels = live["spec"]["template"]["metadata"].get("labels", {})
        target = labels.get(names.TARGET_LABEL)
        return Decision(target, "") if target in ("cpu", "gpu") else None

    def _observe(self, cr: LLMDeployment, key: Key, plan: Plan, found: Sequence[Pod]) -> Observed:
        live = self._cache.get(DEPLOYMENT, key)
        device, cold_start = self._newest(cr, key, plan, found)
        return Observed(
            template=plan.template,
            deployment=live if live and ownership.owned(live, cr) else None,
            pods=found,
            decision=plan.decision,
            image=plan.image,
            device=device,
            cold_start=cold_start,
            autoscaler=self._cache.get(HORIZONTAL_POD_AUTOSCALER, key)
            or self._cache.get(SCALED_OBJECT, key),
        )

    async def _report(self, body: Body, cr: LLMDeployment, observed: Observed) -> None:
        """Write the status if it changed, and Events if that is news."""
        status = conditions.status(cr, observed, now=_now())
        before = body.get("status", {})
        if status == before:
            return
        try:
            answer = await self._kube.apply_status(
                LLM_DEPLOYMENT,
                cr.metadata.model_dump(include={"namespace", "name", "uid"}),
                status,
            )
        except ApiError as error:
            if error.status in _GONE:  # deleted meanwhile, or another object by now
                return
            raise Retry(f"status not written: {error}") from error
        self._cache.put(LLM_DEPLOYMENT, answer)
        self._count(cr, before, status)
        await self._announce(cr, before, status)

    def _newest(
        self, cr: LLMDeployment, key: Key, plan: Plan, found: Sequence[Pod]
    ) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
        """What the newest ready pod's server runs on, and how that pod came to serve."""
        ready = [pod for pod in found if pod.ready and pod.template == plan.template]
        before = cr.status.model_dump(
            mode="json", by_alias=True, exclude_none=True, include={"device", "cold_start"}
        )
        if not ready:
            return None, before.get("coldStart")
        pod = ready[-1]
        known = before.get("coldStart", {}).get("pod") == pod.name
        if known and "device" in before:
            return self._device(key, pod, before["device"]), before["coldStart"]
        findings = self._inspection.of(key, pod)
        if known and findings.report is None:
            return None, before["coldStart"]
        device = findings.report.device if findings.report else None
        cold_start = coldstart.cold_start(pod, findings.report, findings.pull)
        return device, coldstart.completed(before["coldStart"], cold_start) if known else cold_start

    def _device(self, key: Key, pod: Pod, before: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """What a pod's server runs on, if a run of it once said `before`."""
        if not pod.restarts:
            return before
        # Nobody may have been there to see the restart.
        findings = self._inspection.of(key, pod)
        if findings.report:
            return findings.report.device
        return before if findings.asking else None

    def _count(self, cr: LLMDeployment, before: Body, status: Body) -> None:
        """Count a cold start once for each pod."""
        was, now = before.get("coldStart", {}), status.get("coldStart")
        if now and now["pod"] != was.get("pod"):
            self._telemetry.observe_cold_start(
                cr.spec.model.id, status.get("target", ""), coldstart.total_seconds(now)
            )

    async def _announce(self, cr: LLMDeployment, before: Body, status: Body) -> None:
        """Events when the object begins to serve, or when something new is in the way."""
        was = conditions.condition(before, conditions.READY) or {}
        now = conditions.condition(status, conditions.READY) or {}
        if (was.get("status"), was.get("reason")) != (now["status"], now["reason"]):
            _log(cr, now)
            if now["reason"] not in _QUIET_REASONS:
                normal = now["status"] == "True" or now["reason"] in _WANTED_REASONS
                await self._tell(cr, now, normal=normal)
        was = conditions.condition(before, conditions.STALLED) or {}
        stalled = conditions.condition(status, conditions.STALLED)
        if stalled and stalled["reason"] not in {was.get("reason"), now["reason"]}:
            _log(cr, stalled)  # in the way of a rollout while pods serve
            await self._tell(cr, stalled, normal=False)
        was = conditions.condition(before, conditions.ACCELERATED) or {}
        accelerated = conditions.condition(status, conditions.ACCELERATED)
        if accelerated and accelerated["status"] == "False" != was.get("status"):
            _log(cr, accelerated)
            await self._tell(cr, accelerated, normal=False)

    async def _tell(self, cr: LLMDeployment, condition: Body, *, normal: bool) -> None:
        told = event(cr, condition, "Normal" if normal else "Warning", now=_now())
        try:
            await self._kube.create(EVENT, told)
        except ApiError as error:
            logger.warning("event not written: %s", error)


def _read(body: Body) -> tuple[LLMDeployment, Problem | None]:
    """The object in `body`, or if it predates a stricter CRD, what there is of it and a problem."""
    try:
        return LLMDeployment.parse(body), None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        problem = Problem(reasons.INVALID_SPEC, f"{path}: {first['msg']}", stalled=True, final=True)
        stub = {"metadata": body["metadata"], "spec": {"model": {"id": "unreadable"}}}
        return LLMDeployment.parse(stub), problem


def _told_by_events(pod: Pod) -> bool:
    """Whether only Events tell what is the matter with a pod."""
    return pod.diagnosis is not None and pod.diagnosis.in_words_of_events


def _needs_explanation(pod: Pod) -> bool:
    """Whether only Events tell why a pod does not begin, and it should have by now."""
    return _told_by_events(pod) and _patience(pod) <= dt.timedelta()


def _listen_in(pod: Pod) -> float:
    """Seconds after which the Events of a pod are worth a look."""
    return _patience(pod).total_seconds() or _LISTEN_SECONDS


def _patience(pod: Pod) -> dt.timedelta:
    """How long yet a pod may take without anybody asking why."""
    if not pod.scheduled or (pod.diagnosis and pod.diagnosis.failure):
        return dt.timedelta()
    waited = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(pod.scheduled)
    return max(_PATIENCE - waited, dt.timedelta())


def _log(cr: LLMDeployment, condition: Body) -> None:
    logger.info(
        "%s/%s: %s=%s %s: %s",
        cr.metadata.namespace,
        cr.metadata.name,
        condition["type"],
        condition["status"],
        condition["reason"],
        condition["message"],
    )


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
