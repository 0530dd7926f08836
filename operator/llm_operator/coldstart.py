"""How a pod came to serve, in seconds for each phase. Pure.

Knows three clocks' words: Kubernetes' time stamps (whole seconds), the kubelet's Event about the
pull, and the server's own report. Does not know how they are fetched (inspection).
"""

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from llm_operator.pods import Pod

Body = Mapping[str, Any]

_PULLED = re.compile(r"Successfully pulled image .* in (?P<took>\S+) \(")
_SIZE = re.compile(r"Image size: (?P<bytes>\d+) bytes")
_DURATION = re.compile(r"(?P<amount>[0-9.]+)(?P<unit>h|ms|m|us|µs|ns|s)")
_UNITS = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_ROUNDING_SECONDS = 2
"""How far two accounts of one cold start may differ: stamps are whole seconds, clocks differ."""
_DEVICE_FIELDS = {
    "type": "type",
    "name": "name",
    "dtype": "dtype",
    "memory": "memory_bytes",
    "threads": "threads",
}


@dataclass(frozen=True)
class Pull:
    """What the kubelet told about the server's image."""

    seconds: float
    """0 if the image was there."""
    image_bytes: int | None

    @classmethod
    def of(cls, events: Iterable[Body], container: str) -> Self | None:
        """The pull that `events` of a pod tell of, for its container `container`."""
        for event in events:
            path = event.get("involvedObject", {}).get("fieldPath", "")
            if event.get("reason") == "Pulled" and path == f"spec.containers{{{container}}}":
                return cls._of_message(event.get("message", ""))
        return None

    @classmethod
    def _of_message(cls, message: str) -> Self:
        pulled, size = _PULLED.search(message), _SIZE.search(message)
        return cls(
            seconds=_seconds(pulled["took"]) if pulled else 0.0,
            image_bytes=int(size["bytes"]) if size else None,
        )


@dataclass(frozen=True)
class Report:
    """What a server says of itself at /startupz."""

    started: float
    """When its process began, in unix seconds."""
    milestones: Mapping[str, float]
    """Seconds since then at which each phase was over."""
    device: Mapping[str, Any]
    """What it runs on, under the names of the status."""

    @classmethod
    def of(cls, body: Body) -> Self:
        """The report in the server's answer.

        Raises:
            ValueError: it is not the answer of an inference server.
        """
        try:
            device = body["device"] or {}
            return cls(
                started=float(body["started_at"]),
                milestones={name: float(at) for name, at in body["timeline"].items()},
                device={
                    name: device[theirs]
                    for name, theirs in _DEVICE_FIELDS.items()
                    if device.get(theirs) is not None
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            msg = f"not the report of an inference server: {error!r}"
            raise ValueError(msg) from None


def cold_start(pod: Pod, report: Report | None, pull: Pull | None) -> dict[str, Any] | None:
    """`status.coldStart` for `pod`; None while it is not ready.

    Phases nobody told of are left out. Time stamps of Kubernetes are whole seconds, so a phase that
    lies between one of them and the server's own clock is known to a second.
    """
    if not (pod.ready_since and pod.created):
        return None
    created, ready = _unix(pod.created), _unix(pod.ready_since)
    phases: dict[str, float] = {}
    now = created
    if pod.scheduled:
        phases["scheduled"], now = _until(_unix(pod.scheduled), now)
    if pull:
        phases["imagePulled"] = pull.seconds
        now += pull.seconds
    if pod.started:
        phases["containerStarted"], now = _until(_unix(pod.started), now)
    if report:
        for name, milestone in (
            ("processUp", "process_up"),
            ("modelDownloaded", "downloaded"),
            ("weightsLoaded", "weights_loaded"),
            ("warmedUp", "warmed_up"),
        ):
            if milestone in report.milestones:
                at = report.started + report.milestones[milestone]
                phases[name], now = _until(at, now)
    phases["ready"], now = _until(ready, now)
    result: dict[str, Any] = {"pod": pod.name, "total": f"{_rounded(now - created)}s"}
    result |= {name: _rounded(seconds) for name, seconds in phases.items()}
    if pull and pull.image_bytes is not None:
        result["imageBytes"] = pull.image_bytes
    return result


def completed(before: Mapping[str, Any], now: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What is known of a pod's cold start, with what is known `now` of the same pod.

    A server that stopped and became ready again has the pod's whole life before it: no cold start.
    """
    if now is None or abs(total_seconds(now) - total_seconds(before)) > _ROUNDING_SECONDS:
        return before
    return now


def total_seconds(status: Mapping[str, Any]) -> float:
    """The whole of a `status.coldStart` in seconds."""
    return float(str(status["total"]).removesuffix("s"))


def _until(at: float, now: float) -> tuple[float, float]:
    """Seconds from `now` until `at`, and the later of the two: rounded stamps may go back."""
    return max(0.0, at - now), max(now, at)


def _rounded(seconds: float) -> float | int:
    """As the API server gives it back: a whole number without a fraction."""
    tenths = round(seconds, 1)
    return int(tenths) if tenths == int(tenths) else tenths


def _unix(stamp: str) -> float:
    return dt.datetime.fromisoformat(stamp).timestamp()


def _seconds(duration: str) -> float:
    """Go's notation for a duration, such as 1m2.5s."""
    return sum(
        float(part["amount"]) * _UNITS[part["unit"]] for part in _DURATION.finditer(duration)
    )
