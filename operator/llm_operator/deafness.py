"""Notices a watch that is open and tells nothing any more.

kopf itself ends the process when a watch dies, and opens a watch anew that brought nothing, not
even a bookmark, for 70 s. What is left are watches that seem well: something between here and the
API server keeps them open or opens them anew and swallows what they should bring. The lists of the
resync show that: they know of a version that the watch should have told long ago.

Knows versions. Does not know who lists, who watches, and what is done about it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_operator.resources import Resource

Body = Mapping[str, Any]

PATIENCE_SECONDS = 90.0
"""How long a watch may owe what a list showed: longer than kopf needs to open it anew."""


@dataclass(frozen=True)
class Watch:
    """One watch: a kind, in one namespace or in all."""

    resource: Resource
    namespace: str = ""

    def __str__(self) -> str:
        return f"{self.resource.plural} in {self.namespace or 'all namespaces'}"


@dataclass(frozen=True)
class _Debt:
    """A version that a list showed and the watch has not told."""

    version: int
    object: tuple[str, str]
    since: float


class Deafness:
    """Compares what watches tell with what lists show.

    Versions of one kind grow with every write, and a watch tells them in their order: whoever told
    a newer version is not deaf.

    Args:
        namespaces: Namespaces that have watches of their own; empty if one sees all.
        now: The clock, in seconds.
    """

    def __init__(
        self, namespaces: Sequence[str] = (), *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._namespaces = frozenset(namespaces)
        self._now = now
        self._heard: dict[Watch, int] = {}
        self._debts: dict[Watch, _Debt] = {}
        self._deaf: set[Watch] = set()

    def heard(self, resource: Resource, body: Body) -> None:
        """A watch told of an object."""
        watch = Watch(resource, self._scope(body))
        version = max(self._heard.get(watch, 0), _version(body))
        self._heard[watch] = version
        debt = self._debts.get(watch)
        if debt and debt.version <= version:
            del self._debts[watch]
            self._deaf.discard(watch)

    def listed(self, resource: Resource, namespace: str, bodies: Sequence[Body]) -> None:
        """A list showed objects, in one namespace or, if it is empty, in all."""
        watch = Watch(resource, namespace)
        debt = self._debts.get(watch)
        if debt:
            # What was deleted while a watch was opened anew is never told: no ground for a verdict.
            if debt.object not in {_key(body) for body in bodies}:
                del self._debts[watch]
            elif self._is_due(debt):
                self._deaf.add(watch)
        newest = max(bodies, key=_version, default=None)
        if newest is None or watch in self._debts:
            return
        if _version(newest) > self._heard.get(watch, 0):
            self._debts[watch] = _Debt(_version(newest), _key(newest), self._now())

    def unreachable(self) -> None:
        """A list was not answered: no watch can have told anything. Patience begins anew."""
        self._debts.clear()

    def is_suspected(self) -> bool:
        """Whether another list would show that a watch is deaf, or clear it."""
        return any(self._is_due(debt) for debt in self._debts.values())

    def found(self) -> list[str]:
        """The deaf watches, each in words."""
        return sorted(map(str, self._deaf))

    def _is_due(self, debt: _Debt) -> bool:
        return self._now() - debt.since >= PATIENCE_SECONDS

    def _scope(self, body: Body) -> str:
        namespace: str = body["metadata"].get("namespace", "")
        return namespace if namespace in self._namespaces else ""


def _version(body: Body) -> int:
    return int(body["metadata"].get("resourceVersion", 0))


def _key(body: Body) -> tuple[str, str]:
    return body["metadata"].get("namespace", ""), body["metadata"]["name"]
