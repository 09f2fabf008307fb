"""Heat map: how busy the busiest links were, over time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

from experiments import figures
from experiments.gantt import time_unit
from experiments.loads import heat
from experiments.records import Window
from sim.trace import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def heat_map(
    run: Trace | str | Path, window: Window | None = None, links: int = 40, bins: int = 200
) -> Figure:
    """A row per link, the busiest on top; colour is the mean utilisation of a bin of time.

    Raises:
        ValueError: see `experiments.loads.heat`.
    """
    found = heat(run, window, links, bins)
    unit, name = time_unit(found.edges[-1] - found.edges[0])
    with plt.style.context(figures.STYLE):
        rows = len(found.links)
        fig, ax = plt.subplots(figsize=(6.9, 0.9 + max(0.14 * rows, 0.6)), layout="constrained")
        mesh = ax.pcolormesh(
            found.edges / unit, range(rows + 1), 100 * found.utilisation, vmin=0, vmax=100
        )
        ax.set_yticks([row + 0.5 for row in range(rows)], found.links)
        ax.set_ylim(rows, 0)
        ax.grid(False)
        ax.tick_params(axis="y", length=0, labelsize=6)
        ax.set_xlabel(f"simulated time ({name})")
        of = f"the {rows} busiest of {found.total} links" if found.total > rows else ""
        ax.set_title(of)
        fig.colorbar(mesh, ax=ax, label="utilisation (%)", fraction=0.03)
    return fig


def save(
    run: Trace | str | Path, path: str | Path, window: Window | None = None, links: int = 40
) -> Path:
    """Save the map; `path` ends in .png or .svg."""
    return figures.save_as(lambda: heat_map(run, window, links), path)
