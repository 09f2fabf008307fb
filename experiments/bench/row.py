"""A row of a benchmark: one quantity, ours beside a baseline's."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Medians of repeated measurements.

    Args:
        name: of the quantity.
        unit: of `ours` and `baseline`.
        ours: the median.
        baseline: the median of the other implementation, measured in the same run; None if there
            is nothing to compare with.
        baseline_name: what that is.
        spread: half the range of the repetitions of ours, relative to the median.
        target: `">= 2"`, `"<= 0.25"`: bound of the ratio, or of `ours` where there is no baseline;
            None if there is none.
    """

    name: str
    unit: str
    ours: float
    baseline: float | None = None
    baseline_name: str | None = None
    spread: float | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        if self.target is not None:
            self._bound()

    @property
    def ratio(self) -> float | None:
        """Ours over the baseline."""
        return self.ours / self.baseline if self.baseline else None

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        sign, bound = self._bound()
        value = self.ours if self.ratio is None else self.ratio
        return value >= bound if sign == ">=" else value <= bound

    def _bound(self) -> tuple[str, float]:
        sign, _, bound = str(self.target).partition(" ")
        if sign not in (">=", "<="):
            raise ValueError(f"target={self.target!r}: must be '>= NUMBER' or '<= NUMBER'")
        return sign, float(bound)


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
