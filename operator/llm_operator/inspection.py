"""Asks pods' servers what they run on, and the kubelet's Events what it did.

Each pod is asked once it is ready, in the background: a reconcile never waits for a pod. Knows
where to ask and how long to try; what the answers mean is decided in coldstart and pods.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from llm_operator import names
from llm_operator.cache import Key
from llm_operator.coldstart import Pull, Report
from llm_operator.kube import EVENT, ApiError, Kube
from llm_operator.pods import Pod, Warned

logger = logging.getLogger(__name__)

_TIMEOUT = aiohttp.ClientTimeout(total=2)
_TRIES = (0.0, 2.0, 10.0)
"""Seconds to wait before each try to reach a server."""
_AT_ONCE = 16
_EVENTS_SECONDS = 15.0
"""How old the Events of a pod that waits may be before they are asked for again."""


@dataclass
class Findings:
    """What is known of one pod from others than the API object."""

    report: Report | None = None
    pull: Pull | None = None
    warnings: Sequence[Warned] = ()
    """What the kubelet warned of, newest first."""
    events_at: float = field(default=float("-inf"))
    asked: bool = False


class Inspection:
    """Finds out about pods.

    Args:
        kube: Where Events are read.
        add: Called for an LLMDeployment about whose pods there is news.
    """

    def __init__(self, *, kube: Kube, add: Callable[[Key], None]) -> None:
        self._kube = kube
        self._add = add
        self._findings: dict[Key, dict[str, Findings]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._session: aiohttp.ClientSession | None = None

    def keep(self, key: Key, pods: Iterable[Pod]) -> None:
        """Forget all pods of the LLMDeployment `key` but these."""
        known = self._findings.get(key)
        if known is None:
            return
        kept = {pod.uid: known[pod.uid] for pod in pods if pod.uid in known}
        if kept:
            self._findings[key] = kept
        else:
            del self._findings[key]

    def of(self, key: Key, pod: Pod) -> Findings:
        """What is known of a ready pod. The first time it begins to find out."""
        findings = self._entry(key, pod)
        if not findings.asked and pod.address:
            findings.asked = True
            self._spawn(self._ask(key, pod, pod.address, findings))
        return findings

    def warnings_about(self, key: Key, pod: Pod) -> Sequence[Warned]:
        """What the kubelet warned of, as far as known; its Events are asked for now and then."""
        findings = self._entry(key, pod)
        if time.monotonic() - findings.events_at > _EVENTS_SECONDS:
            findings.events_at = time.monotonic()
            self._spawn(self._listen(key, pod, findings))
        return findings.warnings

    async def close(self) -> None:
        """Stop asking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session:
            await self._session.close()

    def _entry(self, key: Key, pod: Pod) -> Findings:
        return self._findings.setdefault(key, {}).setdefault(pod.uid, Findings())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, key: Key, pod: Pod, address: str, findings: Findings) -> None:
        for delay in _TRIES:
            await asyncio.sleep(delay)
            try:
                async with self._slots:
                    findings.report = await self._report(address)
                break
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                logger.debug("%s/%s: pod %s was not reached: %s", *key, pod.name, error)
        else:
            return
        # Only of a pod that is really there: its Events cost the API server a look at all of them.
        findings.pull = Pull.of(await self._events(key, pod), names.CONTAINER)
        self._add(key)

    async def _report(self, address: str) -> Report:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=_TIMEOUT)
        host = f"[{address}]" if ":" in address else address
        async with self._session.get(f"http://{host}:{names.PORT}/startupz") as answer:
            return Report.of(await answer.json())

    async def _listen(self, key: Key, pod: Pod, findings: Findings) -> None:
        warnings = warned(await self._events(key, pod))
        if warnings != findings.warnings:
            findings.warnings = warnings
            self._add(key)

    async def _events(self, key: Key, pod: Pod) -> list[dict[str, Any]]:
        try:
            events, _ = await self._kube.list_all(
                EVENT, key[0], fields=f"involvedObject.uid={pod.uid}"
            )
        except ApiError as error:
            logger.debug("%s/%s: no Events of pod %s: %s", *key, pod.name, error)
            return []
        return events


def warned(events: Iterable[dict[str, Any]]) -> Sequence[Warned]:
    """The warnings among the Events of a pod, newest first."""
    warnings = [event for event in events if event.get("type") == "Warning"]
    warnings.sort(key=lambda event: str(event.get("lastTimestamp") or ""), reverse=True)
    return tuple(Warned(event.get("reason", ""), event.get("message", "")) for event in warnings)
