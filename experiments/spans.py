"""Records of a run -> spans: what every node did from when to when, within a window.

- `compute`, `collective`, `send`, `receive`, `online`, `round`. Rounds, and what a record says of
  a group without naming its members, belong to `records.GROUP`.
- A transfer is two spans, one at each end, joined by a `Flow`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from experiments import records
from experiments.records import GROUP, Record, Window
from sim.trace import Trace

_KINDS = ("metric", "session", "round", "compute", "collective", "transfer")
_SHOWN = ("n", "steps", "loss", "node_seconds", "contributors", "nbytes", "delivered", "wasted")
_POINTS = ("loss", "utilization", "online")


class Span(NamedTuple):
    """Something that a node did from `start` to `end`, in seconds."""

    kind: str
    node: int
    start: float
    end: float
    name: str
    details: Mapping[str, Any]


class Flow(NamedTuple):
    """A transfer: the span of its sender and that of its receiver, both wanted."""

    sent: Span
    received: Span


class Point(NamedTuple):
    """A number of an evaluation: `loss`, `utilization` or `online`."""

    name: str
    time: float
    value: float


class Moment(NamedTuple):
    """Something that happened to a node at an instant, in seconds."""

    node: int
    time: float
    name: str


@dataclass
class Activities:
    """What happened in a window, and when the run ended (the last time of any record, s)."""

    window: Window = field(default_factory=Window)
    spans: list[Span] = field(default_factory=list)
    flows: list[Flow] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    end: float = 0.0

    @property
    def nodes(self) -> list[int]:
        """Those that have a span or a moment, ascending; `GROUP` first."""
        return sorted({each.node for each in self.spans} | {each.node for each in self.moments})

    def add(self, span: Span) -> Span | None:
        """Keep a span if it is wanted."""
        self.end = max(self.end, span.end)
        inside = span.end >= self.window.start and span.start <= self.window.end
        if not (inside and self.window.has(span.node)):
            return None
        self.spans.append(span)
        self.window.check_room(len(self.spans))
        return span

    def sees(self, time: float, node: int = GROUP) -> bool:
        """Whether an instant (s) at a node is wanted."""
        self.end = max(self.end, time)
        return self.window.start <= time <= self.window.end and self.window.has(node)


Sessions = dict[int, list[tuple[float, str]]]
"""Node -> (time, left or joined)."""


def activities(run: Trace | str | Path, window: Window | None = None) -> Activities:
    """Read what happened in a window of a run; in all of it if None.

    Raises:
        ValueError: no run, broken records, or more than the window's limit.
    """
    found = Activities(window or Window())
    sessions: Sessions = {}
    rounds: list[Span] = []
    for kind, row in records.read(run, _KINDS):
        if kind == "session":
            _session(found, sessions, row)
        elif kind == "round":
            rounds += _opened(found, row)
        elif kind == "metric":
            _metric(found, row)
        else:
            _WORK[kind](found, row)
    _rounds(found, rounds)
    _online(found, sessions)
    return found


def _start_end(row: Record, kind: str, last: str = "end") -> tuple[float, float]:
    start, end = records.time(row, "start", kind), records.time(row, last, kind)
    if start > end:
        raise ValueError(f"{kind}: from {start:g} to {end:g} s: expected start <= {last}")
    return start, end


def _details(row: Record) -> dict[str, float]:
    """Numbers of a record that a reader wants to see."""
    return {key: float(row[key]) for key in _SHOWN if records.is_finite(row.get(key))}


def _compute(found: Activities, row: Record) -> None:
    start, end = _start_end(row, "compute")
    steps = int(records.number(row, "steps", "compute", 1))
    name = f"{steps} steps" if steps > 1 else "step"
    members, ends = records.nodes(row, "members", "compute"), row.get("ends")
    if not members:
        members, ends = [records.node(row, "node", "compute")], [end]
    if not isinstance(ends, list | tuple) or len(ends) != len(members):
        raise ValueError(f"compute: ends={records.text(ends)}: expected one per member")
    for node, each in zip(members, ends):
        at = records.time({"ends": each}, "ends", "compute")
        found.add(Span("compute", node, start, max(start, at), name, _details(row)))


def _collective(found: Activities, row: Record) -> None:
    start, end = _start_end(row, "collective")
    name, details = records.text(row.get("op")), _details(row)
    for member in records.nodes(row, "members", "collective") or [GROUP]:
        found.add(Span("collective", member, start, end, name, details))


def _transfer(found: Activities, row: Record) -> None:
    start, end = _start_end(row, "transfer", "time")
    src, dst = (records.node(row, key, "transfer") for key in ("src", "dst"))
    details = {**_details(row), "status": records.text(row.get("status"))}
    sent = found.add(Span("send", src, start, end, f"to {dst}", details))
    received = found.add(Span("receive", dst, start, end, f"from {src}", details))
    if sent and received:
        found.flows.append(Flow(sent, received))


_WORK = {"compute": _compute, "collective": _collective, "transfer": _transfer}


def _metric(found: Activities, row: Record) -> None:
    time = records.time(row, "time", "metric")
    if found.sees(time):
        values = {key: row.get(key) for key in _POINTS}
        found.points += [
            Point(key, time, float(value))
            for key, value in values.items()
            if value is not None and records.is_finite(value)
        ]
        found.window.check_room(len(found.points))


def _session(found: Activities, sessions: Sessions, row: Record) -> None:
    time, node = records.time(row, "time", "session"), records.node(row, "node", "session")
    event = records.text(row.get("event"))
    seen = found.sees(time, node)
    if event in ("left", "joined"):
        sessions.setdefault(node, []).append((time, event))
    elif seen:
        found.moments.append(Moment(node, time, event))


def _opened(found: Activities, row: Record) -> list[Span]:
    """A round that begins: of the group, and of its members if the record names them."""
    time = records.time(row, "time", "round")
    found.sees(time)
    name = f"round {records.number(row, 'number', 'round'):g}"
    members = [GROUP, *records.nodes(row, "ids", "round")]
    return [Span("round", node, time, time, name, {}) for node in members]


def _rounds(found: Activities, rounds: list[Span]) -> None:
    """A round lasts until the next one begins."""
    starts = sorted({each.start for each in rounds})
    ends = dict(zip(starts, [*starts[1:], found.end]))
    for each in rounds:
        found.add(each._replace(end=ends[each.start]))


def _online(found: Activities, sessions: Sessions) -> None:
    """Whoever has records of its own, but none of a session, was there all the time."""
    for node in sorted({*sessions, *found.nodes} - {GROUP}):
        for start, end in _presence(sorted(sessions.get(node, [])), found.end):
            found.add(Span("online", node, start, end, "online", {}))


def _presence(events: list[tuple[float, str]], end: float) -> Iterator[tuple[float, float]]:
    since = None if events and events[0][1] == "joined" else 0.0
    for time, event in events:
        if event == "joined" and since is None:
            since = time
        elif event == "left" and since is not None:
            yield since, time
            since = None
    if since is not None:
        yield since, end
