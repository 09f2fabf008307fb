"""Loads of links over time, as a run recorded them: a step function for each direction of a link.

A record holds until the next one of its link; before the first the link was idle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import records
from experiments.records import Record, Window
from sim.trace import Trace

MAX_LINKS = 1000
MAX_BINS = 10_000
_UNLIMITED = 1e29
"""A capacity of at least this (bytes/s) is that of a link without a limit."""


class Load(NamedTuple):
    """The share of a link's capacity that is in use from `time` (s) on; 0 without a limit."""

    link: str
    time: float
    utilisation: float


@dataclass(frozen=True)
class Heat:
    """Mean utilisation of links in bins of time.

    Attributes:
        links: names, the busiest first.
        edges: of the bins in seconds, [bins + 1].
        utilisation: shares of the capacity, [links, bins].
        total: how many links had a load at all in this time.
    """

    links: list[str]
    edges: np.ndarray
    utilisation: np.ndarray
    total: int


def loads(run: Trace | str | Path, window: Window | None = None) -> Iterator[Load]:
    """The loads of a window in order of time; what held at its start comes at its start.

    Raises:
        ValueError: no run, broken records, or the time of a link goes backwards.
    """
    window, last = window or Window(), dict[str, Load]()
    for _, row in records.read(run, ["link"]):
        u, v = records.text(row.get("u")), records.text(row.get("v"))
        if not window.has_link(u, v):
            continue
        load = Load(f"{u} → {v}", records.time(row, "time", "link"), _utilisation(row))
        before = last.get(load.link)
        if before is not None:
            if load.time < before.time:
                raise ValueError(f"link {load.link}: {load.time:g} s after {before.time:g} s")
            if before.time < window.start < load.time:
                yield before._replace(time=window.start)
        last[load.link] = load
        if window.start <= load.time <= window.end:
            yield load
    for load in last.values():
        if load.time < window.start:
            yield load._replace(time=window.start)


def heat(
    run: Trace | str | Path, window: Window | None = None, links: int = 40, bins: int = 200
) -> Heat:
    """Bin the loads of the busiest links of a window; exact means, not samples.

    The records are read twice and never kept, so the window's limit does not matter.

    Raises:
        ValueError: as `loads`; there is none in the window; too many links or bins are wanted.
    """
    for name, value, most in (("links", links, MAX_LINKS), ("bins", bins, MAX_BINS)):
        if not 1 <= value <= most:
            raise ValueError(f"{name}={value}: must be between 1 and {most}")
    window = window or Window()
    busy, end = _busy(run, window)
    if not busy:
        raise ValueError("no loads of links in this part of the run; record them (timeline=true)")
    chosen = sorted(busy, key=lambda link: (-busy[link], link))[:links]
    edges = np.linspace(window.start, end, bins + 1)
    table = _binned(run, window, edges, chosen) / np.diff(edges)
    return Heat(chosen, edges, table, len(busy))


def _busy(run: Trace | str | Path, window: Window) -> tuple[dict[str, float], float]:
    """Seconds for which each link was busy, weighted by its utilisation, and the window's end."""
    sums: dict[str, float] = {}
    now: dict[str, Load] = {}
    times = (records.time(row, "time", kind) for kind, row in records.read(run, ["metric"]))
    end = max(times, default=0.0)
    for load in loads(run, window):
        before = now.get(load.link, load)
        passed = before.utilisation * (load.time - before.time)
        sums[load.link] = sums.get(load.link, 0.0) + passed
        now[load.link], end = load, max(end, load.time)
    end = min(end, window.end)
    if end <= window.start:
        raise ValueError(f"no record after {window.start:g} s")
    for link, load in now.items():
        sums[link] += load.utilisation * (end - load.time)
    return sums, end


def _binned(
    run: Trace | str | Path, window: Window, edges: np.ndarray, chosen: list[str]
) -> np.ndarray:
    """Integral of utilisation over each bin, in seconds: [chosen links, bins]."""
    sums = {link: np.zeros(len(edges) - 1) for link in chosen}
    now: dict[str, Load] = {}
    for load in loads(run, window):
        if load.link in sums:
            before = now.get(load.link, load)
            _spread(sums[load.link], edges, before, load.time)
            now[load.link] = load
    for link, load in now.items():
        _spread(sums[link], edges, load, edges[-1])
    return np.array([sums[link] for link in chosen])


def _spread(row: np.ndarray, edges: np.ndarray, load: Load, until: float) -> None:
    """Add what a load contributes to each bin that it touches."""
    start, stop = max(load.time, edges[0]), min(until, edges[-1])
    if stop <= start or load.utilisation == 0.0:
        return
    first = int(np.searchsorted(edges, start, "right")) - 1
    last = int(np.searchsorted(edges, stop, "left"))
    touched = np.clip(edges[first : last + 1], start, stop)
    row[first:last] += load.utilisation * np.diff(touched)


def _utilisation(row: Record) -> float:
    load, capacity = records.number(row, "load", "link"), row.get("capacity")
    if capacity == math.inf:
        return 0.0
    capacity = records.number(row, "capacity", "link")
    if load < 0 or capacity < 0:
        raise ValueError(f"link: load={load:g}, capacity={capacity:g} bytes/s: must be >= 0")
    return load / capacity if 0 < capacity < _UNLIMITED else 0.0
