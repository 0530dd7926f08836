"""Lists everything now and then, so that nothing that a watch missed stays unknown.

A watch that was cut for too long starts again from a list, and what was deleted in between is
never told. Knows which objects are the operator's; what is done about them is the queue's work.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from llm_operator import names
from llm_operator.cache import Body, Cache, Key
from llm_operator.kube import ApiError, Kube
from llm_operator.resources import LLM_DEPLOYMENT, NODE, OPTIONAL, OWNED, POD, Resource
from llm_operator.settings import Settings

logger = logging.getLogger(__name__)

MANAGED = f"{names.MANAGED_BY_LABEL}={names.MANAGER}"
"""Selects the objects that the operator made, and their pods."""

_RETRY_SECONDS = 2
_AGAIN_SECONDS = 15
"""When a list that failed is tried again."""
_SECOND_SECONDS = 10
"""When the second list follows the first: the watches began in between."""


class Resync:
    """Keeps the cache true by lists.

    Args:
        kube: Where objects are listed.
        cache: What is kept true.
        add: Called for each LLMDeployment to look at.
        settings: Namespaces, whether nodes may be listed, and how often.
        listed: Called with every list: the kind, the namespace or empty for all, the objects.
    """

    def __init__(
        self,
        *,
        kube: Kube,
        cache: Cache,
        add: Callable[[Key], None],
        settings: Settings,
        listed: Callable[[Resource, str, Sequence[Body]], None] = lambda *_: None,
    ) -> None:
        self._kube = kube
        self._cache = cache
        self._add = add
        self._settings = settings
        self._listed = listed

    async def first(self) -> None:
        """List everything for the first time: without that nothing can be decided."""
        while True:
            try:
                return await self.everything()
            except ApiError as error:
                logger.warning("cannot start yet: %s", error)
            await asyncio.sleep(_RETRY_SECONDS)

    async def run(self) -> None:
        """List everything now and then, for ever."""
        await asyncio.sleep(min(_SECOND_SECONDS, self._settings.resync_seconds))
        while True:
            pause = self._settings.resync_seconds
            try:
                await self.everything()
            except ApiError as error:
                logger.warning("resync failed, watches go on: %s", error)
                pause = min(pause, _AGAIN_SECONDS)
            await asyncio.sleep(pause)

    async def everything(self) -> None:
        """List everything, and only then have every LLMDeployment looked at.

        Before the last list is in, the cache is no ground for a decision: an LLMDeployment whose
        pods are not listed yet would seem to serve nothing.

        Raises:
            ApiError: a list was refused.
        """
        namespaces = self._settings.watch_namespaces or ("",)
        concerned: set[Key] = set()
        concerned |= await self._list(LLM_DEPLOYMENT, namespaces, "")
        for resource in (*await self.kinds(), POD):
            concerned |= await self._list(resource, namespaces, MANAGED)
        if self._settings.watch_nodes:
            await self._list(NODE, ("",), "")
        for key in concerned.union(self._cache.llm_deployments()):
            self._add(key)

    async def kinds(self) -> list[Resource]:
        """The kinds of objects that an LLMDeployment may have in this cluster.

        Raises:
            ApiError: the API server could not tell.
        """
        return [
            resource
            for resource in OWNED
            if resource not in OPTIONAL or await self._kube.serves(resource)
        ]

    async def _list(self, resource: Resource, namespaces: Iterable[str], selector: str) -> set[Key]:
        concerned: set[Key] = set()
        for namespace in namespaces:
            bodies, version = await self._kube.list_all(
                resource, namespace, selector=selector, keep=partial(self._cache.trim, resource)
            )
            concerned |= self._cache.replace(resource, namespace, bodies, version)
            self._listed(resource, namespace, bodies)
        return concerned
