"""The figures of a run in Markdown, one column a server.

Reads the document that `bench.serving` writes as JSON; knows nothing of how it came about.
Values of several rounds are shown as their median, and rates with the smallest and the largest.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]
NONE = "-"
_MEGABYTE = 1e6
_GIBIBYTE = 1 << 30
_SMALL = 10


def markdown(document: Document) -> str:
    """Everything: the machine, the table, the phases of the starts, and what went wrong."""
    parts = [machine(document), table(document), phases(document), errors(document)]
    return "\n\n".join(part for part in parts if part)


def machine(document: Document) -> str:
    """A sentence about what was measured, where and when."""
    on, settings = document["machine"], document["settings"]
    gpu = f", {on['gpu']}" if on["gpu"] else ""
    have = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return (
        f"{settings['model']} on {on['cpu']} ({on['architecture']}), {on['cores']} cores, "
        f"{on['memory'] / _GIBIBYTE:.0f} GiB{gpu}, Linux {on['kernel']}, Python {on['python']}, "
        f"{have}; "
        f"{document['taken']}, commit {document['commit'] or 'unknown'}, "
        f"load {on['load']:.1f} before the run. Medians of {settings['rounds']} rounds "
        f"and of {settings['starts']} starts, the servers in turn."
    )


def table(document: Document) -> str:
    """The figures, one row each."""
    servers = document["servers"]
    objective = document["settings"]["objective"]
    good = f"first token in {objective['ttft']:g} s, then {1 / objective['itl']:g} tokens a second"
    many = f"{document['settings']['loads']['many']['streams']} streams"
    rows: list[tuple[str, Callable[[Document], str]]] = [
        ("1 stream, tok/s", lambda s: spread(_loads(s, "one", "decoding"))),
        (f"{many}, tok/s", lambda s: spread(_loads(s, "many", "decoding"))),
        ("1 stream, between tokens, p50 / p90 / p99", lambda s: _times(s, "one", "itl")),
        (f"{many}, between tokens", lambda s: _times(s, "many", "itl")),
        (f"{many}, first token", lambda s: _times(s, "many", "ttft")),
        (f"{many}, whole answer", lambda s: _times(s, "many", "e2e")),
        (f"{many}, goodput: {good}", _goodput),
        (f"{_prompt(servers)}-token prompt, first token", lambda s: _times(s, "prompt", "ttft")),
        ("start to ready", lambda s: _seconds(_starts(s, "ready"))),
        ("start to first token", lambda s: _seconds(_starts(s, "first_token"))),
        ("… of a bare `import torch`", lambda s: _of_import(s, document["import_torch"])),
        ("memory (PSS)", lambda s: _megabytes(s, "total")),
        ("… allocated, mapped from files", _parts_of_memory),
        ("… less the cache, of the weights", lambda s: _of_weights(s, document)),
        ("requests that failed", _failed),
    ]
    lines = [_line(["", *servers]), _line(["---"] * (len(servers) + 1))]
    lines += [_line([name, *map(cell, servers.values())]) for name, cell in rows]
    return "\n".join(lines)


def phases(document: Document) -> str:
    """What servers say that the phases of their start took; empty if none says so."""
    told = {
        name: server["starts"][0]["phases"]
        for name, server in document["servers"].items()
        if server["starts"] and server["starts"][0]["phases"]
    }
    lines = []
    for name, names in told.items():
        starts = document["servers"][name]["starts"]
        seconds = {phase: median([start["phases"][phase] for start in starts]) for phase in names}
        shown = ", ".join(f"{phase} {value:.2f} s" for phase, value in seconds.items())
        lines.append(f"Phases of a start of {name}, from `/startupz`: {shown}.")
    if imports := document["import_torch"]:
        lines.append(f"A bare `import torch` took {_seconds(imports)}.")
    return "\n".join(lines)


def errors(document: Document) -> str:
    """What servers did not do, and why requests failed; empty if all went well."""
    lines = []
    for name, server in document["servers"].items():
        said = dict.fromkeys(server["errors"])
        for load in (load for loads in server["loads"].values() for load in loads):
            said |= dict.fromkeys(load["failures"])
        lines += [f"- {name}: {reason}" for reason in said]
    return "\n".join(lines)


def median(values: Sequence[float | None]) -> float:
    """The median of what is a number, NaN if nothing is."""
    numbers = [value for value in values if value is not None]
    return statistics.median(numbers) if numbers else math.nan


def spread(values: Sequence[float | None]) -> str:
    """Median, and the smallest and the largest of several."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return NONE
    digits = 1 if median(numbers) < _SMALL else 0
    middle = f"{median(numbers):.{digits}f}"
    if len(numbers) == 1:
        return middle
    return f"{middle} ({min(numbers):.{digits}f} to {max(numbers):.{digits}f})"


def _loads(server: Document, load: str, figure: str) -> list[float | None]:
    return [one[figure] for one in server["loads"].get(load, [])]


def _starts(server: Document, figure: str) -> list[float]:
    return [one[figure] for one in server["starts"]]


def _times(server: Document, load: str, figure: str) -> str:
    of = [one[figure] for one in server["loads"].get(load, [])]
    values = [median([one[percent] for one in of]) for percent in ("p50", "p90", "p99")]
    if any(map(math.isnan, values)):
        return NONE
    return f"{' / '.join(f'{value * 1000:.0f}' for value in values)} ms"


def _seconds(values: Sequence[float]) -> str:
    return f"{median(values):.2f} s" if values else NONE


def _goodput(server: Document) -> str:
    share = median(_loads(server, "many", "goodput"))
    return NONE if math.isnan(share) else f"{share * 100:.0f} %"


def _prompt(servers: Mapping[str, Document]) -> int:
    """Tokens of the long prompt, as the first server states them that states them."""
    told = [median(_loads(server, "prompt", "prompt_tokens")) for server in servers.values()]
    return next((round(tokens) for tokens in told if tokens > 0), 0)


def _of_import(server: Document, imports: Sequence[float]) -> str:
    taken = _starts(server, "first_token")
    return f"{median(taken) / median(imports):.2f} x" if taken and imports else NONE


def _megabytes(server: Document, part: str) -> str:
    values = [one[part] for one in server["memory"]]
    return f"{median(values) / _MEGABYTE:.0f} MB" if values else NONE


def _parts_of_memory(server: Document) -> str:
    if not server["memory"]:
        return NONE
    return ", ".join(_megabytes(server, part) for part in ("anonymous", "file"))


def _of_weights(server: Document, document: Document) -> str:
    """How many times the weights the memory is, less what the load needs of a cache."""
    values = [one["total"] for one in server["memory"]]
    if not values or not server["weights"]:
        return NONE
    return f"{(median(values) - document['cache']) / server['weights']:.2f} x"


def _failed(server: Document) -> str:
    loads = [load for each in server["loads"].values() for load in each]
    failed = sum(sum(load["failures"].values()) for load in loads)
    return f"{failed} of {sum(load['requests'] for load in loads)}" if loads else NONE


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
