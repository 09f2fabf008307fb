"""Figures of results about networks: published numbers are open circles, ours are lines.

Each takes tables and gives a figure; a line is the mean of ours over seeds, a band their middle
half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

from experiments.figures import STYLE
from experiments.validate.row import KINDS, Row

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GBIT = 1.25e8
_PUBLISHED: Mapping[str, Any] = {
    "marker": "o",
    "markersize": 4,
    "linestyle": "",
    "fillstyle": "none",
    "zorder": 3,
}
_JITTER = 0.28
_MOST = 1e3
"""Times the tolerance; a row that is further off is drawn here."""


def bandwidth_needed(ours: pd.DataFrame, published: pd.DataFrame) -> Figure:
    """Utilisation of the GPUs over the bandwidth between sites, a panel per model.

    Args:
        ours: columns `model`, `method`, `bandwidth` (bytes/s), `utilisation` (share).
        published: the same; the least bandwidth that a source prints for each utilisation.
    """
    models = list(ours["model"].unique())
    with plt.style.context(STYLE):
        colours = _colours(ours["method"].unique())
        fig, axes = plt.subplots(
            1, len(models), sharey=True, squeeze=False, figsize=(2.3 * len(models), 2.9)
        )
        for ax, model in zip(axes[0], models):
            for method, colour in colours.items():
                line, points = _of(ours, model, method), _of(published, model, method)
                ax.plot(line["bandwidth"] / _GBIT, 100 * line["utilisation"], color=colour)
                at = points["bandwidth"] / _GBIT, 100 * points["utilisation"]
                ax.plot(*at, color=colour, **_PUBLISHED)
            there = (published["model"] == model).any()
            ax.set_title(model if there else f"{model} (no published numbers)")
            ax.set(xscale="log", xlabel="bandwidth (Gbit/s)", ylim=(0, 103))
        axes[0][0].set_ylabel("compute utilisation (%)")
        _legend(fig, colours, _MARK, columns=3)
    return fig


def iterations_needed(
    ours: pd.DataFrame, published: pd.DataFrame, law: Callable[[float], float], cap: float
) -> Figure:
    """Iterations to average over the expected failures per iteration, a colour per method.

    Args:
        ours: columns `method`, `n`, `p`, `iterations`; one row per seed. The larger n is dashed.
        published: the same, means over seeds.
        law: expected iterations of an all-reduce, of n p.
        cap: iterations after which a run is given up.
    """
    with plt.style.context(STYLE):
        fig, ax = plt.subplots(figsize=(5.2, 3.0))
        colours = _colours(ours["method"].unique())
        sizes = sorted(ours["n"].unique())
        for (method, n), part in ours.groupby(["method", "n"], sort=False):
            style = "-" if n == sizes[0] else "--"
            _band(ax, part.groupby(part["n"] * part["p"])["iterations"], colours[method], style)
        for method, part in published.groupby("method", sort=False):
            ax.plot(part["n"] * part["p"], part["iterations"], color=colours[method], **_PUBLISHED)
        at = np.linspace(0.0, float((ours["n"] * ours["p"]).max()), 200)
        ax.plot(at, [law(x) for x in at], color="0.2", linewidth=0.8, linestyle=":")
        ax.axhline(cap, color="0.6", linewidth=0.6)
        ax.set(yscale="log", ylabel="iterations to a variance < 1e-9")
        ax.set_xlabel("expected failures per iteration, n p (nodes)")
        ax.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        ax.minorticks_off()
        extra = {f"{n} nodes": _grey(s) for n, s in zip(sizes, ("-", "--"))}
        _legend(fig, colours, {**extra, "law of all-reduce": _grey(":"), **_MARK}, columns=4)
    return fig


def consensus(
    table: pd.DataFrame, decades: Mapping[str, float], exact: Mapping[str, float]
) -> Figure:
    """Error of gossip over rounds, then over seconds on each network, a colour per topology.

    Args:
        table: of `experiments.consensus.compare`.
        decades: topology -> predicted slope, log10 per round; dashed where it is a number.
        exact: network -> seconds of a ring all-reduce, a vertical line.
    """
    places = list(table["network"].unique())
    with plt.style.context(STYLE):
        colours = _colours(table["topology"].unique())
        fig, axes = plt.subplots(1, 1 + len(places), sharey=True, figsize=(6.9, 2.9))
        for name, part in table[table["network"] == places[0]].groupby("topology", sort=False):
            _band(axes[0], part.groupby("round")["error"], colours[name])
            _slope(axes[0], part, decades[name])
        axes[0].set(xlabel="round", ylabel="distance to the mean (1 at the start)", yscale="log")
        axes[0].set_title("per round, and predicted by the gap")
        for ax, place in zip(axes[1:], places):
            for name, part in table[table["network"] == place].groupby("topology", sort=False):
                _steps(ax, part, colours[name])
            ax.axvline(exact[place], color="0.3", linewidth=0.8, linestyle=":")
            here = table[(table["network"] == place) & (table["round"] > 0)]["time"]
            ax.set(xscale="log", xlabel="simulated time (s)", xlim=(here.min() / 2, None))
            ax.set_title(place)
        axes[0].set_ylim(1e-6, 2)
        _legend(fig, colours, {"gap": _grey("--"), "ring all-reduce": _grey(":")})
    return fig


def validation(rows: Sequence[Row]) -> Figure:
    """Each judged row of the validation table by the kind of its reference.

    Left: relative differences, where a row has one. Right: difference / tolerance of all rows;
    beyond the line a row does not hold. What is exactly 0 stands at the left edge.
    """
    judged = [row for row in rows if row.judged]
    kinds = [kind for kind in KINDS if any(row.kind == kind for row in judged)]
    with plt.style.context(STYLE):
        fig, axes = plt.subplots(1, 2, sharey=True, figsize=(6.9, 0.9 + 0.42 * len(kinds)))
        relative = [row for row in judged if row.relative or _is_deviation(row)]
        _strip(axes[0], kinds, relative, [abs(row.difference) for row in relative])
        axes[0].set_xlabel("relative difference to the reference")
        _strip(axes[1], kinds, judged, [_used(row) for row in judged])
        axes[1].axvline(1.0, color="0.3", linewidth=0.8, linestyle="--")
        axes[1].set_xlabel("difference / tolerance")
        counts = [sum(row.kind == kind for row in judged) for kind in kinds]
        names = [f"{kind} ({count})" for kind, count in zip(kinds, counts)]
        axes[0].set_yticks(range(len(kinds)), names)
        axes[0].set_ylim(len(kinds) - 0.5, -0.5)
    return fig


def _of(table: pd.DataFrame, model: str, method: str) -> pd.DataFrame:
    return table[(table["model"] == model) & (table["method"] == method)]


def _colours(names: Any) -> dict[str, str]:
    palette = plt.rcParams["axes.prop_cycle"].by_key()["color"]  # of the style in force now
    return {name: palette[i % len(palette)] for i, name in enumerate(names)}


def _grey(style: Any) -> Line2D:
    return Line2D([], [], color="0.3", linestyle=style, linewidth=1.0)


_MARK = {"published": Line2D([], [], color="0.3", **_PUBLISHED)}


def _legend(
    fig: Figure, colours: Mapping[str, str], extra: Mapping[str, Line2D], columns: int = 5
) -> None:
    """Below the panels, so that it hides nothing."""
    handles = [Line2D([], [], color=colour) for colour in colours.values()]
    names = [*(name.replace("_", " ") for name in colours), *extra]
    columns = min(columns, len(names))
    fig.legend([*handles, *extra.values()], names, ncols=columns, loc="outside lower center")


def _band(ax: Axes, groups: Any, colour: str, style: str = "-") -> None:
    middle = groups.quantile([0.25, 0.75]).unstack()
    mean = groups.mean()
    few = "o" if len(mean) < 8 else None
    ax.plot(mean.index, mean, style, color=colour, marker=few, markersize=2.5)
    edges = middle[0.25], middle[0.75]
    ax.fill_between(mean.index, *edges, color=colour, alpha=0.15, linewidth=0)


def _steps(ax: Axes, part: pd.DataFrame, colour: str) -> None:
    """An error holds until the next round is over; before the first one it is 1."""
    mean = part[part["round"] > 0].groupby("time")["error"].mean()
    times = [mean.index[0] / 1e3, *mean.index]  # the axis has no 0
    ax.plot(times, [1.0, *mean], color=colour, drawstyle="steps-post")


def _slope(ax: Axes, part: pd.DataFrame, decades: float) -> None:
    """The line that the spectral gap predicts, through the last point of the mean."""
    if not np.isfinite(decades):
        return
    mean = part.groupby("round")["error"].mean()
    at = np.array([0.0, float(mean.index[-1])])
    line = np.log10(mean.iloc[-1]) + decades * (at - at[-1])
    ax.plot(at, 10**line, color="0.2", linewidth=0.7, linestyle="--", zorder=3)


def _is_deviation(row: Row) -> bool:
    """Some rows are already a relative deviation, of a file or of many runs, and stand beside 0."""
    return row.kind in ("simulator", "measurement") and row.reference == 0.0


def _used(row: Row) -> float:
    """The part of its tolerance that a row needs, at most `_MOST`."""
    if row.difference == 0.0:
        return 0.0
    return min(abs(row.difference) / row.tolerance, _MOST) if row.tolerance else _MOST


def _strip(ax: Axes, kinds: Sequence[str], rows: Sequence[Row], values: Sequence[float]) -> None:
    """A point per row at its value; rows of one kind are spread over a band."""
    least = 10 ** np.floor(np.log10(min((v for v in values if v > 0), default=1e-16)))
    for place, kind in enumerate(kinds):
        mine = [(max(v, least), row.holds) for row, v in zip(rows, values) if row.kind == kind]
        shift = np.linspace(-_JITTER, _JITTER, len(mine))
        for holds, colour in ((True, "#0072B2"), (False, "#D55E00")):
            shown = [(x, place + y) for (x, held), y in zip(mine, shift) if held == holds]
            at = np.array(shown).reshape(-1, 2).T
            ax.plot(*at, "o", color=colour, markersize=3, alpha=0.6)
    ax.set_xscale("log")
