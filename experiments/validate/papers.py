"""Tables of papers: which of our judges a file is for, told by its columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from experiments.validate import averaging, systems, topology, utilisation, wallclock
from experiments.validate.columns import Line, has, read
from experiments.validate.row import Row

Judge = Callable[[Path], list[Row]]


def judge(path: str | Path) -> list[Row]:
    """Judge a file by its columns; its name does not matter.

    Raises:
        ValueError: no judge knows these columns (the message lists what is known), or a value is
            impossible.
    """
    return _judge_of(Path(path), read(path))(Path(path))


def _judge_of(path: Path, lines: list[Line]) -> Judge:
    for columns, judge_it in _known().values():
        if has(lines, columns):
            return judge_it
    known = "; ".join(f"{name}: {', '.join(columns)}" for name, (columns, _) in _known().items())
    raise ValueError(f"{path}: columns {list(lines[0].cells)} are of no table known here; {known}")


def _known() -> dict[str, tuple[tuple[str, ...], Judge]]:
    """Tables by name: the columns that tell each one, and who judges it."""
    cells = ("model", "parameters", "layers", "step_time_s", "method", "sync_interval_steps")
    hours = ("token_budget", "method", "hours_infinite_bandwidth", "hours_at_1_gbit_s")
    return {
        "cu_*": ((*cells, "target_cu", "published_gbit_s"), utilisation.judge),
        "time_volume_*": ((*hours, "terabytes_exchanged"), utilisation.judge),
        "measured_cu_*": (systems.MEASURED_CU, systems.judge),
        "averaging_*": (averaging.COLUMNS, averaging.judge),
        "wallclock_*": (wallclock.COLUMNS, wallclock.judge),
        "topology_spectral_gaps_*": (topology.COLUMNS, topology.judge),
    }
