"""The figures of a run as a picture: small bars, one panel a question."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.serving.report import median

Document = Mapping[str, Any]
_COLORS = ("#2563a8", "#d97b29", "#5b9a5b", "#8d6cab", "#a05050")
_GREY = "#666666"
_NOT_THERE = "not measured"


def _load(server: Document, load: str, figure: str) -> float:
    return median([one[figure] for one in server["loads"].get(load, [])])


def _p50(server: Document, load: str, figure: str) -> float:
    return median([one[figure]["p50"] for one in server["loads"].get(load, [])]) * 1000


def _first_token(server: Document) -> float:
    return median([one["first_token"] for one in server["starts"]])


def _memory(server: Document) -> float:
    return median([one["total"] for one in server["memory"]]) / 1e6


PANELS: tuple[tuple[str, str, Callable[[Document], float]], ...] = (
    ("1 stream, tokens/s", "more is better", lambda s: _load(s, "one", "decoding")),
    ("{many} streams, tokens/s", "more is better", lambda s: _load(s, "many", "decoding")),
    ("long prompt, first token, ms", "less is better", lambda s: _p50(s, "prompt", "ttft")),
    ("start to first token, s", "less is better", _first_token),
    ("memory (PSS), MB", "less is better", _memory),
)


def draw(document: Document, file: Path) -> None:
    """Write the picture as SVG; the same figures give the same bytes."""
    import matplotlib as mpl  # noqa: PLC0415 - half a second that only this needs
    from matplotlib.figure import Figure  # noqa: PLC0415

    names = list(document["servers"])
    many = document["settings"]["loads"]["many"]["streams"]
    with mpl.rc_context({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(9, 0.9 + 0.45 * len(names) * 2), layout="constrained")
        panels = figure.subplots(2, 3).flat
        for panel, (title, better, value) in zip(panels, PANELS, strict=False):
            values = [value(server) for server in document["servers"].values()]
            _bars(panel, values, title.format(many=many), better)
        _legend(figure.axes[len(PANELS)], names)
        on = document["machine"]
        where = on["gpu"] or f"{on['cores']} cores of {on['cpu']}"
        figure.suptitle(
            f"{document['settings']['model']}, {where}, {document['taken'][:10]}",
            fontsize=9,
        )
        figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})


def _bars(panel: Any, values: list[float], title: str, better: str) -> None:  # noqa: ANN401
    lengths = [0 if math.isnan(value) else value for value in values]
    bars = panel.barh(range(len(values)), lengths, color=_COLORS, height=0.7)
    shown = [_NOT_THERE if math.isnan(value) else _short(value) for value in values]
    panel.bar_label(bars, shown, padding=3)
    panel.set_title(f"{title} ({better})", fontsize=8, loc="left")
    panel.set_xlim(0, max(lengths, default=0) * 1.25 or 1)
    panel.invert_yaxis()
    panel.set_yticks([])
    panel.set_xticks([])
    panel.spines[["top", "right", "bottom"]].set_visible(False)
    panel.spines["left"].set_color(_GREY)


def _legend(panel: Any, names: list[str]) -> None:  # noqa: ANN401
    panel.axis("off")
    handles = [
        panel.barh([0], [0], color=color)[0] for color, _ in zip(_COLORS, names, strict=False)
    ]
    panel.legend(handles, names, loc="center left", frameon=False)


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"  # noqa: PLR2004 - two digits are shown
