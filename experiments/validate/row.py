"""A row of the validation table: ours beside a reference that is not ours."""

from __future__ import annotations

import math
from dataclasses import dataclass

KINDS = ("formula", "simulator", "program", "measurement", "published", "property")
"""What a reference is: a closed form, another simulator, the program of a paper's authors, a
measurement on real machines, a number or table of a paper, or a property that must hold
(conservation, capacity, max-min)."""


@dataclass(frozen=True)
class Row:
    """One quantity, ours and the reference's.

    Args:
        what: of the quantity, with its unit.
        ours, reference: numbers of that unit.
        tolerance: accepted difference; see `relative`.
        source: of the reference: paper and table, file, or formula.
        kind: one of `KINDS`.
        relative: the difference is (ours - reference) / |reference|; else ours - reference.
        judged: False for a row that is printed for the reader only.
        note: what a reader should know, such as which flows disagree.
    """

    what: str
    ours: float
    reference: float
    tolerance: float
    source: str
    kind: str
    relative: bool = True
    judged: bool = True
    note: str = ""

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind

    @property
    def difference(self) -> float:
        """Signed; relative to the reference if `relative`."""
        if self.relative and self.reference != 0.0:
            return (self.ours - self.reference) / abs(self.reference)
        return self.ours - self.reference

    @property
    def holds(self) -> bool:
        """Within tolerance; a difference that is not a number does not hold."""
        return math.isfinite(self.difference) and abs(self.difference) <= self.tolerance
