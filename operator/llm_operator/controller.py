"""Brings one LLMDeployment to what its spec says, from whatever state it is in.

Knows the order: choose hardware and image, render, write what differs, tell in the status. What is
right is decided by the pure modules; when it runs, and how often, is the business of handlers and
work queue.
"""

import asyncio
import datetime as dt
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from llm_operator import api, conditions, drift, hardware, images, reasons, render
from llm_operator.api import LLMDeployment
from llm_operator.cache import Body, Cache, Key
from llm_operator.conditions import Observed, Problem
from llm_operator.hardware import Decision
from llm_operator.kube import (
    DEPLOYMENT,
    EVENT,
    LLM_DEPLOYMENT,
    SERVICE,
    ApiError,
    Kube,
    Resource,
)
from llm_operator.settings import Settings
from llm_operator.workqueue import Retry

logger = logging.getLogger(__name__)

# Steps on the way, not worth a warning to a person.
_QUIET_REASONS = frozenset({reasons.ROLLOUT_IN_PROGRESS, reasons.MODEL_LOADING})


@dataclass(frozen=True)
class Plan:
    """What should exist for one LLMDeployment."""

    decision: Decision
    image: str | None
    deployment: render.Manifest | None
    service: render.Manifest | None
    problem: Problem | None = None


class Controller:
    """Reconciles LLMDeployments.

    Args:
        kube: Where objects are written.
        cache: What is known of them.
        settings: What the person who installed the operator decided.
    """

    def __init__(
        self,
        *,
        kube: Kube,
        cache: Cache,
        settings: Settings,
    ) -> None:
        self._kube = kube
        self._cache = cache
        self._settings = settings

    async def reconcile(self, key: Key) -> None:
        """Bring the LLMDeployment `key` one step, usually the only one, nearer to its spec.

        Writes nothing if everything is as it should be.

        Raises:
            Retry: something is in the way that may go away by itself.
        """
        body = self._cache.get(LLM_DEPLOYMENT, key)
        if body is None or "deletionTimestamp" in body["metadata"]:
            return
        cr, problem = _read(body)
        plan = self._plan(cr, key) if problem is None else None
        if plan:
            problem = plan.problem or await self._write(cr, key, plan)
        await self._report(body, cr, key, plan, problem)
        if problem and not problem.final:
            raise Retry(f"{problem.reason}: {problem.message}")

    def _plan(self, cr: LLMDeployment, key: Key) -> Plan:
        default = self._settings.runtime_image
        decision = hardware.choose(
            cr.spec,
            previous=self._previous(cr, key),
            gpu_image=images.reference(cr.spec.image, default, "gpu") is not None,
            nodes=self._cache.nodes() if self._settings.watch_nodes else None,
        )
        image = images.reference(cr.spec.image, default, decision.target)
        if image is None:
            message = (
                f"no image for target {decision.target}: set spec.image, or a default when"
                " installing the operator (runtime.image.repository of the chart)"
            )
            problem = Problem(reasons.INVALID_SPEC, message, stalled=True, final=True)
            return Plan(decision, None, None, None, problem)
        manifest = render.deployment(
            cr,
            target=decision.target,
            image=image,
            pull_policy=default.pull_policy,
            pull_secrets=default.pull_secrets,
        )
        return Plan(decision, image, manifest, render.service(cr))

    def _previous(self, cr: LLMDeployment, key: Key) -> Decision | None:
        """What was chosen before, by the status, else by the Deployment."""
        if cr.status.target:
            return Decision(cr.status.target, cr.status.target_reason or "")
        live = self._cache.get(DEPLOYMENT, key)
        if live is None or not _owned(live, cr):
            return None
        labels = live["spec"]["template"]["metadata"].get("labels", {})
        target = labels.get(render.TARGET_LABEL)
        return Decision(target, "") if target in ("cpu", "gpu") else None

    async def _write(self, cr: LLMDeployment, key: Key, plan: Plan) -> Problem | None:
        """Write the objects that differ. Returns what is in the way, if anything is."""
        wanted = [(DEPLOYMENT, plan.deployment), (SERVICE, plan.service)]
        problems = await asyncio.gather(
            *(
                self._ensure(cr, key, resource, manifest)
                for resource, manifest in wanted
                if manifest is not None
            )
        )
        return next((problem for problem in problems if problem), None)

    async def _ensure(
        self, cr: LLMDeployment, key: Key, resource: Resource, manifest: render.Manifest
    ) -> Problem | None:
        """Make the object what `manifest` says, unless it belongs to somebody else."""
        live = self._cache.get(resource, key)
        try:
            if live is None:
                if await self._is_gone(cr):
                    return None
                live = await self._kube.get(resource, *key)
            if live is not None:
                problem = _occupied(live, cr, resource)
                if problem or drift.matches(manifest, live):
                    return problem
            answer = await self._kube.apply(resource, manifest, force=live is not None)
        except ApiError as error:
            return _problem(error, resource, cr.metadata.name)
        self._cache.put(resource, answer)
        logger.info("%s/%s: applied %s", *key, resource.kind)
        return None

    async def _is_gone(self, cr: LLMDeployment) -> bool:
        """Whether the LLMDeployment was deleted while its objects vanished: nothing is put back.

        An object never seen before needs no look: its objects are missing because it is new.
        """
        if cr.status.observed_generation is None:
            return False
        live = await self._kube.get(LLM_DEPLOYMENT, cr.metadata.namespace, cr.metadata.name)
        return (
            live is None
            or live["metadata"]["uid"] != cr.metadata.uid
            or "deletionTimestamp" in live["metadata"]
        )

    async def _report(
        self,
        body: Body,
        cr: LLMDeployment,
        key: Key,
        plan: Plan | None,
        problem: Problem | None,
    ) -> None:
        """Write the status if it changed, and an Event if that is news."""
        manifest = plan.deployment if plan else None
        live = self._cache.get(DEPLOYMENT, key)
        observed = Observed(
            template=render.template_digest(manifest) if manifest else None,
            deployment=live if live and _owned(live, cr) else None,
            pods=conditions.read_pods(self._cache.pods(key), since=cr.metadata.creation_timestamp),
            decision=plan.decision if plan else None,
            image=plan.image if plan else None,
            problem=problem,
        )
        status = conditions.status(cr, observed, now=_now())
        before = body.get("status", {})
        if status == before:
            return
        try:
            answer = await self._kube.apply_status(
                LLM_DEPLOYMENT,
                {"namespace": key[0], "name": key[1], "uid": cr.metadata.uid},
                status,
            )
        except ApiError as error:
            if error.status in {404, 409}:  # deleted meanwhile, or another object by now
                return
            raise Retry(f"status not written: {error}") from error
        self._cache.put(LLM_DEPLOYMENT, answer)
        await self._announce(cr, before, status)

    async def _announce(self, cr: LLMDeployment, before: Body, status: Body) -> None:
        """An Event when the object begins to serve, or when something new is in the way."""
        was = conditions.condition(before, conditions.READY) or {}
        now = conditions.condition(status, conditions.READY) or {}
        if (was.get("status"), was.get("reason")) == (now["status"], now["reason"]):
            return
        logger.info(
            "%s/%s: Ready=%s %s: %s",
            cr.metadata.namespace,
            cr.metadata.name,
            now["status"],
            now["reason"],
            now["message"],
        )
        if now["reason"] in _QUIET_REASONS:
            return
        normal = now["status"] == "True" or now["reason"] == reasons.SCALED_TO_ZERO
        try:
            await self._kube.create(EVENT, _event(cr, now, "Normal" if normal else "Warning"))
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


def _owned(live: Body, cr: LLMDeployment) -> bool:
    """Whether `cr` is the controller of the object `live`."""
    owner = _controller(live)
    return owner is not None and owner["uid"] == cr.metadata.uid


def _controller(live: Body) -> Mapping[str, Any] | None:
    owners: list[Mapping[str, Any]] = live["metadata"].get("ownerReferences", [])
    return next((owner for owner in owners if owner.get("controller")), None)


def _occupied(live: Body, cr: LLMDeployment, resource: Resource) -> Problem | None:
    """Why the object `live` cannot become the one of `cr`."""
    what = f"{resource.kind} {cr.metadata.name}"
    owner = _controller(live)
    former = owner is not None and (owner["kind"], owner["name"]) == (api.KIND, cr.metadata.name)
    if not _owned(live, cr) and not former:
        whose = f"belongs to {owner['kind']} {owner['name']}" if owner else "has no owner"
        message = f"{what} exists and {whose}: delete it, or give the {api.KIND} another name"
        return Problem(reasons.NAME_CONFLICT, message, stalled=True)
    if former and not _owned(live, cr):
        message = f"{what} of a deleted {api.KIND} of the same name is being removed"
        return Problem(reasons.ROLLOUT_IN_PROGRESS, message)
    if "deletionTimestamp" in live["metadata"]:
        return Problem(reasons.ROLLOUT_IN_PROGRESS, f"{what} is being deleted")
    return None


def _problem(error: ApiError, resource: Resource, name: str) -> Problem:
    """What an answer of the API server means to the user."""
    message = f"{resource.kind} {name}: {error.message}"
    # A field that the Deployment's schema lacks is answered with 500.
    if error.status in {400, 422} or "field not declared in schema" in error.message:
        return Problem(reasons.INVALID_SPEC, message, stalled=True, final=True)
    if error.status == 403:  # noqa: PLR2004
        quota = "exceeded quota" in error.message
        return Problem(reasons.QUOTA_EXCEEDED if quota else reasons.FORBIDDEN, message)
    return Problem(reasons.API_ERROR, message, transient=True)


def _event(cr: LLMDeployment, condition: Body, type_: str) -> Body:
    meta = cr.metadata
    now = _now()
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": meta.namespace, "name": f"{meta.name}.{secrets.token_hex(8)}"},
        "involvedObject": {
            "apiVersion": api.API_VERSION,
            "kind": api.KIND,
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
        },
        "type": type_,
        "reason": condition["reason"],
        "message": condition["message"],
        "source": {"component": render.MANAGER},
        "reportingComponent": render.MANAGER,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
