"""Reading a CSV of somebody else's: columns by name, checked numbers, errors that name the row."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_LARGEST = 50_000_000
"""Bytes of a file that are still read."""
DATA = Path(__file__).parent / "data"
"""Where the files that the built-in table reads are shipped."""


@dataclass(frozen=True)
class Line:
    """One row of a file.

    Args:
        where: file and line, for messages.
        cells: text by column.
    """

    where: str
    cells: dict[str, str]

    def text(self, column: str) -> str:
        """The text of a cell."""
        return self.cells[column]

    def number(
        self, column: str, low: float = 0.0, high: float = math.inf, positive: bool = False
    ) -> float:
        """A finite number in [low, high], or (low, high] if `positive`.

        Raises:
            ValueError: it is none; names file, line, column, value and the accepted range.
        """
        value = self.optional(column, low, high, positive)
        if value is None:
            raise ValueError(f"{self.where}: {column} is empty: expected a number")
        return value

    def optional(
        self, column: str, low: float = 0.0, high: float = math.inf, positive: bool = False
    ) -> float | None:
        """As `number`; None if the cell is empty."""
        text = self.cells[column].strip()
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"{self.where}: {column}={text!r}: expected a number") from None
        if not (math.isfinite(value) and low <= value <= high) or (positive and value <= low):
            bounds = f"a finite number {'>' if positive else '>='} {low:g}"
            bounds += f" and <= {high:g}" if math.isfinite(high) else ""
            raise ValueError(f"{self.where}: {column}={text}: expected {bounds}")
        return value

    def count(self, column: str, low: int = 1, high: int = 10**9) -> int:
        """A whole number in low .. high; ValueError otherwise."""
        value = self.number(column, low, high)
        if value != int(value):
            raise ValueError(f"{self.where}: {column}={value:g}: expected a whole number")
        return int(value)


def read(path: str | Path) -> list[Line]:
    """All rows of a CSV with a header.

    Raises:
        ValueError: not such a file: too large, not UTF-8 text, no rows, a column named twice, or
            a row with too many or too few cells.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path}: {path.stat().st_size} bytes: expected at most {_LARGEST}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV in UTF-8: {error}") from None
    rows = [row for row in rows if row]
    if len(rows) < 2:
        raise ValueError(f"{path}: no rows: expected a header and at least one row")
    header = [name.strip() for name in rows[0]]
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise ValueError(f"{path}: column {twice!r} occurs twice")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise ValueError(f"{path}: row {number} has {len(row)} cells: expected {len(header)}")
    return [Line(f"{path.name}: row {i}", dict(zip(header, r))) for i, r in enumerate(rows[1:], 2)]


def has(lines: list[Line], columns: Iterable[str]) -> bool:
    """Whether a file has all of these columns."""
    return set(columns) <= set(lines[0].cells)
