"""Tables of changes over time: rows of CSV files and DataFrames, checked one by one."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from numpy import ndarray

from sim import units

Table: TypeAlias = str | Path | pd.DataFrame | Mapping[str, Sequence[Any]]
"""A CSV file with a header, or a DataFrame or a mapping with the same columns."""
_Row = tuple[int, dict[str, Any]]


class Changes(NamedTuple):
    """R rows of a table.

    Attributes:
        key: the column of `value`.
        time: seconds, ascending; float64 [R].
        value: NaN where nothing changes; float64 [R].
        up: 1, 0, or -1 where nothing changes; int8 [R].
        links: (u, v) of each row, if the table has these columns.
        source: what to call a row of it.
        numbers: of the rows, as a reader of the table would count them; [R].
    """

    key: str
    time: ndarray
    value: ndarray
    up: ndarray
    links: list[tuple[Any, Any]]
    source: str
    numbers: Sequence[int] | ndarray

    def where(self, i: int) -> str:
        """Row i, for messages."""
        return f"{self.source} {self.numbers[i]}"


def read_changes(
    table: Table,
    ends: Sequence[str],
    values: Sequence[str],
    time_unit: str,
    bandwidth_unit: str,
    max_bytes: units.Quantity,
) -> Changes:
    """The rows of a table with the columns `time`, `ends`, one of `values` and perhaps `up`.

    Raises:
        ValueError: names the row that is wrong: times that go backwards, values below 0, ...
    """
    columns, rows, source = _rows(table, max_bytes)
    given = [key for key in values if key in columns]
    if len(given) != 1 or not {"time", *ends} <= set(columns):
        wanted = ",".join(["time", *ends, " or ".join(values)])
        raise ValueError(f"{source}: columns {','.join(columns)}; expected {wanted} and perhaps up")
    key, times, read, up, links, numbers = given[0], [0.0], [], [], [], []
    for number, row in rows:
        where = f"{source} {number}"
        times.append(_time(row["time"], time_unit, where, times[-1]))
        unit = bandwidth_unit if key == "bandwidth" else ""
        read.append(_value(key, row[key], unit, where))
        up.append(_up(row.get("up"), where))
        if math.isnan(read[-1]) and up[-1] < 0:
            raise ValueError(f"{where}: {key} is empty or not a number, and nothing else changes")
        if ends:
            links.append(tuple(_node(row[end]) for end in ends))
        numbers.append(number)
    if not numbers:
        raise ValueError(f"{source}: no rows after the header; a trace has at least one")
    return Changes(
        key, np.array(times[1:]), np.array(read), np.array(up, np.int8), links, source, numbers
    )


def read_lines(path: str | Path, max_bytes: units.Quantity) -> Iterator[tuple[int, str]]:
    """Numbered lines of a file that is not too large, without blanks and # comments."""
    limit, nbytes = units.size(max_bytes, "max_bytes", positive=True), Path(path).stat().st_size
    if nbytes > limit:
        raise ValueError(f"{path}: {nbytes:,} bytes; at most max_bytes={limit:,.0f}")
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and not line.startswith("#"):
                yield number, line.strip()


def _rows(table: Table, max_bytes: units.Quantity) -> tuple[list[str], Iterator[_Row], str]:
    """Columns, numbered rows as mappings, and what a row is called.

    A column of a mapping that is too short ends in empty cells.
    """
    if isinstance(table, Mapping):
        table = pd.DataFrame({key: pd.Series(cells, dtype=object) for key, cells in table.items()})
    if isinstance(table, pd.DataFrame):
        columns = [str(column) for column in table.columns]
        tuples = enumerate(table.itertuples(index=False, name=None))
        return columns, ((i, dict(zip(columns, cells))) for i, cells in tuples), "row"
    lines, source = read_lines(table, max_bytes), f"{table}, line"
    columns = [cell.strip() for cell in next(csv.reader([next(lines, (0, ""))[1]]), [])]
    return columns, (_split(number, line, columns, source) for number, line in lines), source


def _split(number: int, line: str, columns: list[str], source: str) -> _Row:
    try:
        cells = next(csv.reader([line]))
    except csv.Error as error:
        raise ValueError(f"{source} {number}: {error}") from None
    if len(cells) != len(columns):
        raise ValueError(f"{source} {number}: {len(cells)} cells for {len(columns)} columns")
    return number, dict(zip(columns, (cell.strip() for cell in cells)))


def _time(cell: Any, unit: str, where: str, last: float) -> float:
    time = units.seconds(_quantity(cell, unit), f"{where}, time")
    if not last <= time < math.inf:
        raise ValueError(
            f"{where}: time={time:g} s; expected a finite time, not before the last ({last:g} s)"
        )
    return time


def _value(key: str, cell: Any, unit: str, where: str) -> float:
    """A bandwidth or a factor; NaN for an empty cell."""
    if _is_empty(cell):
        return math.nan
    if key == "bandwidth":
        return units.bandwidth(_quantity(cell, unit), f"{where}, bandwidth", positive=False)
    if not (_is_number(cell) and 0.0 <= float(cell) < math.inf):
        raise ValueError(f"{where}: factor={cell!r}; expected a finite number >= 0")
    return float(cell)


def _up(cell: Any, where: str) -> int:
    """1, 0, or -1 for an empty cell."""
    if cell is None or _is_empty(cell):
        return -1
    if not (_is_number(cell) and float(cell) in (0.0, 1.0)):
        raise ValueError(f"{where}: up={cell!r}; expected 1, 0 or nothing")
    return int(float(cell))


def _node(cell: Any) -> Any:
    """A node of a graph: a whole number if it looks like one."""
    if isinstance(cell, str) and cell.removeprefix("-").isdecimal():
        return int(cell)
    return cell.item() if isinstance(cell, np.generic) else cell


def _quantity(cell: Any, unit: str) -> units.Quantity:
    """With a unit, if it has none."""
    plain = cell.item() if isinstance(cell, np.generic) else cell
    return f"{plain}{unit}" if _is_number(plain) and not isinstance(plain, bool) else plain


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell) or cell is pd.NA or cell != cell


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True
