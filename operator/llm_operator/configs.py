"""Follows the Secrets and ConfigMaps that pods read when they start.

Metadata alone is watched; what an object holds is fetched when its version changed, turned into
digests and forgotten. Nothing is watched before the first LLMDeployment refers to something. Knows
who refers to what; what follows from a change is decided elsewhere.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_operator import references
from llm_operator.cache import Key
from llm_operator.kube import ApiError, Kube
from llm_operator.references import Reference
from llm_operator.resources import CONFIG_MAP, SECRET, Resource

logger = logging.getLogger(__name__)

_RESOURCES = {"Secret": SECRET, "ConfigMap": CONFIG_MAP}
_RETRY_SECONDS = 2.0

Held = tuple[str, str, str]
"""Kind, namespace and name of an object."""


@dataclass(frozen=True)
class _Known:
    """What an object held at a version; neither if it did not exist."""

    version: str | None
    digests: Mapping[str, str] | None


class Configs:
    """Digests of what pods read when they start.

    Args:
        kube: Where objects are read.
        namespaces: Namespaces that are served; empty for all.
        add: Called for each LLMDeployment that reads what has changed.
    """

    def __init__(
        self, *, kube: Kube, namespaces: Sequence[str], add: Callable[[Key], None]
    ) -> None:
        self._kube = kube
        self._namespaces = tuple(namespaces) or ("",)
        self._add = add
        self._readers: dict[Held, set[Key]] = {}
        self._reads: dict[Key, frozenset[Held]] = {}
        self._known: dict[Held, _Known] = {}
        self._watches: dict[str, list[asyncio.Task[None]]] = {}

    async def digest(
        self, key: Key, found: Sequence[Reference], *, before: str | None
    ) -> str | None:
        """One digest for all that the pods of the LLMDeployment `key` read; None for nothing.

        While something is missing that pods do not start without, it stays what it was: pods that
        serve are not replaced by pods that cannot start.

        Args:
            key: The LLMDeployment.
            found: What its pods read.
            before: The digest that its pods were made with.

        Raises:
            ApiError: an object could not be read.
        """
        self._take_note(key, frozenset((each.kind, key[0], each.name) for each in found))
        for kind in {each.kind for each in found}:
            self._watch(kind)
        read = [(each, await self._digests((each.kind, key[0], each.name))) for each in found]
        if before and references.lacking(read):
            return before
        return references.combined(read)

    def forget(self, key: Key) -> None:
        """The LLMDeployment `key` is gone."""
        self._take_note(key, frozenset())

    async def close(self) -> None:
        """Stop watching."""
        tasks = [task for tasks in self._watches.values() for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take_note(self, key: Key, held: frozenset[Held]) -> None:
        before = self._reads.pop(key, frozenset())
        for each in before - held:
            self._readers[each].discard(key)
            if not self._readers[each]:
                del self._readers[each]
                self._known.pop(each, None)
        for each in held:
            self._readers.setdefault(each, set()).add(key)
        if held:
            self._reads[key] = held

    async def _digests(self, held: Held) -> Mapping[str, str] | None:
        known = self._known.get(held)
        if known is None:
            kind, namespace, name = held
            body = await self._kube.get(_RESOURCES[kind], namespace, name)
            known = _Known(None, None)
            if body:
                known = _Known(body["metadata"]["resourceVersion"], references.digests(body))
            if held in self._readers:
                self._known[held] = known
        return known.digests

    def _watch(self, kind: str) -> None:
        if kind not in self._watches:
            resource = _RESOURCES[kind]
            self._watches[kind] = [
                asyncio.create_task(self._follow(resource, namespace), name=f"watch {kind}")
                for namespace in self._namespaces
            ]

    async def _follow(self, resource: Resource, namespace: str) -> None:
        while True:
            try:
                await self._follow_once(resource, namespace)
            except ApiError as error:
                logger.warning("watch of %s: %s", resource.plural, error)
                await asyncio.sleep(_RETRY_SECONDS)
            except Exception:
                # Whatever it was: without this watch no change would be seen any more.
                logger.exception("watch of %s", resource.plural)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _follow_once(self, resource: Resource, namespace: str) -> None:
        bodies, version = await self._kube.list_all(resource, namespace, metadata_only=True)
        there = {(body["metadata"]["namespace"], body["metadata"]["name"]): body for body in bodies}
        for held in [held for held in self._known if held[0] == resource.kind]:
            if not namespace or held[1] == namespace:
                self._saw(held, there.get(held[1:]))
        async for body in self._kube.watch_metadata(resource, namespace, since=version):
            metadata = body["metadata"]
            # Also what was deleted comes with a version of its own, which no digest was made at.
            self._saw((resource.kind, metadata["namespace"], metadata["name"]), body)

    def _saw(self, held: Held, body: Mapping[str, Any] | None) -> None:
        """Have an object read again, if it is not the one that is known."""
        known = self._known.get(held)
        version = body["metadata"]["resourceVersion"] if body else None
        if held not in self._readers or (known and known.version == version):
            return
        self._known.pop(held, None)
        for key in self._readers[held]:
            self._add(key)
