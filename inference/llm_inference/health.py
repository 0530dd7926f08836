"""The life of the server as a phase machine behind /livez, /readyz and /startupz.

Knows which phase the process is in, since when, and what the model reported of itself. Does not
know HTTP, nor how a phase is reached. Safe to use from the loading thread and the event loop.
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any

from llm_inference.engine.interface import DeviceReport


class Phase(StrEnum):
    """Where in its life the server is, in the order it gets there."""

    IMPORTING = "importing"
    DOWNLOADING = "downloading"
    LOADING = "loading"
    WARMING = "warming"
    SERVING = "serving"
    DRAINING = "draining"
    FAILED = "failed"


_STARTUP = (Phase.IMPORTING, Phase.DOWNLOADING, Phase.LOADING, Phase.WARMING)
# What has been reached when a phase of start-up is over.
_REACHED = {
    Phase.DOWNLOADING: "downloaded",
    Phase.LOADING: "weights_loaded",
    Phase.WARMING: "warmed_up",
}
_ALLOWED = {
    Phase.IMPORTING: {Phase.DOWNLOADING, Phase.LOADING, Phase.DRAINING, Phase.FAILED},
    # A model that has come is loaded by libraries that have yet to be imported.
    Phase.DOWNLOADING: {Phase.IMPORTING, Phase.DRAINING, Phase.FAILED},
    Phase.LOADING: {Phase.WARMING, Phase.DRAINING, Phase.FAILED},
    Phase.WARMING: {Phase.SERVING, Phase.DRAINING, Phase.FAILED},
    Phase.SERVING: {Phase.DRAINING, Phase.FAILED},
    Phase.DRAINING: {Phase.FAILED},
    Phase.FAILED: set(),
}


class Health:
    """The current phase and how long each one took.

    Args:
        model: id and revision to report, as far as known.
        started_at: `clock()` at which the process started.
        clock: seconds, monotonic.
        wall_clock: seconds since 1970.
    """

    def __init__(
        self,
        *,
        model_id: str | None = None,
        revision: str | None = None,
        started_at: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._started_at = clock() if started_at is None else started_at
        self._started_at_wall = wall_clock() - (clock() - self._started_at)
        self._timeline: dict[str, float] = {}
        self._phase = Phase.IMPORTING
        self._phase_since = self._started_at
        self._seconds: dict[Phase, float] = {}
        self._model = {"id": model_id, "revision": revision}
        self._quantization = "none"
        self._device: DeviceReport | None = None
        self._download: dict[str, int] | None = None
        self._error: str | None = None

    @property
    def phase(self) -> Phase:
        """The phase the server is in now."""
        return self._phase

    @property
    def ready(self) -> bool:
        """Whether a request sent now would be served."""
        return self._phase is Phase.SERVING

    @property
    def device(self) -> DeviceReport | None:
        """What the model runs on, None until it is loaded."""
        return self._device

    @property
    def error(self) -> str | None:
        """Why the server failed, None unless it did."""
        return self._error

    def enter(self, phase: Phase) -> bool:
        """Go to `phase`; False where the life of a server does not lead there.

        A loader that finishes after SIGTERM is such a case: draining is never left for serving.
        """
        with self._lock:
            if phase not in _ALLOWED[self._phase]:
                return False
            now = self._clock()
            spent = self._seconds.get(self._phase, 0.0)
            self._seconds[self._phase] = spent + now - self._phase_since
            if phase not in (Phase.DRAINING, Phase.FAILED) and self._phase in _REACHED:
                self._timeline[_REACHED[self._phase]] = now - self._started_at
            self._phase, self._phase_since = phase, now
            return True

    def answers(self) -> None:
        """Note that HTTP is answered from now on."""
        with self._lock:
            self._timeline.setdefault("process_up", self._clock() - self._started_at)

    def fail(self, reason: str) -> None:
        """Note why the server cannot go on; the first reason stays."""
        if self.enter(Phase.FAILED):
            self._error = reason

    def downloaded(self, done: int, total: int) -> None:
        """Note how many bytes of the model have come, and how many it has."""
        self._download = {"bytes_done": done, "bytes_total": total}

    def name_model(self, model_id: str, revision: str | None) -> None:
        """Record which model the directory holds."""
        self._model = {"id": model_id, "revision": revision}

    def name_quantization(self, quantization: str) -> None:
        """Record how the weights are held."""
        self._quantization = quantization

    def describe_device(self, device: DeviceReport) -> None:
        """Record what the loaded model runs on."""
        self._device = device

    def startup_seconds(self) -> dict[str, float]:
        """Seconds spent in each phase of start-up that is over."""
        with self._lock:
            return {p.value: self._seconds[p] for p in _STARTUP if p in self._seconds}

    def report(self) -> dict[str, Any]:
        """The body of /startupz.

        Every number is in seconds, but for the device's. `started_at` counts from 1970;
        `timeline` says after how many seconds from there something was reached, and holds
        nothing that has not been.
        """
        now = self._clock()
        with self._lock:
            timeline = dict(self._timeline)
        return {
            "started_at": round(self._started_at_wall, 3),
            "timeline": {name: round(seconds, 3) for name, seconds in timeline.items()},
            "phase": self._phase.value,
            "phaseSeconds": round(now - self._phase_since, 3),
            "elapsedSeconds": round(now - self._started_at, 3),
            "phases": {name: round(s, 3) for name, s in self.startup_seconds().items()},
            "download": self._download,
            "model": dict(self._model),
            "quantization": self._quantization,
            "device": asdict(self._device) if self._device else None,
            "error": self._error,
        }


def process_started_at() -> float:
    """`time.monotonic()` at which this process was started, from /proc where there is one."""
    try:
        stat = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
        uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    except OSError:
        return time.monotonic()
    ticks = int(stat.rpartition(")")[2].split()[19])
    age = uptime - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - max(0.0, age)
