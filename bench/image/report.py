"""The figures of a run in Markdown, one column an image.

Reads the document that `bench.image` writes as JSON; knows nothing of how it came about. An image
is measured against the first one of its hardware: a cell tells how many times as much it is. Of
several builds and starts the median is shown. Bytes are decimal: a MB is 10^6.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Document = Mapping[str, Any]
NONE = "-"
_GIBIBYTE = 1 << 30
_FEW = 10


@dataclass(frozen=True)
class Column:
    """An image of a run.

    Attributes:
        hardware: What it is for.
        name: The way it is built.
        figures: What was measured of it.
        first: What was measured of the first image of the same hardware.
    """

    hardware: str
    name: str
    figures: Document
    first: Document

    @property
    def title(self) -> str:
        """How tables and pictures call it."""
        return f"{self.hardware}, {self.name}"


@dataclass(frozen=True)
class Row:
    """A figure of every image: how it is called, read and shown."""

    title: str
    value: Callable[[Document], float]
    shown: Callable[[float], str]
    compared: bool = True


def columns(document: Document) -> Iterator[Column]:
    """The images of a run, in the order in which they were measured."""
    for hardware, found in document["hardware"].items():
        first = next(iter(found.values()))
        for name, figures in found.items():
            yield Column(hardware, name, figures, first)


def markdown(document: Document) -> str:
    """Everything: where it was measured, the table, the layers, what was built again."""
    parts = [about(document), table(document), layers(document), again(document), phases(document)]
    return "\n\n".join(part for part in parts if part)


def about(document: Document) -> str:
    """A sentence about what was measured, where and when."""
    on, settings = document["machine"], document["settings"]
    stand_ins = ", ".join(document["stand_ins"])
    stood_in = f" Stood in for: {stand_ins}." if stand_ins else ""
    return (
        f"{settings['model']} on {on['cpu']} ({on['architecture']}), {on['cores']} cores, "
        f"{on['memory'] / _GIBIBYTE:.0f} GiB, Linux {on['kernel']}; {document['taken']}, "
        f"commit {document['commit'] or 'unknown'}, load {on['load']:.1f} before the run. "
        f"Medians of {settings['starts']} starts and of {settings['rebuilds']} rebuilds, the "
        f"images in turn.{stood_in}"
    )


def rows(document: Document) -> list[Row]:
    """The figures of the table."""
    codec = document["settings"]["compression"]
    change = "after a code change"
    return [
        Row("files, unpacked", unpacked, size),
        Row("… without the model", lambda f: unpacked(f) - f["census"]["model_bytes"], size),
        Row(f"layers, {codec}", compressed, size),
        Row("… without the model's", compressed_without_model, size),
        Row("layers", lambda f: len(f["layers"]), number, compared=False),
        Row("first build, package caches warm", _first_build, seconds),
        Row(f"build {change}", lambda f: _rebuild(f, "wall"), seconds),
        Row("… work of its steps", lambda f: _rebuild(f, "work"), seconds),
        Row(f"new bytes to push and pull {change}", lambda f: _rebuild(f, "new_bytes"), size),
        Row("files", lambda f: f["census"]["files"], number),
        Row("packages of the system", lambda f: f["census"]["os_packages"], number),
        Row("packages of Python", lambda f: f["census"]["python_packages"], number),
        Row(
            "shared libraries, Python's packages' aside", lambda f: f["census"]["libraries"], number
        ),
        Row("programs on the path", lambda f: f["census"]["programs"], number),
        Row("… that compile or link", lambda f: len(f["census"]["compilers"]), number),
        Row("setuid and setgid files", lambda f: len(f["census"]["setuid"]), number),
        Row(
            "fetched at each start",
            lambda f: 0 if f["preloaded"] else document["model_bytes"],
            size,
            compared=False,
        ),
        Row("container to ready", lambda f: _start(f, "ready"), seconds),
        Row("container to first token", lambda f: _start(f, "first_token"), seconds),
        Row("pod created to Ready", lambda f: median(f["pods"]), seconds),
    ]


def table(document: Document) -> str:
    """The figures, one row each; a row that nothing was measured for is left out."""
    found = list(columns(document))
    lines = [_line(["", *(column.title for column in found)])]
    lines.append(_line(["---"] * (len(found) + 1)))
    for row in rows(document):
        cells = [cell(row, column) for column in found]
        if set(cells) != {NONE}:
            lines.append(_line([row.title, *cells]))
    lines.append(_line(["runs as", *(f"`{column.figures['user']}`" for column in found)]))
    return "\n".join(lines)


def cell(row: Row, column: Column) -> str:
    """A figure, and how many times that of the first image it is."""
    value, first = row.value(column.figures), row.value(column.first)
    if math.isnan(value):
        return NONE
    shown = row.shown(value)
    if column.figures is column.first or not row.compared or math.isnan(first) or not first:
        return shown
    return f"{shown} ({times(value / first)})"


def layers(document: Document) -> str:
    """The sizes of the layers, from the lowest to the uppermost."""
    lines = ["Layers as they are pushed and pulled, from the lowest to the uppermost:", ""]
    for column in columns(document):
        sizes = ", ".join(size(layer["size"]) for layer in column.figures["layers"])
        lines.append(f"- {column.title}: {sizes}")
    return "\n".join(lines)


def again(document: Document) -> str:
    """The steps that a change of the code repeats; empty if nothing was built again."""
    lines = []
    for column in columns(document):
        if built := column.figures["rebuilds"]:
            steps = ", ".join(f"`{_short(name)}`" for name in built[0]["repeated"])
            lines.append(f"- {column.title}: {steps or 'none'}")
    head = ["Steps of the Dockerfile that a change of the code repeats:", ""]
    return "\n".join([*head, *lines]) if lines else ""


def phases(document: Document) -> str:
    """What the server says that the phases of its start took; empty if nothing was started."""
    lines = []
    for column in columns(document):
        if taken := [start["phases"] for start in column.figures["starts"]]:
            shown = (f"{name} {median([one[name] for one in taken]):.2f} s" for name in taken[0])
            lines.append(f"- {column.title}: {', '.join(shown)}")
    head = ["Phases of the starts, from `/startupz`:", ""]
    return "\n".join([*head, *lines]) if lines else ""


def unpacked(figures: Document) -> float:
    """Bytes of an image's files."""
    return float(figures["census"]["bytes"])


def compressed(figures: Document) -> float:
    """Bytes of an image's layers as they are pushed and pulled."""
    return sum(layer["size"] for layer in figures["layers"])


def compressed_without_model(figures: Document) -> float:
    """The same without the layer of a preloaded model; NaN if it is not known which that is."""
    models = [layer["size"] for layer in figures["layers"] if " /model /model" in layer["step"]]
    if figures["preloaded"] != (len(models) == 1):
        return math.nan
    return compressed(figures) - sum(models)


def median(values: Sequence[float]) -> float:
    """The median, NaN of nothing."""
    return statistics.median(values) if values else math.nan


def size(value: float) -> str:
    """Bytes, in a unit that leaves two or three digits."""
    for unit, name, digits in ((1e9, "GB", 2), (1e6, "MB", 0), (1e3, "kB", 0)):
        if value >= unit:
            return f"{value / unit:.{max(digits, int(value < _FEW * unit))}f} {name}"
    return f"{value:.0f} B" if value else "0"


def seconds(value: float) -> str:
    """Seconds."""
    return f"{value:.{1 if value >= _FEW else 2}f} s"


def number(value: float) -> str:
    """A count."""
    return f"{value:,.0f}"


def times(factor: float) -> str:
    """How many times as much."""
    return f"{factor:.{1 if factor < _FEW else 0}f} x"


def _first_build(figures: Document) -> float:
    return figures["first_build"]["wall"] if figures["first_build"] else math.nan


def _rebuild(figures: Document, figure: str) -> float:
    return median([one[figure] for one in figures["rebuilds"]])


def _start(figures: Document, figure: str) -> float:
    return median([one[figure] for one in figures["starts"]])


def _short(name: str) -> str:
    """A step of a Dockerfile without its number and the options of RUN, on one short line."""
    words = name.partition("] ")[2].split()
    kept = [word for word in words if not word.startswith("--mount=")]
    return " ".join(kept[:4]) + (" …" if len(kept) > 4 else "")  # noqa: PLR2004 - some words


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
