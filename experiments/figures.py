"""Figures: functions of a DataFrame of `results.load` and an axes, in one style.

df = results.load("runs/first_light")
fig = figures.panels(df, figures.loss_against_time, hue="strategy", col="place")
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import matplotlib.pyplot as plt
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("archipelago.mplstyle")
Draw = Callable[..., "Axes"]
Looks = Mapping[str, Mapping[str, Any]]
"""Value of the hue, as text -> colour and line style."""

_LINE_STYLES = ("-", ":", "-.", "--")
_SAME_FLOOR = 1e-6
_FEW = 3  # labels that fit below a panel without touching


def loss_against_time(
    df: pd.DataFrame, ax: Axes, hue: str | None = None, unit: str = "", looks: Looks | None = None
) -> Axes:
    """Loss over simulated time, one look per value of `hue`; the floor, if all share it, dashed.

    Args:
        unit: what the loss is measured in, for the axis.
        looks: those of a figure with several panels; default: in the order of the values in `df`.
    """
    ax.set_xlabel("simulated time (s)")
    return _loss(df, ax, "time", hue, unit, looks)


def loss_against_bytes(
    df: pd.DataFrame, ax: Axes, hue: str | None = None, unit: str = "", looks: Looks | None = None
) -> Axes:
    """Loss over bytes sent per node; the rest as in `loss_against_time`."""
    ax.set_xlabel("sent per node (bytes)")
    return _loss(df, ax, "nbytes_per_node", hue, unit, looks)


def final_loss_against(
    df: pd.DataFrame,
    ax: Axes,
    key: str,
    hue: str | None = None,
    unit: str = "",
    looks: Looks | None = None,
) -> Axes:
    """Final loss over a swept number: the median over seeds, in a band from the least to the most.

    The lowest median of each value of `hue` has a dot. Axes that span more than a decade are
    logarithmic.

    Args:
        df: one row per run, as of `results.summary`; an infinite loss is outside of the figure.
        key: the column of the swept number.
        unit, looks: as in `loss_against_time`.
    """
    looks = looks or _looks(df, hue)
    for name, runs in df.groupby(_names(df, hue), sort=False):
        stats = runs.groupby(key)["loss"].agg(["median", "min", "max"])
        inside = stats.where(stats.abs() < math.inf)
        ax.plot(inside.index, inside["median"], label=name, **looks[str(name)])
        color, best = looks[str(name)]["color"], stats["median"].idxmin()
        ax.fill_between(inside.index, inside["min"], inside["max"], color=color, alpha=0.2, lw=0)
        ax.plot(best, inside["median"][best], "o", label="_best", color=color, markersize=4)
    ax.set(xlabel=key, ylabel=f"final loss ({unit})" if unit else "final loss")
    shown = df["loss"][df["loss"].abs() < math.inf]
    ax.set(xscale=_scale(df[key]), yscale=_scale(shown))
    if ax.get_xscale() == "log":
        ax.xaxis.set_minor_formatter(_WithinDecade())
    if ax.get_yscale() == "log":
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    return ax


def _scale(values: pd.Series) -> str:
    return "log" if 0 < 10 * values.min() < values.max() else "linear"


def panels(
    df: pd.DataFrame,
    draw: Draw,
    hue: str | None,
    col: str | None = None,
    title: str = "",
    unit: str = "",
) -> Figure:
    """One panel per value of `col`, drawn by one of the functions above; one legend for all."""
    parts = [("", df)] if col is None else list(df.groupby(df[col].map(str), sort=False))
    with plt.style.context(STYLE):
        looks = _looks(df, hue)
        width = 3.35 if len(parts) == 1 else 2.3 * len(parts)
        fig, axes = plt.subplots(
            1, len(parts), sharey=True, squeeze=False, figsize=(width, 2.6), layout="constrained"
        )
        for ax, (name, part) in zip(axes[0], parts):
            draw(part, ax, hue=hue, unit=unit, looks=looks)
            ax.set_title(name)
        for ax in axes[0][1:]:
            ax.set_ylabel("")
        drawn = {h.get_label(): h for ax in axes[0] for h in ax.lines}
        handles = [drawn[k] for k in (*looks, "floor") if k in drawn and k != "_"]
        if handles:  # beside the panels: lines may end anywhere in them
            columns = 1 if len(parts) == 1 else len(handles)
            fig.legend(handles=handles, loc="outside lower center", ncols=min(columns, 6))
        fig.suptitle(title, fontsize=7)
    return fig


def save(fig: Any, path: str | Path) -> list[Path]:
    """Save as PNG and SVG beside each other; `path` is without a suffix."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.style.context(STYLE):
        for suffix, extra in ((".png", None), (".svg", {"Date": None})):
            fig.savefig(path.with_suffix(suffix), metadata=extra)
    plt.close(fig)
    return [path.with_suffix(suffix) for suffix in (".png", ".svg")]


def save_as(make: Callable[[], Figure], path: str | Path) -> Path:
    """Save the figure that `make` draws as one file, by rename; `path` ends in .png or .svg.

    Raises:
        ValueError: another ending; nothing is drawn then.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"{path}: must end in .png or .svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    fig, beside = make(), path.with_name(f".tmp-{path.name}")
    with plt.style.context(STYLE):
        fig.savefig(beside, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(fig)
    os.replace(beside, path)
    return path


@final
class _WithinDecade(LogFormatterSciNotation):
    """Labels a few minor ticks of a logarithmic axis if it shows no power of ten, else none."""

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """One text per tick, most of them empty."""
        assert self.axis is not None  # it is the axis that asks
        low, high = sorted(self.axis.get_view_interval())
        if math.ceil(math.log10(low)) <= math.log10(high):
            return [""] * len(values)
        inside = [value for value in values if low <= value <= high]
        shown = set(inside[:: math.ceil(len(inside) / _FEW) or 1])
        return [self(value) if value in shown else "" for value in values]


def _loss(
    df: pd.DataFrame, ax: Axes, x: str, hue: str | None, unit: str, looks: Looks | None
) -> Axes:
    looks = looks or _looks(df, hue)
    started = df[df[x] > 0]  # the axis is logarithmic, and at 0 nothing has been learnt
    labelled = set()
    for (name, _), run in started.groupby([_names(started, hue), "run"], sort=False):
        ax.plot(run[x], run["loss"], label="_" if name in labelled else name, **looks[name])
        labelled.add(name)
    floor = _floor(df)
    if floor is not None:
        ax.axhline(floor, color="0.4", linewidth=0.8, linestyle="--", label="floor")
    ax.set(xscale="log", ylabel=f"loss ({unit})" if unit else "loss")
    ax.xaxis.set_minor_formatter(_WithinDecade())
    return ax


def _names(df: pd.DataFrame, hue: str | None) -> pd.Series:
    return df["run"].map(lambda _: "_") if hue is None else df[hue].map(str)


def _looks(df: pd.DataFrame, hue: str | None) -> Looks:
    """Colours in the order of the values' appearance; once all are taken, another line style."""
    palette = plt.rcParams["axes.prop_cycle"].by_key()["color"]  # of the style in force now
    looks = {}
    for number, name in enumerate(_names(df, hue).unique()):
        turn, color = divmod(number, len(palette))
        style = _LINE_STYLES[turn % len(_LINE_STYLES)]
        looks[name] = {"color": palette[color], "linestyle": style}
    return looks


def _floor(df: pd.DataFrame) -> float | None:
    """The floor that all runs share, up to rounding; None if they differ, or one has none."""
    if "excess" not in df or df.empty:
        return None
    floors = (df["loss"] - df["excess"]).groupby(df["run"]).median()
    same = floors.max(skipna=False) - floors.min() <= _SAME_FLOOR
    return float(floors.iloc[0]) if same else None
