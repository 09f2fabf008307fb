"""A tuning study that computes together, beside one run after the other, and one per core.

Everything that a user waits for is in the time once the cells are composed: what each run builds,
computes and writes, and the start of processes where there are any.
"""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from experiments import grid
from experiments.bench.row import Row, row
from experiments.cells import Cell, read
from experiments.together import run_together
from sim.compute.options import available_cores

_RATES = ",".join(f"{10 ** (k / 2):.2g}" for k in range(-8, -1))
STUDY = ["experiment=tune_small", "seed=0", f"local.lr={_RATES}", "evaluations=5"]
_STEPS, _REPEATS = 100, 3
_KINDS = {
    "64 nodes": [],
    "8 nodes, any module (vmap)": ["topology.n=8", "compute.engine=vmap"],
}
"""Studies: one whose runs fill blocks by themselves, one where it takes all of them to do so."""


def rows(quick: bool = False) -> list[Row]:
    """Runs per minute of some of the study's cells, with fewer steps."""
    return [row for kind in _KINDS for row in _rows(kind, quick)]


def _rows(kind: str, quick: bool) -> list[Row]:
    more = ["local.lr=0.01", "topology.n=4"] if quick else []
    line = [*STUDY, f"budget.steps={20 if quick else _STEPS}", *_KINDS[kind], *more]
    _rate(_apart, [*line, "task.width=8,32,128", "local.lr=0.01", "seed=0"])  # compiles, chooses
    ways = (_together, _apart, _per_core)
    measured = [[_rate(way, line) for way in ways] for _ in range(1 if quick else _REPEATS)]
    together, apart, processes = zip(*measured)
    name = f"tuning study of {len(read(line).cells)} runs of {kind}, together"
    cores = available_cores()
    return [
        row(name, "runs/min", together, apart, "one after the other, on all cores"),
        row(name, "runs/min", together, processes, f"{cores} processes, one run per core"),
    ]


def _rate(how: Callable[[list[Cell]], dict[int, str] | None], line: list[str]) -> float:
    """Runs per minute, of runs that all end well."""
    with tempfile.TemporaryDirectory() as folder:
        cells = read([*line, f"hydra.sweep.dir={folder}"]).cells
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):  # progress
            failed = how(cells)
        seconds = time.perf_counter() - started
        if failed or len(list(Path(folder).glob("*/manifest.json"))) < len(cells):
            raise RuntimeError(f"runs of the study failed: {failed}")
    return 60 * len(cells) / seconds


def _together(cells: list[Cell]) -> dict[int, str]:
    needs = dict.fromkeys((cell.number for cell in cells), 0.0)
    return run_together(cells, needs, math.inf, available_cores())


def _apart(cells: list[Cell]) -> None:
    for cell in cells:
        grid.run_cell(cell)


def _per_core(cells: list[Cell]) -> dict[int, str]:
    return grid.run_cells(cells)
