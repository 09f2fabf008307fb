"""Gantt chart: what some nodes did over time, as a picture for a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.patches import Patch

from experiments import figures
from experiments.records import GROUP, Window
from experiments.spans import Activities, Span, activities
from sim.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_NODES = 64
MAX_BARS = 20_000
_MOST_ROUNDS = 60
_FIRST = 16
"""So many nodes if none is named."""
_LANES = {  # kind -> colour, bottom and height within a row of height 1
    "compute": ("#0072B2", 0.55, 0.35),
    "collective": ("#E69F00", 0.30, 0.22),
    "send": ("#009E73", 0.16, 0.11),
    "receive": ("#56B4E9", 0.04, 0.11),
    "offline": ("0.85", 0.0, 0.95),
}
_TIMES = (
    (3 * 86400.0, 86400.0, "d"),
    (3 * 3600.0, 3600.0, "h"),
    (0.2, 1.0, "s"),
    (0.0, 1e-3, "ms"),
)
_LABEL = {"collective": "collectives", "send": "sends", "receive": "receives"}


def gantt(run: Trace | str | Path, window: Window | None = None) -> Figure:
    """The chart of a window: a row per node, and one for what only a group is known to have done.

    Bars are computing, collectives, sends and receives; grey is offline, lines are rounds if there
    are few enough to tell them apart.

    Raises:
        ValueError: there is nothing to draw, or more than a page holds.
    """
    found = activities(run, window)
    rows = _rows(found)
    bars = _bars(found, rows)
    _check(rows, bars)
    span = _extent(found)
    unit, name = time_unit(span[1] - span[0])
    with plt.style.context(figures.STYLE):
        height = 0.75 + max(0.26 * len(rows), 0.6)
        fig, ax = plt.subplots(figsize=(6.9, height), layout="constrained")
        for (kind, row), pieces in bars.items():
            colour, bottom, tall = _LANES[kind]
            scaled = [(start / unit, (end - start) / unit) for start, end in pieces]
            ax.broken_barh(
                scaled, (row + bottom, tall), facecolors=colour, edgecolors="white", linewidth=0.2
            )
        _dress(ax, found, rows, unit)
        ax.set(xlim=(span[0] / unit, span[1] / unit), xlabel=f"simulated time ({name})")
        used = [kind for kind in _LANES if any(kind == lane for lane, _ in bars)]
        handles = [Patch(color=_LANES[kind][0], label=_LABEL.get(kind, kind)) for kind in used]
        fig.legend(handles=handles, ncols=len(used), loc="outside upper right")
    return fig


def time_unit(duration: float) -> tuple[float, str]:
    """The unit in which so many seconds are easy to read: its seconds, and its name.

    >>> time_unit(2 * 86_400)
    (3600.0, 'h')
    """
    return next((unit, name) for least, unit, name in _TIMES if duration >= least)


def save(run: Trace | str | Path, path: str | Path, window: Window | None = None) -> Path:
    """Save the chart; `path` ends in .png or .svg."""
    return figures.save_as(lambda: gantt(run, window), path)


def _rows(found: Activities) -> list[int]:
    """The nodes to draw, those of the lowest ids if none was named."""
    nodes = [node for node in found.nodes if node != GROUP]
    if found.window.nodes is None:
        nodes = nodes[:_FIRST]
    drawn = {span.node for span in found.spans if span.kind in _LANES}
    return [*([GROUP] if GROUP in drawn else []), *nodes]


def _bars(found: Activities, rows: Sequence[int]) -> dict[tuple[str, int], list[tuple]]:
    """(kind, row) -> (start, end) of its bars, in seconds."""
    place = {node: row for row, node in enumerate(rows)}
    bars: dict[tuple[str, int], list[tuple]] = defaultdict(list)
    online: dict[int, list[Span]] = defaultdict(list)
    for span in found.spans:
        if span.node in place and span.kind in _LANES:
            bars[span.kind, place[span.node]].append((span.start, span.end))
        elif span.node in place and span.kind == "online":
            online[span.node].append(span)
    start, end = _extent(found)
    for node in rows:
        if node != GROUP and (gaps := _gaps(online[node], start, end)):
            bars["offline", place[node]] = gaps
    return bars


def _gaps(online: Sequence[Span], start: float, end: float) -> list[tuple[float, float]]:
    """When a node was not there, in seconds."""
    edges = [start, *(edge for span in online for edge in (span.start, span.end)), end]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2]) if b > a]


def _extent(found: Activities) -> tuple[float, float]:
    return found.window.start, min(found.window.end, found.end)


def _check(rows: Sequence[int], bars: dict[tuple[str, int], list[tuple]]) -> None:
    count = sum(len(pieces) for pieces in bars.values())
    if not count:
        raise ValueError("nothing to draw: these nodes did nothing in this part of the run")
    if len(rows) > MAX_NODES + 1 or count > MAX_BARS:
        raise ValueError(
            f"{len(rows)} rows with {count} bars: a chart holds {MAX_NODES} nodes and {MAX_BARS} "
            "bars; choose fewer nodes (--nodes 0,3,7) or a shorter time (--from 0 --to 10min)"
        )


def _dress(ax: Axes, found: Activities, rows: Sequence[int], unit: float) -> None:
    rounds = [span for span in found.spans if span.kind == "round" and span.node == GROUP]
    for span in rounds if len(rounds) <= _MOST_ROUNDS else ():
        ax.axvline(span.start / unit, color="0.6", linewidth=0.6, zorder=0)
    names = ["group" if node == GROUP else f"node {node}" for node in rows]
    ax.set_yticks([row + 0.5 for row in range(len(rows))], names)
    ax.set_ylim(len(rows), 0)
    for row in range(1, len(rows)):
        ax.axhline(row, color="0.9", linewidth=0.5, zorder=0)
    ax.grid(False)
    ax.tick_params(axis="y", length=0)
