"""The progress of a sweep: one line that is rewritten, or plain lines where nobody is looking."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from experiments.cells import Cell

_TAIL = 65_536
"""Bytes at the end of a cell's events among which its last metric is looked for."""
_QUIET = 5.0
"""Seconds between plain lines."""
_SHOWN = 4
"""Cells under way that a line has, at most."""


class Progress:
    """Cells done, and where those stand that are running.

    Args:
        cells: of the sweep.
        skipped: how many had their results before.
        out: where lines go; standard output if None.
    """

    def __init__(self, cells: Sequence[Cell], skipped: int, out: TextIO | None = None) -> None:
        self.cells, self.skipped, self.out = cells, skipped, out or sys.stdout
        self.done, self.failed = skipped, 0
        self._started, self._last = time.time(), 0.0
        self._over: set[int] = set()
        """Numbers of the cells that have spent their budget."""

    def show(self) -> None:
        """Print where things stand, if it is time to."""
        live = self.out.isatty()
        if not live and time.time() - self._last < _QUIET:
            return
        self._last = time.time()
        line = self._line()
        self.out.write(f"\r\x1b[K{line[: _columns()]}" if live else f"{line}\n")
        self.out.flush()

    def close(self) -> None:
        """End with a line that stays."""
        end = f"{self.done} of {len(self.cells)} cells done"
        known = f", {self.skipped} of them before" if self.skipped else ""
        known += f", {self.failed} failed" if self.failed else ""
        lead = "\r\x1b[K" if self.out.isatty() else ""
        self.out.write(f"{lead}{end}{known}, {time.time() - self._started:.0f} s\n")
        self.out.flush()

    def _line(self) -> str:
        states = (text for cell in self.cells if (text := self._state(cell)))
        running = list(islice(states, _SHOWN))
        if len(running) == _SHOWN and (more := self._under_way() - _SHOWN) > 0:
            running.append(f"and {more} more")
        done = f"{self.done}/{len(self.cells)} cells done"
        done += f", {self.failed} failed" if self.failed else ""
        return " | ".join([f"{time.time() - self._started:4.0f} s", done, *running])

    def _under_way(self) -> int:
        begun = sum(self._has_begun(cell) for cell in self.cells)
        return begun - (self.done - self.skipped) - self.failed

    def _has_begun(self, cell: Cell) -> bool:
        events = cell.folder / "events.jsonl"
        return events.exists() and events.stat().st_mtime >= self._started

    def _state(self, cell: Cell) -> str | None:
        if cell.number in self._over or not self._has_begun(cell):
            return None
        metric = last_metric(cell.folder / "events.jsonl")
        if metric is None:
            return None
        if metric["spent"] >= 1:
            self._over.add(cell.number)
            return None
        loss = f" loss {metric['loss']:.3f}" if "loss" in metric else ""
        lead = f"{cell.name}: " if cell.name else ""
        return f"{lead}{100 * metric['spent']:.0f} % at {duration(metric['time'])}{loss}"


def last_metric(events: Path) -> dict[str, Any] | None:
    """The last metric record of a run under way; None if it has none yet."""
    with events.open("rb") as file:
        file.seek(max(0, events.stat().st_size - _TAIL))
        lines = file.read().split(b"\n")[:-1]  # the last one may be half written
    for line in reversed(lines):
        if line.startswith(b'{"kind": "metric"'):
            return json.loads(line)
    return None


def duration(seconds: float) -> str:
    """A time for a reader.

    >>> duration(0.25), duration(90), duration(7200), duration(200000)
    ('0.25 s', '90 s', '2.0 h', '2.3 d')
    """
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} s"


def _columns() -> int:
    return shutil.get_terminal_size().columns - 1
