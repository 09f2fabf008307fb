"""A run as trace events: JSON that https://ui.perfetto.dev and chrome://tracing open.

- A process per node, with a thread for each kind of span; spans that overlap get further threads.
- A process for the run as a whole (rounds, groups, evaluations), and one for links: a counter for
  the utilisation of each direction of a link, if the run recorded loads.
- A transfer is an arrow from its start at the sender to its end at the receiver.

Format: "Trace Event Format", N. Duca and D. Sinclair (Google), the JSON object form. Times are
whole microseconds: viewers cut fractions off, and leave out what then overlaps by a hair.
"""

from __future__ import annotations

import gzip
import heapq
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from experiments.loads import loads
from experiments.records import GROUP, Window
from experiments.spans import Activities, Span, activities
from sim.trace import Trace

NAME = "timeline.json.gz"
"""The file in a run folder."""

Event = Mapping[str, Any]
Place = tuple[int, int, int]
"""Process, track and lane of a span: a thread of its own."""
Threads = Mapping[Place, int]
"""Ids that no other thread or process has; viewers confuse equal ones."""

_RUN, _LINKS, _FIRST_NODE = 1, 2, 10  # processes; 0 means "idle" to viewers
_TRACKS = ("online", "round", "compute", "collective", "send", "receive")
_TRACK_NAMES = ("sessions", "rounds", "compute", "collectives", "sends", "receives")


def write(run: Trace | str | Path, path: str | Path, window: Window | None = None) -> Path:
    """Write the events of a run to `path`, by rename; compressed if it ends in `.gz`.

    Raises:
        ValueError: another ending, no run, broken records, or more than the window's limit.
    """
    path = Path(path)
    if not path.name.endswith((".json", ".json.gz")):
        raise ValueError(f"{path}: must end in .json or .json.gz")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".tmp-{path.name}")
    try:
        with open(beside, "wb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
                    _write(packed, events(run, window))
            else:
                _write(raw, events(run, window))
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def events(run: Trace | str | Path, window: Window | None = None) -> Iterator[Event]:
    """The trace events of a run one by one: names of tracks, spans, arrows, counters.

    >>> trace = Trace()
    >>> trace.record("compute", start=0.0, end=0.25, node=3, steps=1)
    >>> [event["name"] for event in events(trace) if event["ph"] == "X"]
    ['step', 'online']
    """
    window = window or Window()
    found = activities(run, window)
    places = _places(found.spans)
    threads = _threads(places.values())
    yield from _process(_RUN, "run", 0)
    for node in found.nodes:
        if node != GROUP:
            yield from _process(_pid(node), f"node {node}", _pid(node))
    for place, tid in threads.items():
        yield from _thread(place, tid)
    at = {span: (place[0], threads[place]) for span, place in places.items()}  # pid, tid
    for span in found.spans:
        yield _slice(span, at[id(span)])
    yield from _arrows(found, at)
    yield from _instants(found)
    yield from _counters(run, window)


def _write(file: IO[bytes] | gzip.GzipFile, found: Iterable[Event]) -> None:
    file.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
    start = b""
    for event in found:
        text = json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        file.write(start + text.encode())
        start = b",\n"
    file.write(b"\n]}\n")


def _places(spans: Iterable[Span]) -> dict[int, Place]:
    """A thread for each span, so that no two of one thread overlap."""
    free: dict[tuple[int, int], list[int]] = {}
    busy: dict[tuple[int, int], list[tuple[int, int]]] = {}
    places = {}
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        track = _pid(span.node), _TRACKS.index(span.kind)
        lanes, ends = free.setdefault(track, []), busy.setdefault(track, [])
        while ends and ends[0][0] <= _us(span.start):
            heapq.heappush(lanes, heapq.heappop(ends)[1])
        lane = heapq.heappop(lanes) if lanes else len(ends)
        heapq.heappush(ends, (_us(span.end), lane))
        places[id(span)] = (*track, lane)
    return places


def _threads(places: Iterable[Place]) -> Threads:
    """Ids in the order in which the tracks are to be read, above those of processes."""
    order = sorted(set(places))
    first = 10 ** len(str(order[-1][0])) if order else 0
    return {place: first + number for number, place in enumerate(order)}


def _process(pid: int, name: str, position: int) -> Iterator[Event]:
    common = {"ph": "M", "pid": pid, "tid": pid, "ts": 0}
    yield {**common, "name": "process_name", "args": {"name": name}}
    yield {**common, "name": "process_sort_index", "args": {"sort_index": position}}


def _thread(place: Place, tid: int) -> Iterator[Event]:
    pid, track, lane = place
    name = _TRACK_NAMES[track] + (f" {lane + 1}" if lane else "")
    common = {"ph": "M", "pid": pid, "tid": tid, "ts": 0}
    yield {**common, "name": "thread_name", "args": {"name": name}}
    yield {**common, "name": "thread_sort_index", "args": {"sort_index": tid}}


def _slice(span: Span, at: tuple[int, int]) -> Event:
    event = {
        "name": span.name,
        "cat": span.kind,
        "ph": "X",
        "ts": _us(span.start),
        "dur": _us(span.end) - _us(span.start),
        "pid": at[0],
        "tid": at[1],
        "args": span.details,
    }
    if span.details.get("status", "delivered") != "delivered":
        event["cname"] = "terrible"  # red in chrome://tracing
    return event


def _arrows(found: Activities, at: Mapping[int, tuple[int, int]]) -> Iterator[Event]:
    """Each flow's arrow; its ends lie within the two spans, else viewers do not join them."""
    for number, (sent, received) in enumerate(found.flows, 1):
        start, end = _us(sent.start), _us(received.end)
        if end - start < 2:  # no room for an arrow: a message to itself, or none that left
            continue
        common = {"name": "transfer", "cat": "transfer", "id": number}
        pid, tid = at[id(sent)]
        yield {**common, "ph": "s", "ts": start, "pid": pid, "tid": tid}
        pid, tid = at[id(received)]
        yield {**common, "ph": "f", "bp": "e", "ts": end - 1, "pid": pid, "tid": tid}


def _instants(found: Activities) -> Iterator[Event]:
    for moment in found.moments:
        pid = _pid(moment.node)
        common = {"name": moment.name, "cat": "session", "ph": "i", "s": "p"}
        yield {**common, "ts": _us(moment.time), "pid": pid, "tid": pid}
    for point in found.points:
        yield _counter(_RUN, point.name, point.time, {"value": point.value})


def _counters(run: Trace | str | Path, window: Window) -> Iterator[Event]:
    for count, load in enumerate(loads(run, window), 1):
        window.check_room(count)
        if count == 1:
            yield from _process(_LINKS, "links", _LINKS)
        yield _counter(_LINKS, load.link, load.time, {"percent": 100 * load.utilisation})


def _counter(pid: int, name: str, time: float, args: Mapping[str, float]) -> Event:
    return {"name": name, "ph": "C", "ts": _us(time), "pid": pid, "tid": pid, "args": args}


def _pid(node: int) -> int:
    return _RUN if node == GROUP else _FIRST_NODE + node


def _us(time: float) -> int:
    return round(time * 1e6)
