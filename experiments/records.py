"""Records of a run one after the other: of a `Trace`, or of a run folder that is not trusted.

- A folder is read as a stream, a few thousand rows at a time: memory does not grow with the run.
- Sizes are bounded, nothing is unpickled, and a field is a number only once it was checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import manifest
from sim.trace import MAX_TABLE_BYTES, Trace

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

Record = Mapping[str, Any]
"""The fields of one record, as they were written."""

MAX_NODES = 10_000_000
MAX_TIME = 9e9
"""Seconds: 285 years, what viewers can count in nanoseconds."""
MAX_TEXT = 120
GROUP = -1
"""In place of a node: what belongs to a group as a whole."""
_MAX_LINE = 1 << 20
_BATCH = 4096


class TooManyError(ValueError):
    """A part of a run holds more than was allowed for."""


@dataclass(frozen=True)
class Window:
    """What part of a run is wanted.

    Args:
        nodes: their ids, and the links at them; everything if None.
        start, end: seconds of simulated time; what overlaps is in.
        limit: more pieces (spans, loads) than this are refused.
    """

    nodes: tuple[int, ...] | None = None
    start: float = 0.0
    end: float = math.inf
    limit: int = 500_000

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"from {self.start:g} to {self.end:g} s: expected 0 <= from < to")
        if self.limit < 1:
            raise ValueError(f"limit={self.limit}: must be >= 1")
        for each in self.nodes or ():
            if not 0 <= each < MAX_NODES:
                raise ValueError(f"node {each}: expected 0 .. {MAX_NODES - 1}")

    def has(self, node: int) -> bool:
        """Whether a node is wanted; groups always are."""
        return self.nodes is None or node == GROUP or node in self.nodes

    def has_link(self, u: str, v: str) -> bool:
        """Whether one of the ends is wanted."""
        return self.nodes is None or any(str(node) in (u, v) for node in self.nodes)

    def check_room(self, pieces: int) -> None:
        """Refuse more pieces than the limit: raises `TooManyError`."""
        if pieces > self.limit:
            raise TooManyError(
                f"more than {self.limit} pieces in this part of the run; choose fewer nodes "
                "(--nodes 0,3,7) or a shorter time (--from 10min --to 20min), or raise --limit"
            )


def read(run: Trace | str | Path, kinds: Collection[str]) -> Iterator[tuple[str, Record]]:
    """All records of some kinds, as (kind, fields), in the order in which they were made.

    Args:
        run: a trace, or a run folder: its tables, or `events.jsonl` if the run did not come to its
            end. In tables one kind comes after the other, in the order of `kinds`.

    Raises:
        ValueError: the folder holds no run, or several; a file is too large or broken.
    """
    if isinstance(run, Trace):
        for kind in kinds:
            yield from ((kind, row) for row in run.rows(kind))
        return
    folder = Path(run)
    if any(folder.glob("[!.]*.parquet")):
        for kind in kinds:
            yield from ((kind, row) for row in _table(folder / f"{kind}.parquet"))
    elif (folder / "events.jsonl").exists():
        yield from _lines(folder / "events.jsonl", kinds)
    else:
        raise ValueError(_no_run(folder))


def number(record: Record, key: str, kind: str, default: float | None = None) -> float:
    """A finite number of a record; `default`, if given, where the record lacks it.

    >>> number({"start": 2}, "start", "compute")
    2.0
    """
    value: Any = record.get(key)
    if default is not None and (value is None or value != value):
        return default
    if not is_finite(value):
        raise ValueError(f"{kind}: {key}={text(value)}: expected a finite number")
    return float(value)


def time(record: Record, key: str, kind: str) -> float:
    """A time of a record in seconds."""
    value = number(record, key, kind)
    if not 0 <= value <= MAX_TIME:
        raise ValueError(f"{kind}: {key}={value:g}: expected 0 .. {MAX_TIME:g} s")
    return value


def is_finite(value: Any) -> bool:
    """Whether a field is a number that can be drawn; truth values are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def node(record: Record, key: str, kind: str) -> int:
    """The id of a node; `GROUP` where the record has none."""
    value = number(record, key, kind, float(GROUP))
    if value != int(value) or not -1 <= value < MAX_NODES:
        raise ValueError(f"{kind}: {key}={value:g}: expected a node, 0 .. {MAX_NODES - 1}, or -1")
    return int(value)


def nodes(record: Record, key: str, kind: str) -> list[int]:
    """A list of nodes; none where the record lacks it."""
    value = record.get(key)
    if value is None or isinstance(value, float):  # NaN: an empty cell of a table
        return []
    if not isinstance(value, list | tuple):
        raise ValueError(f"{kind}: {key}={text(value)}: expected a list of nodes")
    return [node({key: each}, key, kind) for each in value]


def text(value: Any) -> str:
    """A value as text that is short enough to show.

    >>> text("x" * 1000)[-1]
    '…'
    """
    told = str(value)
    return told if len(told) <= MAX_TEXT else told[: MAX_TEXT - 1] + "…"


def _table(path: Path) -> Iterator[Record]:
    if not path.exists():
        return
    import pyarrow
    from pyarrow.parquet import ParquetFile

    _check_size(path, path.stat().st_size)
    try:
        table = ParquetFile(path)
        _check_size(path, _unpacked(table))
        for batch in table.iter_batches(_BATCH):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a table of a run ({text(error)})") from error


def _unpacked(table: ParquetFile) -> int:
    groups = range(table.metadata.num_row_groups)
    return sum(table.metadata.row_group(i).total_byte_size for i in groups)


def _lines(path: Path, kinds: Collection[str]) -> Iterator[tuple[str, Record]]:
    _check_size(path, path.stat().st_size)
    with open(path, encoding="utf-8", errors="replace") as file:
        for count, line in enumerate(iter(lambda: file.readline(_MAX_LINE + 1), ""), 1):
            if len(line) > _MAX_LINE:
                raise ValueError(f"{path}:{count}: a line of more than {_MAX_LINE} characters")
            if not line.endswith("\n"):  # cut off when the run was killed
                return
            record = _parsed(line, f"{path}:{count}")
            kind = record.pop("kind")
            if kind in kinds:
                yield kind, record


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # the latter: brackets a thousand deep
        record = None
    if not (isinstance(record, dict) and isinstance(record.get("kind"), str)):
        raise ValueError(f"{where}: not a record of a trace: {text(line)!r}")
    return record


def _check_size(path: Path, nbytes: int) -> None:
    if nbytes > MAX_TABLE_BYTES:
        raise ValueError(f"{path}: {nbytes} bytes; at most {MAX_TABLE_BYTES}")


def _no_run(folder: Path) -> str:
    below = sorted({path.parent for path in folder.glob(f"*/{manifest.NAME}")})
    if below:
        return f"{folder}: holds {len(below)} runs; name one, for example {below[0]}"
    return f"{folder}: holds no run; results of `archipelago run` are below runs/"
