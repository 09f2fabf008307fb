"""Figures: functions of a DataFrame of `results.load` and an axes, in one style.

df = results.load("runs/first_light")
fig = figures.panels(df, figures.loss_against_time, hue="strategy", col="place")
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("archipelago.mplstyle")
Draw = Callable[..., "Axes"]


def loss_against_time(df: pd.DataFrame, ax: Axes, hue: str | None = None) -> Axes:
    """Loss over simulated time, one line per value of `hue`; the floor, if known, dashed."""
    return _loss(df, ax, hue, "time", "simulated time (s)")


def loss_against_bytes(df: pd.DataFrame, ax: Axes, hue: str | None = None) -> Axes:
    """Loss over bytes sent per node, one line per value of `hue`."""
    return _loss(df, ax, hue, "nbytes_per_node", "sent per node (bytes)")


def panels(
    df: pd.DataFrame, draw: Draw, hue: str | None, col: str | None = None, title: str = ""
) -> Figure:
    """One panel per value of `col`, drawn by one of the functions above."""
    parts = [("", df)] if col is None else list(df.groupby(col, sort=False))
    with plt.style.context(STYLE):
        width = 3.35 if len(parts) == 1 else 2.3 * len(parts)
        fig, axes = plt.subplots(
            1, len(parts), sharey=True, squeeze=False, figsize=(width, 2.6), layout="constrained"
        )
        for ax, (name, part) in zip(axes[0], parts):
            draw(part, ax, hue=hue)
            ax.set_title(str(name))
        for ax in axes[0][1:]:
            ax.set_ylabel("")
        handles = {h.get_label(): h for ax in axes[0] for h in ax.lines if h.get_label()[0] != "_"}
        axes[0][-1].legend(handles=list(handles.values()))
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


def _loss(df: pd.DataFrame, ax: Axes, hue: str | None, x: str, label: str) -> Axes:
    started = df[df[x] > 0]  # the axis is logarithmic, and at 0 nothing has been learnt
    keys = ["run"] if hue is None else [hue, "run"]
    palette = plt.rcParams["axes.prop_cycle"].by_key()["color"]  # of the style in force now
    colors: dict[Any, str] = {}
    for key, run in started.groupby(keys, sort=False):
        name = key[0] if hue is not None else "_"
        first = name not in colors
        colors.setdefault(name, palette[len(colors) % len(palette)])
        ax.plot(run[x], run["loss"], color=colors[name], label=str(name) if first else "_")
    if "excess" in df and len(df):
        floor = float((df["loss"] - df["excess"]).median())
        ax.axhline(floor, color="0.4", linewidth=0.8, linestyle="--", label="floor")
    ax.set(xscale="log", xlabel=label, ylabel="loss (nats per token)")
    ax.xaxis.set_minor_formatter(NullFormatter())
    return ax
