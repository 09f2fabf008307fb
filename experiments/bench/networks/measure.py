"""Repeated measurements as rows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from experiments.bench.row import Row


def row(
    name: str,
    unit: str,
    ours: Sequence[float],
    theirs: Sequence[float] = (),
    baseline_name: str | None = None,
    target: str | None = None,
) -> Row:
    """The medians, and half the range of ours relative to its median."""
    median = statistics.median(ours)
    return Row(
        name,
        unit,
        median,
        baseline=statistics.median(theirs) if theirs else None,
        baseline_name=baseline_name if theirs else None,
        spread=(max(ours) - min(ours)) / 2 / median if median and len(ours) > 1 else None,
        target=target,
    )
