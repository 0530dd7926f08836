"""The figures of a run as a picture: small bars, one panel a question."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.image.report import Column, cell, columns, rows

Document = Mapping[str, Any]
_COLORS = ("#2563a8", "#d97b29", "#8d6cab")
_GREY = "#666666"
_NOT_THERE = "not measured"
PANELS = (
    "files, unpacked",
    "layers, {codec}",
    "build after a code change",
    "new bytes to push and pull after a code change",
    "packages of the system",
    "container to first token",
)


def draw(document: Document, file: Path) -> None:
    """Write the picture as SVG; the same figures give the same bytes."""
    import matplotlib as mpl  # noqa: PLC0415 - half a second that only this needs
    from matplotlib.figure import Figure  # noqa: PLC0415

    found = list(columns(document))
    wanted = [title.format(codec=document["settings"]["compression"]) for title in PANELS]
    known = {row.title: row for row in rows(document)}
    with mpl.rc_context({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(10, 1.2 + 0.5 * len(found)), layout="constrained")
        panels = figure.subplots(2, 3, sharey=True).flat
        for panel, title in zip(panels, wanted, strict=True):
            row = known[title]
            values = [row.value(column.figures) for column in found]
            shown = [
                _NOT_THERE if math.isnan(value) else cell(row, column)
                for value, column in zip(values, found, strict=True)
            ]
            _bars(panel, values, shown, found, title)
        on = document["machine"]
        figure.suptitle(
            f"{document['settings']['model']}, {on['cores']} cores of {on['cpu']}, "
            f"{document['taken'][:10]}: less is better",
            fontsize=9,
        )
        figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})


def _bars(
    panel: Any,  # noqa: ANN401
    values: list[float],
    shown: list[str],
    found: list[Column],
    title: str,
) -> None:
    lengths = [0 if math.isnan(value) else value for value in values]
    names = list(dict.fromkeys(column.name for column in found))
    colors = [_COLORS[names.index(column.name) % len(_COLORS)] for column in found]
    bars = panel.barh(range(len(values)), lengths, color=colors, height=0.7)
    panel.bar_label(bars, shown, padding=3)
    panel.set_title(title, fontsize=8, loc="left")
    panel.set_xlim(0, max(lengths, default=0) * 1.45 or 1)
    panel.set_yticks(range(len(found)), [column.title for column in found])
    panel.set_ylim(len(found) - 0.4, -0.6)
    panel.set_xticks([])
    panel.spines[["top", "right", "bottom"]].set_visible(False)
    panel.spines["left"].set_color(_GREY)
