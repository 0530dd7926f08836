"""A queue of keys to work on: each at most once at a time, repeated until it succeeds.

Like the work queue of Go controllers: a key added while it is worked on is worked on once more,
a failure is tried again after a growing time. After its turn a key rests for a moment: much happens
while pods start, and all of it together is worth one more turn. Does not know what the work is.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from llm_operator import logs

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

_FIRST_RETRY_SECONDS = 0.25
_LAST_RETRY_SECONDS = 60.0
_REST_SECONDS = 0.2


class Retry(Exception):  # noqa: N818 - a request, not an error
    """The work is not done and should be tried again. The message says what it waits for."""


class WorkQueue(Generic[K]):
    """Runs `work` for every key that is added.

    Args:
        work: Does the work for a key. Returns seconds after which it wants to be called again, or
            None. An exception is logged and tried again.
        limit: Most keys worked on at once.
        observe: Called after every attempt with its outcome, `success`, `waiting` or `error`, and
            the seconds it took.
    """

    def __init__(
        self,
        work: Callable[[K], Awaitable[float | None]],
        *,
        limit: int = 32,
        observe: Callable[[str, float], None] = lambda *_: None,
    ) -> None:
        self._work = work
        self._observe = observe
        self._slots = asyncio.Semaphore(limit)
        self._at_work = 0
        self._closed = False
        self._running: dict[K, asyncio.Task[None]] = {}
        self._again: set[K] = set()
        self._resting: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._waiting_for: dict[K, str] = {}

    def __len__(self) -> int:
        """Number of keys that are worked on or wait for it."""
        return len(self._running) + len(self._resting & self._again)

    def __bool__(self) -> bool:
        """Always true: that a queue is empty does not mean that there is none."""
        return True

    def load(self) -> tuple[int, int, int]:
        """Number of keys that wait, that are worked on, and that will be later."""
        waiting = len(self) - self._at_work
        return waiting, self._at_work, len(self._timers)

    def add(self, key: K) -> None:
        """Work on `key` now, or once more after its rest. A closed queue does nothing."""
        if self._closed:
            return
        timer = self._timers.pop(key, None)
        if timer:
            timer.cancel()
        if key in self._running or key in self._resting:
            self._again.add(key)
        else:
            self._running[key] = asyncio.create_task(self._run(key), name=f"work on {key}")

    def failures(self, key: K) -> int:
        """How often in a row the work on `key` failed."""
        return self._failures.get(key, 0)

    async def close(self, *, grace: float = 0) -> None:
        """Begin nothing any more, and stop what runs.

        Args:
            grace: Seconds that work under way is given to end by itself.
        """
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._again.clear()
        if self._running and grace:
            await asyncio.wait(self._running.values(), timeout=grace)
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: K) -> None:
        delay = None
        try:
            async with self._slots:
                self._again.discard(key)
                if not self._closed:
                    with logs.about(key):
                        delay = await self._attempt(key)
        finally:
            del self._running[key]
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        self._resting.add(key)
        loop.call_later(_REST_SECONDS, self._rested, key)
        if delay is not None and key not in self._again:
            self._timers[key] = loop.call_later(delay, self.add, key)

    def _rested(self, key: K) -> None:
        self._resting.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    async def _attempt(self, key: K) -> float | None:
        began, outcome = time.perf_counter(), "success"
        self._at_work += 1
        try:
            delay = await self._work(key)
        except Retry as retry:
            outcome = "waiting"
            delay = self._delay_after_failure(key)
            if self._waiting_for.get(key) != str(retry):
                logger.info("%s", retry)
            self._waiting_for[key] = str(retry)
        except Exception:
            outcome = "error"
            delay = self._delay_after_failure(key)
            logger.exception("failed; next try in %.2f s", delay)
        else:
            self._failures.pop(key, None)
            self._waiting_for.pop(key, None)
        finally:
            self._at_work -= 1
        self._observe(outcome, time.perf_counter() - began)
        return delay

    def _delay_after_failure(self, key: K) -> float:
        failures = self._failures[key] = self.failures(key) + 1
        return float(min(_FIRST_RETRY_SECONDS * 2 ** (failures - 1), _LAST_RETRY_SECONDS))
