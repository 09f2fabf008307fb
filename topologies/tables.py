"""Tables in CSV: the measurements that ship with this package, and matrices of users.

Lines that start with `#` are comments (the sources, in our own tables). A user's file is
untrusted: its size is bounded and every error names its line.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from sim import units

DATA = Path(__file__).parent / "data"
MAX_SIDE = 1024  # of a matrix: a million links is what a graph of Python objects still carries


def read_bytes(path: str | Path, max_size: units.Quantity) -> bytes:
    """The content of a file of at most `max_size` bytes; ValueError if it is larger."""
    limit = int(units.size(max_size, "max_size"))
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path}: larger than max_size={limit} bytes; raise max_size to read it")
    return content


def read_records(path: str | Path) -> list[dict[str, str]]:
    """The rows of one of our own tables, each a mapping from column to text."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def read_matrix(
    path: str | Path, max_size: units.Quantity = "16MB", *, positive: bool = False
) -> tuple[list[str], np.ndarray]:
    """A square matrix in CSV: a header `corner,name,...`, then rows `name,value,...`.

    Returns:
        The names, and float64 [n, n]: row i, column j from i to j. An empty cell is NaN, and so
        is the diagonal, whatever it says. Values are finite and >= 0, with `positive` > 0.
    """
    rows = numbered_rows(path, max_size)
    if not rows:
        raise ValueError(f"{path}: no rows; expected a header `corner,name,...` and one row a name")
    names = [name.strip() for name in rows[0][1][1:]]
    _check_names(path, rows, names)
    values = [
        _values(path, line, row, names, i, positive) for i, (line, row) in enumerate(rows[1:])
    ]
    return names, np.array(values)


def _check_names(path: str | Path, rows: list[tuple[int, list[str]]], names: list[str]) -> None:
    """Raise unless the header has different names and each has its row, in the same order."""
    where = f"{path}, line {rows[0][0]}"
    if not 1 <= len(names) <= MAX_SIDE:
        raise ValueError(f"{where}: {len(names)} names in the header; expected 1 to {MAX_SIDE}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{where}: {twice!r} twice in the header; expected different names")
    found = [row[0].strip() for _, row in rows[1:]]
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"{path}: {len(found)} rows for {len(names)} names, none for {missing[0]!r}; "
            "must be square"
        )
    for (line, _), name, expected in zip(rows[1:], found, [*names, None]):
        if name != expected:
            column = f"column {names.index(name) + 1}" if name in names else "no column"
            raise ValueError(
                f"{path}, line {line}: row {name!r}, which is {column} of the header; expected "
                + ("no more rows" if expected is None else f"row {expected!r}, in its order")
            )


def numbered_rows(path: str | Path, max_size: units.Quantity) -> list[tuple[int, list[str]]]:
    """Line numbers and cells; no cell spans lines, so that line numbers are the editor's."""
    try:
        lines = read_bytes(path, max_size).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from error
    numbered = [(i, line) for i, line in enumerate(lines, 1) if line and not line.startswith("#")]
    try:
        return [(i, next(csv.reader([line]))) for i, line in numbered]
    except csv.Error as error:
        raise ValueError(f"{path}: {error}") from error


def _values(
    path: str | Path, line: int, row: list[str], names: list[str], i: int, positive: bool
) -> list[float]:
    """The numbers of row i, after checking its length."""
    if len(row) != len(names) + 1:
        raise ValueError(f"{path}, line {line}: {len(row) - 1} values, expected {len(names)}")
    values = []
    for j, (name, cell) in enumerate(zip(names, row[1:])):
        where = f"{path}, line {line}, column {name!r}"
        values.append(math.nan if i == j or not cell.strip() else number(where, cell, positive))
    return values


def number(where: str, cell: str, positive: bool = False) -> float:
    """The number in a cell, finite and >= 0 (or > 0); the message of a ValueError says where."""
    try:
        value = float(cell)
    except ValueError:
        raise ValueError(f"{where}: {cell!r} is no number") from None
    if not 0 <= value < math.inf or (positive and value == 0):
        raise ValueError(f"{where}: {cell} must be finite and {'> 0' if positive else '>= 0'}")
    return value
