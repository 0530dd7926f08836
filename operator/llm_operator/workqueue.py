"""A queue of keys to work on: each at most once at a time, repeated until it succeeds.

Like the work queue of Go controllers: a key added while it is worked on is worked on once more,
a failure is tried again after a growing time. Does not know what the work is.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

_FIRST_RETRY_SECONDS = 0.25
_LAST_RETRY_SECONDS = 60.0


class Retry(Exception):  # noqa: N818 - a request, not an error
    """The work is not done and should be tried again. The message says what it waits for."""


class WorkQueue(Generic[K]):
    """Runs `work` for every key that is added.

    Args:
        work: Does the work for a key. Returns seconds after which it wants to be called again, or
            None. An exception is logged and tried again.
        limit: Most keys worked on at once.
    """

    def __init__(self, work: Callable[[K], Awaitable[float | None]], *, limit: int = 32) -> None:
        self._work = work
        self._slots = asyncio.Semaphore(limit)
        self._running: dict[K, asyncio.Task[None]] = {}
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._waiting_for: dict[K, str] = {}

    def __len__(self) -> int:
        """Number of keys that are worked on or wait for it."""
        return len(self._running)

    def add(self, key: K) -> None:
        """Work on `key` now, or once more if it is being worked on."""
        timer = self._timers.pop(key, None)
        if timer:
            timer.cancel()
        if key in self._running:
            self._again.add(key)
        else:
            self._running[key] = asyncio.create_task(self._run(key), name=f"work on {key}")

    def failures(self, key: K) -> int:
        """How often in a row the work on `key` failed."""
        return self._failures.get(key, 0)

    async def close(self) -> None:
        """Stop everything."""
        for timer in self._timers.values():
            timer.cancel()
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: K) -> None:
        try:
            async with self._slots:
                self._again.discard(key)
                delay = await self._attempt(key)
        finally:
            del self._running[key]
        if key in self._again:
            self._again.discard(key)
            self.add(key)
        elif delay is not None:
            loop = asyncio.get_running_loop()
            self._timers[key] = loop.call_later(delay, self.add, key)

    async def _attempt(self, key: K) -> float | None:
        try:
            delay = await self._work(key)
        except Retry as retry:
            delay = self._delay_after_failure(key)
            if self._waiting_for.get(key) != str(retry):
                logger.info("%s: %s", _text(key), retry)
            self._waiting_for[key] = str(retry)
        except Exception:
            delay = self._delay_after_failure(key)
            logger.exception("%s: failed; next try in %.2f s", _text(key), delay)
        else:
            self._failures.pop(key, None)
            self._waiting_for.pop(key, None)
        return delay

    def _delay_after_failure(self, key: K) -> float:
        failures = self._failures[key] = self.failures(key) + 1
        return float(min(_FIRST_RETRY_SECONDS * 2 ** (failures - 1), _LAST_RETRY_SECONDS))


def _text(key: Hashable) -> str:
    return "/".join(map(str, key)) if isinstance(key, tuple) else str(key)
