"""Asks pods' servers what they run on, and the kubelet's Events what it did.

Each pod is asked once it is ready, again if its server was started anew, and in the background: a
reconcile never waits for a pod. Knows where to ask and how long to try; what the answers mean is
decided in coldstart and pods.
"""

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from llm_operator import names
from llm_operator.cache import Key
from llm_operator.coldstart import Pull, Report
from llm_operator.kube import ApiError, Kube
from llm_operator.pods import SANDBOX_WARNING, VOLUME_WARNINGS, Pod, Warned
from llm_operator.resources import EVENT

logger = logging.getLogger(__name__)

_TIMEOUT = aiohttp.ClientTimeout(total=2)
_TRIES = (0.0, 2.0, 10.0)
"""Seconds to wait before each try to reach a server."""
_AT_ONCE = 16
_EVENTS_SECONDS = 15.0
"""How old the Events of a pod that waits may be before they are asked for again."""
_REPEATED = dt.timedelta(minutes=5)
"""Within what time the kubelet tries again, and warns again, if something is still in the way."""
_BEYOND_PREPARATION = frozenset({"Pulling", "Pulled", "Created", "Started"})
"""What the kubelet says of a pod whose sandbox and volumes are there."""
_OF_PREPARATION = VOLUME_WARNINGS | {SANDBOX_WARNING}
_NEVER = dt.datetime.min.replace(tzinfo=dt.UTC)


@dataclass
class Findings:
    """What is known of one pod from others than the API object."""

    report: Report | None = None
    pull: Pull | None = None
    warnings: Sequence[Warned] = ()
    """What the kubelet warned of, newest first."""
    events_at: float = field(default=float("-inf"))
    asked: str | None = None
    """When the server started that was asked."""
    asking: bool = False
    """Whether its answer may still come."""


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
        started = pod.started or ""
        if findings.asked != started and pod.address:
            findings.asked, findings.report, findings.asking = started, None, True
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
                    report = await self._report(address)
                # Only of a pod that answers: its Events cost the API server a look at all of them.
                pull = Pull.of(await self._events(key, pod), names.CONTAINER)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError, ApiError) as error:
                logger.debug("%s/%s: not found out about pod %s: %s", *key, pod.name, error)
                continue
            if findings.asked == (pod.started or ""):
                findings.report, findings.pull, findings.asking = report, pull, False
                self._add(key)
            return
        if findings.asked == (pod.started or ""):
            findings.asking = False
            if pod.restarts:
                self._add(key)  # what an earlier run of the server said holds no longer

    async def _report(self, address: str) -> Report:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=_TIMEOUT)
        host = f"[{address}]" if ":" in address else address
        async with self._session.get(f"http://{host}:{names.PORT}/startupz") as answer:
            return Report.of(await answer.json())

    async def _listen(self, key: Key, pod: Pod, findings: Findings) -> None:
        try:
            warnings = warned(await self._events(key, pod))
        except ApiError as error:
            logger.debug("%s/%s: no Events of pod %s: %s", *key, pod.name, error)
            findings.events_at = float("-inf")  # what is known stays, and is asked for at once
            return
        if warnings != findings.warnings:
            findings.warnings = warnings
            self._add(key)

    async def _events(self, key: Key, pod: Pod) -> list[dict[str, Any]]:
        events, _ = await self._kube.list_all(EVENT, key[0], fields=f"involvedObject.uid={pod.uid}")
        return events


def warned(events: Iterable[dict[str, Any]]) -> Sequence[Warned]:
    """The warnings among the Events of a pod that still hold, newest first.

    What the kubelet has stopped to warn of, or has got beyond, is history.
    """
    seen = sorted(((_at(event), event) for event in events), key=lambda pair: pair[0], reverse=True)
    beyond = next((at for at, event in seen if event.get("reason") in _BEYOND_PREPARATION), None)
    warnings = [(at, event) for at, event in seen if event.get("type") == "Warning"]
    return tuple(
        Warned(event.get("reason", ""), event.get("message", ""))
        for at, event in warnings
        if warnings[0][0] - at <= _REPEATED
        and (beyond is None or at > beyond or event.get("reason") not in _OF_PREPARATION)
    )


def _at(event: dict[str, Any]) -> dt.datetime:
    """When an Event was last seen."""
    series = event.get("series") or {}
    stamp = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return dt.datetime.fromisoformat(stamp) if stamp else _NEVER
