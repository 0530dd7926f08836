"""Follows the kinds that a cluster has only if something else is installed.

They come and go with KEDA and the Prometheus Operator, while a watch of kopf must be there from the
beginning and ends the process when its kind is gone. Knows when such a kind is there and what of it
is ours; what follows from a change is decided elsewhere.
"""

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence

from llm_operator import names
from llm_operator.cache import Body, Cache, Key, key_of
from llm_operator.kube import ApiError, Kube
from llm_operator.resources import OPTIONAL, Resource
from llm_operator.resync import MANAGED

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 30.0
"""Time between two looks at whether a kind is there."""
_RETRY_SECONDS = 5.0
_HTTP_NOT_FOUND = 404


class OptionalKinds:
    """Keeps the cache true for optional kinds.

    Args:
        kube: Where they are read.
        cache: What is kept true.
        add: Called for each LLMDeployment of which an object has changed.
        namespaces: Namespaces that are served; empty for all.
    """

    def __init__(
        self,
        *,
        kube: Kube,
        cache: Cache,
        add: Callable[[Key], None],
        namespaces: Sequence[str],
    ) -> None:
        self._kube = kube
        self._cache = cache
        self._add = add
        self._namespaces = tuple(namespaces) or ("",)

    async def run(self) -> None:
        """Follow them, for ever."""
        await asyncio.gather(
            *(
                self._follow(resource, namespace)
                for resource in OPTIONAL
                for namespace in self._namespaces
            )
        )

    async def _follow(self, resource: Resource, namespace: str) -> None:
        while True:
            try:
                if await self._kube.serves(resource):
                    await self._follow_once(resource, namespace)
                    continue
                self._gone(resource, namespace)
                pause = _LOOK_SECONDS
            except ApiError as error:
                pause = _RETRY_SECONDS
                if error.status != _HTTP_NOT_FOUND:
                    logger.warning("watch of %s: %s", resource.plural, error)
            except Exception:
                # Whatever it was: without this watch no change would be seen any more.
                pause = _RETRY_SECONDS
                logger.exception("watch of %s", resource.plural)
            await asyncio.sleep(pause)

    async def _follow_once(self, resource: Resource, namespace: str) -> None:
        """List, and watch until the API server ends the watch."""
        bodies, version = await self._kube.list_all(resource, namespace, selector=MANAGED)
        self._tell(self._cache.replace(resource, namespace, bodies, version))
        async for body in self._kube.watch_metadata(resource, namespace, since=version):
            if body["metadata"].get("labels", {}).get(names.MANAGED_BY_LABEL) == names.MANAGER:
                await self._saw(resource, body)

    async def _saw(self, resource: Resource, body: Body) -> None:
        """Something happened to an object: it is read as a whole, if it is still there."""
        key = key_of(body)
        live = await self._kube.get(resource, *key)
        news = self._cache.put(resource, live) if live else self._cache.remove(resource, body)
        if news:
            self._add(key)

    def _gone(self, resource: Resource, namespace: str) -> None:
        """The kind is gone, and with it every object."""
        self._tell(self._cache.replace(resource, namespace, (), at=sys.maxsize))

    def _tell(self, keys: set[Key]) -> None:
        for key in keys:
            self._add(key)
