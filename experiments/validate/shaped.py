"""Measurements on shaped links: which of our judges a file is for, told by its columns."""

from __future__ import annotations

from pathlib import Path

from experiments.validate import gloo, measured
from experiments.validate.columns import has, read
from experiments.validate.row import Row


def judge(path: str | Path, tcp: bool = False) -> list[Row]:
    """Judge training runs, or transfers of gloo.

    Args:
        tcp: predict training runs with what `tcp.Shaper` leaves of the measured rate.

    Raises:
        ValueError: neither has these columns (the message lists those of both), or a value is
            impossible.
    """
    lines = read(path)
    if has(lines, measured.COLUMNS):
        return measured.judge(path, tcp)
    if has(lines, gloo.COLUMNS):
        return gloo.judge(path)
    known = {"training runs": measured.COLUMNS, "gloo": gloo.COLUMNS}
    listed = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in known.items())
    raise ValueError(f"{path}: columns {list(lines[0].cells)} are of no file known here; {listed}")
