"""Flows of another simulator on our engine: when each one ends, and by how much that differs.

The engine is driven as everything drives it: `sim.network.fluid.Links` on a simpy clock.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import simpy

from experiments.validate.columns import DATA
from experiments.validate.platform import CAPACITY, DOWN, UP, Platform, followers, read
from experiments.validate.row import Row
from sim.network.fluid import Activity, Links

EXACT, APPROXIMATE = 1e-6, 1e-3
"""Accepted relative deviation of (finish - start) in the two modes."""
COALESCING = 2e-4
"""Relative coalescing of the approximate mode; deviations stay below some 2.1e-4 on all files."""
_INSTANT = 1e-9
"""Seconds within which times count as the same."""
_NAMED = 8
"""Flows that a note names."""
_SOURCE = "SimGrid 3.32, pure fluid max-min"


def judge(path: str | Path) -> list[Row]:
    """Replay a file in exact and in approximate mode: rows of deviation, and of failures.

    Raises:
        ValueError: the file is not of the format.
    """
    platform = read(path)
    return [*_rows(platform, 0.0, EXACT), *_rows(platform, COALESCING, APPROXIMATE)]


def rows() -> list[Row]:
    """The files that are shipped."""
    return [row for path in sorted((DATA / "network").glob("*.npz")) for row in judge(path)]


def replay(platform: Platform, approximate: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """When each flow was issued and when it ended: float64 [F] each, NaN if it failed."""
    run = _Replay(platform, approximate)
    run.env.run()
    return run.begin, run.finish


def _rows(platform: Platform, approximate: float, tolerance: float) -> list[Row]:
    begin, finish = replay(platform, approximate)
    mode = f"{platform.name}, {'approximate' if approximate else 'exact'}"
    wrong = np.flatnonzero(np.isnan(finish) != np.isnan(platform.finish))
    both = np.flatnonzero(~(np.isnan(finish) | np.isnan(platform.finish)))
    ours = finish[both] - begin[both]
    theirs = platform.finish[both] - platform.start[both]
    off = np.abs(ours - theirs) / np.maximum(theirs, _INSTANT)
    worst = int(off.argmax()) if len(off) else 0
    deviation = float(off[worst]) if len(off) else 0.0
    note = ""
    if deviation > tolerance:
        flow = f"flow {both[worst]}"
        note = f"{flow}: {ours[worst]:.9g} s, {theirs[worst]:.9g} s there"
    what = f"{mode}: largest relative deviation, {len(platform.nbytes):,} flows"
    return [
        _row(what, deviation, tolerance, note),
        _row(f"{mode}: flows that fail in one only", len(wrong), 0.0, _disagreement(wrong, finish)),
    ]


def _row(what: str, ours: float, tolerance: float, note: str) -> Row:
    return Row(what, float(ours), 0.0, tolerance, _SOURCE, "simulator", relative=False, note=note)


def _disagreement(wrong: np.ndarray, finish: np.ndarray) -> str:
    if not len(wrong):
        return ""
    named = [f"{flow} ({'fails' if np.isnan(finish[flow]) else 'ends'} here)" for flow in wrong]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return f"flows {', '.join(named[:_NAMED])}{more}"


class _Replay:
    """One platform on one clock."""

    def __init__(self, platform: Platform, approximate: float) -> None:
        self.platform, self.env = platform, simpy.Environment()
        self.links = Links(self.env, platform.capacity, approximate=approximate)
        self.begin, self.finish = np.full((2, len(platform.nbytes)), np.nan)
        if platform.needs_pointer is not None and platform.needs is not None:
            self._after = followers(platform.needs_pointer, platform.needs)
            self._missing = np.diff(platform.needs_pointer).tolist()
            for flow, missing in enumerate(self._missing):
                if missing == 0:
                    self._issue(flow)
        else:
            self._after = [[] for _ in platform.nbytes]
            self._schedule()

    def _schedule(self) -> None:
        """Link events, then flows: so an event comes before a flow of the same time."""
        last = 0.0
        for time, kind, link, value in self.platform.events:
            # A link that comes back is there for flows that begin in the same instant.
            last = max(last, time - _INSTANT if kind == UP else time)
            self._at(last, partial(self._change, kind, link, value))
        for flow, start in enumerate(self.platform.start.tolist()):
            self._at(start, partial(self._issue, flow))

    def _at(self, time: float, act: Callable[[], None]) -> None:
        self.env.timeout(time).callbacks.append(lambda _: act())

    def _change(self, kind: int, link: int, value: float) -> None:
        if kind == CAPACITY:
            self.links.set_capacity(link, value)
        elif kind == DOWN:
            self.links.down(link)
        else:
            self.links.up(link)

    def _issue(self, flow: int) -> None:
        self.begin[flow] = self.env.now
        self.links.activity(
            self.platform.route(flow),
            self.platform.nbytes[flow],
            latency=float(self.platform.latency[flow]),
            on_end=self._ended,
            tag=flow,
            weight=float(self.platform.weight[flow]),
        )

    def _ended(self, activity: Activity, ok: bool) -> None:
        if not ok:
            return
        self.finish[activity.tag] = self.env.now
        for flow in self._after[activity.tag]:
            self._missing[flow] -= 1
            if self._missing[flow] == 0:
                self._issue(flow)
