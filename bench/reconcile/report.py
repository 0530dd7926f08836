"""The figures of a run as a table in Markdown."""

from collections.abc import Mapping
from typing import Any

Row = tuple[str, str]

_SHOWN_SECONDS = 0.1
_EXACT_SECONDS = 0.01


def table(figures: Mapping[str, Any]) -> str:
    """The figures in Markdown: first what has a goal, then what it was spent on."""
    count = figures["count"]
    rows: list[Row] = []
    if floor := figures.get("floor"):
        rows += _floor(floor)
    if converged := figures.get("converged"):
        rows += _convergence(converged, count)
    if pending := figures.get("pending"):
        rows += _pending(pending, count)
    if idle := figures.get("idle"):
        rows += _idle(idle)
    if latency := figures.get("latency"):
        rows += _latency(latency)
    head = f"| {count} LLMDeployments | |\n| --- | --- |"
    return "\n".join([head, *(f"| {name} | {value} |" for name, value in rows)])


def _convergence(converged: Mapping[str, Any], count: int) -> list[Row]:
    return [
        ("first sent to last accepted", _s(converged["accepting"])),
        *(
            (f"last accepted to last of {plural}", _s(after))
            for plural, after in converged["objects_after"].items()
        ),
        ("last accepted to all pods Ready", _s(converged["pods_ready_after"])),
        ("last accepted to all Ready", _s(converged["ready_after"])),
        ("last pod Ready to all Ready", _s(converged["ready_after_pods"])),
        (
            "pod Ready to its LLMDeployment Ready, p50 / p99",
            f"{_ms(converged['lag_p50'])} / {_ms(converged['lag_p99'])}",
        ),
        *_cost(converged, count),
    ]


def _floor(floor: Mapping[str, Any]) -> list[Row]:
    used = sorted(floor["cpu"].items(), key=lambda item: -item[1])
    return [
        ("first sent to last accepted, no operator at work", _s(floor["accepting"])),
        ("last accepted to last object", _s(floor["objects_after"])),
        ("CPU seconds", ", ".join(f"{name} {seconds:.1f}" for name, seconds in used)),
    ]


def _pending(pending: Mapping[str, Any], count: int) -> list[Row]:
    return [
        ("first sent to last accepted", _s(pending["accepting"])),
        ("last accepted to all Unschedulable", _s(pending["ready_after"])),
        *_cost(pending, count),
    ]


def _cost(phase: Mapping[str, Any], count: int) -> list[Row]:
    cost = phase["cost"]
    reads = {k: n for k, n in cost["requests"].items() if k.split()[0] in {"get", "list", "watch"}}
    others = sorted(cost["cpu"].items(), key=lambda item: -item[1])
    return [
        ("API writes an LLMDeployment", _each(cost["writes"], count)),
        ("API reads an LLMDeployment", _each(reads, count)),
        ("operator's CPU an LLMDeployment", _ms(cost["cpu"]["operator"] / count)),
        ("operator's peak RSS; afterwards", f"{phase['peak_rss']:.0f} MB; {phase['rss']:.0f} MB"),
        (
            "CPU seconds",
            ", ".join(f"{name} {used:.1f}" for name, used in others if used >= _SHOWN_SECONDS),
        ),
    ]


def _idle(idle: Mapping[str, Any]) -> list[Row]:
    used, seconds = idle["cpu"]["operator"], idle["seconds"]
    return [
        (f"writes in {seconds:.0f} s of nothing to do", str(sum(idle["writes"].values()))),
        ("operator's CPU when idle, an hour", f"{used * 3600 / seconds:.0f} s"),
    ]


def _latency(latency: Mapping[str, float]) -> list[Row]:
    return [
        (
            f"spec changed to Deployment changed, {since}, p50 / p99",
            f"{_ms(latency[f'{key}_p50'])} / {_ms(latency[f'{key}_p99'])}",
        )
        for since, key in (("since sent", "since_sent"), ("since accepted", "since_accepted"))
    ]


def _each(counts: Mapping[str, int], count: int) -> str:
    total = f"{sum(counts.values()) / count:.2f}"
    parts = sorted(counts.items(), key=lambda item: -item[1])
    return f"{total} ({', '.join(f'{name} {number / count:.2f}' for name, number in parts)})"


def _s(seconds: float) -> str:
    return f"{max(0.0, seconds):.1f} s"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds >= _EXACT_SECONDS else f"{seconds * 1000:.1f} ms"
