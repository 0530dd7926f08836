"""Makes the objects of an LLMDeployment what they should be, and takes away what should not be.

Knows what an answer of the API server means to the user. What the objects are is decided before
(render), whose they are by ownership.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from llm_operator import drift, ownership, reasons
from llm_operator.api import LLMDeployment
from llm_operator.cache import Cache, Key
from llm_operator.conditions import Problem
from llm_operator.kube import ApiError, Kube
from llm_operator.manifest import Manifest
from llm_operator.resources import DEPLOYMENT, LLM_DEPLOYMENT, OPTIONAL, OWNED, SERVICE, Resource
from llm_operator.status import UNOBSERVED

logger = logging.getLogger(__name__)

_SERVING = (DEPLOYMENT, SERVICE)
"""Without these nothing serves."""
_HTTP_FORBIDDEN = 403
_HTTP_NOT_FOUND = 404
_HTTP_CONFLICT = 409
_HTTP_INVALID = 422
_INVALID = frozenset({400, _HTTP_INVALID})


class Writer:
    """Writes the objects of LLMDeployments.

    Args:
        kube: Where they are written.
        cache: What is known of them.
    """

    def __init__(self, *, kube: Kube, cache: Cache) -> None:
        self._kube = kube
        self._cache = cache

    async def write(
        self, cr: LLMDeployment, key: Key, manifests: Sequence[Manifest]
    ) -> Problem | None:
        """Write what differs and delete what is not wanted any more.

        Returns:
            What is in the way, if anything is: first what keeps pods from serving.
        """
        wanted = {manifest["kind"]: manifest for manifest in manifests}
        found = await asyncio.gather(
            *(self._settle(cr, key, resource, wanted.get(resource.kind)) for resource in OWNED)
        )
        problems = [problem for problem in found if problem]
        return next((each for each in problems if not each.aside), None) or next(
            iter(problems), None
        )

    async def _settle(
        self, cr: LLMDeployment, key: Key, resource: Resource, manifest: Manifest | None
    ) -> Problem | None:
        live = self._cache.get(resource, key)
        try:
            if manifest is not None:
                return await self._ensure(cr, key, resource, manifest, live)
            if live is not None and ownership.owned(live, cr):
                await self._remove(key, resource, live)
        except ApiError as error:
            return problem_of(error, resource, cr)
        return None

    async def _ensure(
        self,
        cr: LLMDeployment,
        key: Key,
        resource: Resource,
        manifest: Manifest,
        live: Mapping[str, Any] | None,
    ) -> Problem | None:
        """Make the object what `manifest` says, unless it belongs to somebody else."""
        # Of a kind that is gone nothing is known any more, so what is known needs no look.
        if resource in OPTIONAL and live is None and not await self._kube.serves(resource):
            return _not_served(resource)
        if live is None:
            if await self._is_gone(cr):
                return None
            live = await self._kube.get(resource, *key)
        if live is not None:
            taken = ownership.occupied(live, cr, resource.kind)
            if taken:
                reason = reasons.ROLLOUT_IN_PROGRESS if taken.passing else reasons.NAME_CONFLICT
                aside = resource not in _SERVING
                return Problem(reason, taken.message, stalled=not taken.passing, aside=aside)
            if drift.matches(manifest, live):
                return None
        answer = await self._put(resource, manifest, live)
        self._cache.put(resource, answer)
        logger.info("%s/%s: applied %s", *key, resource.kind)
        return None

    async def _put(
        self, resource: Resource, manifest: Manifest, live: Mapping[str, Any] | None
    ) -> Manifest:
        """Create or mend an object."""
        try:
            return await self._kube.apply(resource, manifest, force=live is not None)
        except ApiError as error:
            if live is None or error.status != _HTTP_INVALID:
                raise
            # An apply leaves what somebody else wrote into a list: after an edit of a Service's
            # port there would be two of one name.
            return await self._kube.overwrite(resource, manifest, uid=live["metadata"]["uid"])

    async def _remove(self, key: Key, resource: Resource, live: Mapping[str, Any]) -> None:
        """Delete an object of `cr` that is not wanted any more; that very object alone."""
        if "deletionTimestamp" in live["metadata"]:
            return
        try:
            await self._kube.delete(resource, *key, uid=live["metadata"]["uid"])
        except ApiError as error:
            if error.status not in {_HTTP_NOT_FOUND, _HTTP_CONFLICT}:
                raise
        logger.info("%s/%s: deleted %s", *key, resource.kind)

    async def _is_gone(self, cr: LLMDeployment) -> bool:
        """Whether the LLMDeployment was deleted while its objects vanished: nothing is put back.

        An object never seen before needs no look: its objects are missing because it is new.
        """
        if cr.status.observed_generation in {None, UNOBSERVED}:
            return False
        live = await self._kube.get(LLM_DEPLOYMENT, cr.metadata.namespace, cr.metadata.name)
        return (
            live is None
            or live["metadata"]["uid"] != cr.metadata.uid
            or "deletionTimestamp" in live["metadata"]
        )


def _not_served(resource: Resource) -> Problem:
    remedy = "install KEDA" if "keda" in resource.api_version else "install the Prometheus Operator"
    field = "autoscaling.metric" if "keda" in resource.api_version else "monitoring.enabled"
    message = (
        f"the cluster has no {resource.kind} of {resource.api_version}: {remedy}, or change {field}"
    )
    return Problem(reasons.KIND_NOT_SERVED, message, stalled=True, aside=True)


def problem_of(error: ApiError, resource: Resource, cr: LLMDeployment) -> Problem:
    """What an answer of the API server means to the user."""
    aside = resource not in _SERVING
    message = f"{resource.kind} {cr.metadata.name}: {error.message}"
    if resource is DEPLOYMENT and cr.spec.model.source.image and _lacks_image_volumes(error):
        message = (
            "this cluster has no OCI image volumes, which model.source.image needs (Kubernetes 1.31"
            f" or later with feature gate ImageVolume): take another source; {error.message}"
        )
        return Problem(reasons.IMAGE_VOLUMES_UNSUPPORTED, message, stalled=True)
    # A field that the Deployment's schema lacks is answered with 500.
    if error.status in _INVALID or "field not declared in schema" in error.message:
        return Problem(reasons.INVALID_SPEC, message, stalled=True, final=True, aside=aside)
    if error.status == _HTTP_FORBIDDEN:
        quota = "exceeded quota" in error.message
        reason = reasons.QUOTA_EXCEEDED if quota else reasons.FORBIDDEN
        return Problem(reason, message, aside=aside)
    return Problem(reasons.API_ERROR, message, transient=True, aside=aside)


def _lacks_image_volumes(error: ApiError) -> bool:
    """Whether the API server does not know, or drops, the volume's field `image`."""
    unknown = "field not declared in schema" in error.message and "image" in error.message
    return unknown or "must specify a volume type" in error.message
