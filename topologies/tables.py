"""Tables in CSV: the measurements that ship with this package, and latency matrices of users.

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
    path: str | Path, max_size: units.Quantity = "16MB"
) -> tuple[list[str], np.ndarray]:
    """A square matrix in CSV: a header `corner,name,...`, then rows `name,value,...`.

    Returns:
        The names, and float64 [n, n]: row i, column j from i to j. An empty cell is NaN, and so
        is the diagonal, whatever it says.
    """
    rows = _numbered_rows(path, max_size)
    if not rows:
        raise ValueError(f"{path}: no rows; expected a header `corner,name,...` and one row a name")
    names = [name.strip() for name in rows[0][1][1:]]
    if not 1 <= len(names) <= MAX_SIDE or len(set(names)) != len(names):
        raise ValueError(
            f"{path}, line {rows[0][0]}: {len(names)} names in the header; "
            f"expected 1 to {MAX_SIDE} different ones"
        )
    if len(rows) != len(names) + 1:
        raise ValueError(f"{path}: {len(rows) - 1} rows for {len(names)} names; must be square")
    matrix = np.array(
        [_values(path, line, row, names, i) for i, (line, row) in enumerate(rows[1:])]
    )
    np.fill_diagonal(matrix, math.nan)
    return names, matrix


def _numbered_rows(path: str | Path, max_size: units.Quantity) -> list[tuple[int, list[str]]]:
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


def _values(path: str | Path, line: int, row: list[str], names: list[str], i: int) -> list[float]:
    """The numbers of row i, after checking its name and its length."""
    if row[0].strip() != names[i]:
        raise ValueError(
            f"{path}, line {line}: row {row[0]!r} where column {i + 1} is {names[i]!r}"
        )
    if len(row) != len(names) + 1:
        raise ValueError(f"{path}, line {line}: {len(row) - 1} values, expected {len(names)}")
    values = []
    for name, cell in zip(names, row[1:]):
        try:
            value = float(cell) if cell.strip() else math.nan
        except ValueError:
            raise ValueError(
                f"{path}, line {line}, column {name!r}: {cell!r} is no number"
            ) from None
        if value < 0 or value == math.inf:
            raise ValueError(
                f"{path}, line {line}, column {name!r}: {cell} must be finite and >= 0"
            )
        values.append(value)
    return values
