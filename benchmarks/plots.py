"""Scaling plots: host and device time side by side, in colours that read on a white and on a dark page."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from limits import Rows, by_case, median
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from measure import Record
from peers import FLOOR, OURS

TEXT, GRID = "#7d838b", "#7d838b40"
OUR_COLOURS = ("#2f81f7", "#1f9e89", "#8f6ff5", "#4aa3c7")
PEER_COLOURS = ("#e8590c", "#c2459b", "#b7850b", "#d6455d", "#8b6f47", "#5c9e31")
STYLE = {
    "svg.hashsalt": "nsa_kernel",
    "font.size": 9,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": TEXT,
    "axes.titlecolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
}
PLOTS = {
    "scaling_bs": ("bs", "requests", "draft-extend over the batch size"),
    "scaling_kv": ("kv", "KV length, up to", "replay, 32 requests, over the KV length"),
    "scaling_width": ("width", "columns", "replay, 32 requests, the same live tokens, over the width of the table"),
    "scaling_draft_tokens": ("tokens", "draft tokens", "replay, 32 requests, over the draft tokens"),
}
COLUMNS = {"host": "host time of a call", "device": "device time in a CUDA graph"}


def _lines(cases: dict[str, Rows], x_name: str, column: str) -> dict[str, list[tuple[int, float]]]:
    lines: dict[str, list[tuple[int, float]]] = {}
    for rows in cases.values():
        for name, record in rows.items():
            if (time_us := median(record, column)) is not None:
                lines.setdefault(name, []).append((record.shape[x_name], time_us))
    return lines


def _styles(cases: dict[str, Rows]) -> dict[str, dict[str, Any]]:
    """One look a row, the same in every panel: ours heavy, floors grey and broken, peers light."""
    groups = {name: record.group for rows in cases.values() for name, record in rows.items()}
    styles: dict[str, dict[str, Any]] = {}
    ours, peers, dashes = iter(OUR_COLOURS), iter(PEER_COLOURS), iter(("--", ":", "-."))
    for name, group in groups.items():
        if group == OURS:
            styles[name] = {"color": next(ours, OUR_COLOURS[-1]), "linewidth": 2.2, "marker": "o", "markersize": 3.5}
        elif group == FLOOR:
            styles[name] = {"color": TEXT, "linewidth": 1.3, "linestyle": next(dashes, "-")}
        else:
            styles[name] = {"color": next(peers, PEER_COLOURS[-1]), "linewidth": 1.3, "marker": ".", "markersize": 5}
    return styles


def _short(value: float, _position: int | None = None) -> str:
    return f"{value / 1024:g}K" if value >= 1024 and value % 1024 == 0 else f"{value:,g}"


def _draw(cases: dict[str, Rows], x_name: str, x_label: str, title: str) -> Figure | None:
    panels = {column: lines for column in COLUMNS if (lines := _lines(cases, x_name, column))}
    if not panels:
        return None
    figure = Figure(figsize=(4.8 * len(panels), 4.2), layout="constrained")
    styles, shown = _styles(cases), {}
    for axes, (column, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, points in lines.items():
            shown[name] = axes.plot(*zip(*sorted(points), strict=True), label=name, **styles[name])[0]
        axes.set(xscale="log", yscale="log", xlabel=x_label, title=f"{COLUMNS[column]}, us")
        axes.grid(visible=True)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(_short))
            axis.set_minor_formatter(NullFormatter())
        if x_name != "bs":
            axes.xaxis.set_major_locator(FixedLocator(sorted({x for points in lines.values() for x, _ in points})))
            axes.xaxis.set_minor_locator(NullLocator())
    figure.suptitle(title)
    handles = [shown[name] for name in styles if name in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 * len(panels), frameon=False, fontsize=8)
    return figure


def draw(records: Iterable[Record], folder: Path) -> list[Path]:
    """Writes one SVG for each scaling part that was run."""
    records = list(records)
    written = []
    with mpl.rc_context(STYLE):
        for part, (x_name, x_label, title) in PLOTS.items():
            if (figure := _draw(by_case(records, part), x_name, x_label, title)) is not None:
                path = folder / f"{part}.svg"
                figure.savefig(path, transparent=True, metadata={"Date": None})
                written.append(path)
    return written
