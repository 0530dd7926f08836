"""When each object first was there, or first was Ready, by watches of the bench's own.

Knows moments on this process's clock. Does not know which of them belong together.
"""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

from bench.reconcile.cluster import LLM_DEPLOYMENT, POD, Body, Cluster, Kind, is_true

INSTANCE = "app.kubernetes.io/instance"

Moments = dict[str, float]
"""Name of an LLMDeployment → seconds on the monotonic clock."""


@dataclass
class Sightings:
    """What was seen so far.

    Attributes:
        there: By plural, when the object of each LLMDeployment appeared.
        pod_ready: When a pod of each first was Ready.
        ready: When each first was Ready.
        reasons: Reason of each one's condition Ready now.
    """

    there: defaultdict[str, Moments] = field(default_factory=lambda: defaultdict(dict))
    pod_ready: Moments = field(default_factory=dict)
    ready: Moments = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, done: Callable[[], bool], *, within: float, what: str) -> None:
        """Wait until `done`.

        Raises:
            TimeoutError: it was not, `within` seconds.
        """
        try:
            async with asyncio.timeout(within):
                while not done():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            raise TimeoutError(f"{what}: not within {within:.0f} s") from None

    def saw(self, kind: Kind, body: Body) -> None:
        """Take note of an object as it is now."""
        now, metadata = time.monotonic(), body["metadata"]
        name = metadata["name"]
        if kind is POD:
            name = metadata.get("labels", {}).get(INSTANCE, name)
            if is_true(body, "Ready"):
                self.pod_ready.setdefault(name, now)
        elif kind is LLM_DEPLOYMENT:
            if is_true(body, "Ready"):
                self.ready.setdefault(name, now)
            self.reasons[name] = _reason(body)
        else:
            self.there[kind.plural].setdefault(name, now)
        self.changed.set()


@contextlib.asynccontextmanager
async def watching(
    cluster: Cluster, namespace: str, kinds: Iterable[Kind]
) -> AsyncIterator[Sightings]:
    """Watch LLMDeployments, their pods and `kinds` for the length of the block."""
    seen = Sightings()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_watch(cluster, kind, namespace, seen))
            for kind in (LLM_DEPLOYMENT, POD, *kinds)
        ]
        yield seen
        for task in tasks:
            task.cancel()


async def _watch(cluster: Cluster, kind: Kind, namespace: str, seen: Sightings) -> None:
    """Watch for ever: a watch of LLMDeployments ends whenever somebody changes their CRD."""
    path = kind.path(namespace)
    while True:
        bodies, version = await cluster.items(path)
        for body in bodies:
            seen.saw(kind, body)
        async for type_, body in cluster.watch(path, version):
            if type_ in {"ADDED", "MODIFIED"}:
                seen.saw(kind, body)


def _reason(body: Body) -> str:
    conditions = body.get("status", {}).get("conditions", ())
    return next((each["reason"] for each in conditions if each["type"] == "Ready"), "")
