"""Our finish times beside those in SimGrid's files that are shipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.bench.row import Row, row
from experiments.validate.columns import DATA
from experiments.validate.platform import read
from experiments.validate.replay import COALESCING, replay


def files() -> list[Path]:
    """The files that are shipped."""
    return sorted((DATA / "network").glob("*.npz"))


def rows(paths: Sequence[Path]) -> list[Row]:
    """The largest deviation of each file, exact and approximate; infinite if failures differ."""
    unit = "largest relative deviation"
    made = []
    for path in paths:
        for mode, q, bound in (("exact", 0.0, "1e-6"), (_COARSE, COALESCING, "1e-3")):
            name = f"{path.stem}: times of flows, {mode}"
            made.append(row(name, unit, [_deviation(path, q)], target=f"<= {bound}"))
    return made


def _deviation(path: Path, approximate: float) -> float:
    platform = read(path)
    begin, finish = replay(platform, approximate)
    if (np.isnan(finish) != np.isnan(platform.finish)).any():
        return float("inf")
    theirs = platform.finish - platform.start
    off = np.abs(finish - begin - theirs) / theirs
    return float(np.nanmax(off[theirs > 0.0]))


_COARSE = f"approximate {COALESCING:g}"
