"""A platform with flows from a file of another simulator: read, and checked before it is used.

The format is that of `experiments/validate/data/network/README.md`. Files are not trusted: nothing
is unpickled, sizes are looked at before memory is taken, and every value is checked; a message
names the array and the index.

Legend: L links, F flows, E link events.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.validate import npz

CAPACITY, DOWN, UP = 0, 1, 2
"""Kinds of a link event."""
_KINDS = {"f": "numbers", "i": "whole numbers"}
_COMMON = {
    "link_bw": "f",
    "link_lat": "f",
    "flow_src": "i",
    "flow_dst": "i",
    "flow_bytes": "i",
    "route_ptr": "i",
    "route_idx": "i",
    "finish": "f",
}
_TIMED = {
    "flow_start": "f",
    "ev_time": "f",
    "ev_kind": "i",
    "ev_link": "i",
    "ev_value": "f",
    "status": "i",
}
_CHAINED = {"dep_ptr": "i", "dep_idx": "i", "start": "f"}


@dataclass(frozen=True, eq=False)
class Platform:
    """Links, flows with their routes, and when another simulator says they end.

    Attributes:
        name: of the file.
        capacity: bytes/s of each link, float64 [L].
        nbytes, latency: of each flow and its route, bytes and seconds, float64 [F].
        routes: the links of flow f are `routes[pointer[f] : pointer[f + 1]]`.
        weight: of each flow, float64 [F]: 1, or 1 / latency of its route.
        start: when a flow is issued, float64 [F]; of a chained one, when it was.
        needs: the flows that flow f waits for are `needs[needs_pointer[f] : needs_pointer[f + 1]]`;
            None if all start by the clock.
        events: (time, kind, link, value) of each link event, in order of time.
        finish: seconds, NaN if the flow failed; float64 [F].
    """

    name: str
    capacity: np.ndarray
    nbytes: np.ndarray
    latency: np.ndarray
    pointer: np.ndarray
    routes: np.ndarray
    weight: np.ndarray
    start: np.ndarray
    needs_pointer: np.ndarray | None
    needs: np.ndarray | None
    events: list[tuple[float, int, int, float]]
    finish: np.ndarray

    @property
    def chained(self) -> bool:
        """Whether flows wait for others, not for the clock."""
        return self.needs is not None

    def route(self, flow: int) -> np.ndarray:
        """The links of a flow."""
        return self.routes[self.pointer[flow] : self.pointer[flow + 1]]


def read(path: str | Path) -> Platform:
    """Read and check a file.

    Raises:
        ValueError: it is not of the format; names the array and the index.
    """
    path = Path(path)
    arrays, note = _load(path)
    chained = "dep_ptr" in arrays
    try:
        _check_links_and_flows(arrays)
        _check_routes(arrays)
        _check_finish(arrays, chained)
        if chained:
            _check_needs(arrays)
        else:
            _check_events(arrays)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return _platform(path.stem, arrays, chained, "RTT-weighted" in note)


def _platform(name: str, a: dict[str, np.ndarray], chained: bool, weighted: bool) -> Platform:
    latency, crosses = np.zeros(len(a["flow_bytes"])), np.diff(a["route_ptr"]) > 0
    if crosses.any():
        starts = a["route_ptr"][:-1][crosses]
        latency[crosses] = np.add.reduceat(a["link_lat"][a["route_idx"]], starts)
    weight = np.ones(len(latency))
    if weighted:  # the other simulator gives flows without latency the weight 1
        np.divide(1.0, latency, out=weight, where=latency > 0.0)
    events: list[tuple[float, int, int, float]] = []
    if not chained:
        order = np.argsort(a["ev_time"], kind="stable")
        columns = [a[f"ev_{name}"][order].tolist() for name in ("time", "kind", "link", "value")]
        events = list(zip(*columns))
    return Platform(
        name=name,
        capacity=a["link_bw"],
        nbytes=a["flow_bytes"].astype(float),
        latency=latency,
        pointer=a["route_ptr"],
        routes=a["route_idx"],
        weight=weight,
        start=a["start" if chained else "flow_start"],
        needs_pointer=a.get("dep_ptr"),
        needs=a.get("dep_idx"),
        events=events,
        finish=a["finish"],
    )


# -- from bytes to arrays ----------------------------------------------------------------------


def _load(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of the format by name, as float64 and int64; and the note of `meta`."""
    found, meta = npz.load(path, _checked)
    try:
        wanted = _wanted(found)
        arrays = {name: _numbers(name, found[name], kind) for name, kind in wanted.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return arrays, str(meta.get("note", ""))


def _wanted(names: Iterable[str]) -> dict[str, str]:
    return _COMMON | (_CHAINED if "dep_ptr" in names else _TIMED)


def _checked(shapes: npz.Shapes) -> Iterable[str]:
    missing = [name for name in _wanted(shapes) if name not in shapes]
    if missing:
        raise ValueError(f"lacks the arrays {missing}; it has {sorted(shapes)}")
    for name in _wanted(shapes):
        if len(shapes[name]) != 1:
            raise ValueError(f"{name}: shape {shapes[name]}: expected one dimension")
    return _wanted(shapes)


def _numbers(name: str, array: np.ndarray, kind: str) -> np.ndarray:
    if array.dtype.kind not in ("iu" if kind == "i" else "fiu"):
        raise ValueError(f"{name}: values of type {array.dtype}: expected {_KINDS[kind]}")
    return array.astype(np.int64 if kind == "i" else np.float64)


# -- what values may be ------------------------------------------------------------------------


def _all(name: str, array: np.ndarray, good: np.ndarray, expected: str) -> None:
    if not good.all():
        at = int(np.flatnonzero(~good)[0])
        raise ValueError(f"{name}[{at}]={array[at]}: expected {expected}")


def _length(name: str, array: np.ndarray, length: int, like: str) -> None:
    if len(array) != length:
        raise ValueError(f"{name} has {len(array)} values: expected {length}, as many as {like}")


def _at_least_0(name: str, array: np.ndarray) -> None:
    _all(name, array, np.isfinite(array) & (array >= 0), "a finite number >= 0")


def _check_links_and_flows(a: dict[str, np.ndarray]) -> None:
    bandwidth = a["link_bw"]
    _all("link_bw", bandwidth, np.isfinite(bandwidth) & (bandwidth > 0), "bytes/s > 0")
    _length("link_lat", a["link_lat"], len(bandwidth), "link_bw")
    _at_least_0("link_lat", a["link_lat"])
    flows = len(a["flow_bytes"])
    if flows == 0:
        raise ValueError("flow_bytes is empty: expected at least one flow")
    _at_least_0("flow_bytes", a["flow_bytes"])
    for name in ("flow_src", "flow_dst"):
        _length(name, a[name], flows, "flow_bytes")
        _at_least_0(name, a[name])


def _check_pointer(name: str, pointer: np.ndarray, flows: int, of: str, length: int) -> None:
    _length(name, pointer, flows + 1, "flow_bytes and one")
    steps = np.concatenate([[pointer[0] == 0], np.diff(pointer) >= 0])
    _all(name, pointer, steps, "0 first, then no number below the one before it")
    if pointer[-1] != length:
        raise ValueError(f"{name}[{flows}]={pointer[-1]}: expected {length}, the length of {of}")


def _check_routes(a: dict[str, np.ndarray]) -> None:
    pointer, index, links = a["route_ptr"], a["route_idx"], len(a["link_bw"])
    flows = len(a["flow_bytes"])
    _check_pointer("route_ptr", pointer, flows, "route_idx", len(index))
    _all("route_idx", index, (index >= 0) & (index < links), f"a link, 0 .. {links - 1}")
    owner = np.repeat(np.arange(flows), np.diff(pointer))
    order = np.lexsort((index, owner))
    again = (np.diff(owner[order]) == 0) & (np.diff(index[order]) == 0)
    if again.any():
        at = int(order[1:][again].min())
        raise ValueError(f"route_idx[{at}]={index[at]}: flow {owner[at]} has this link already")


def _check_finish(a: dict[str, np.ndarray], chained: bool) -> None:
    flows, finish = len(a["flow_bytes"]), a["finish"]
    _length("finish", finish, flows, "flow_bytes")
    name = "start" if chained else "flow_start"
    _length(name, a[name], flows, "flow_bytes")
    _at_least_0(name, a[name])
    good = finish >= a[name] - 1e-9
    if chained:
        _all("finish", finish, good & np.isfinite(finish), f"a time not before {name}")
        return
    _length("status", a["status"], flows, "flow_bytes")
    _all("status", a["status"], np.isin(a["status"], (0, 1)), "0 (done) or 1 (failed)")
    _all(
        "finish",
        finish,
        np.where(a["status"] == 1, np.isnan(finish), good & np.isfinite(finish)),
        f"NaN where status is 1, elsewhere a time not before {name}",
    )


def _check_events(a: dict[str, np.ndarray]) -> None:
    count, links = len(a["ev_time"]), len(a["link_bw"])
    for name in ("ev_kind", "ev_link", "ev_value"):
        _length(name, a[name], count, "ev_time")
    _at_least_0("ev_time", a["ev_time"])
    kind, link, value = a["ev_kind"], a["ev_link"], a["ev_value"]
    _all("ev_kind", kind, np.isin(kind, (CAPACITY, DOWN, UP)), "0, 1 or 2")
    _all("ev_link", link, (link >= 0) & (link < links), f"a link, 0 .. {links - 1}")
    good = (kind != CAPACITY) | (np.isfinite(value) & (value >= 0))
    _all("ev_value", value, good, "bytes/s >= 0, finite")


def _check_needs(a: dict[str, np.ndarray]) -> None:
    pointer, needs, flows = a["dep_ptr"], a["dep_idx"], len(a["flow_bytes"])
    _check_pointer("dep_ptr", pointer, flows, "dep_idx", len(needs))
    _all("dep_idx", needs, (needs >= 0) & (needs < flows), f"a flow, 0 .. {flows - 1}")
    missing = np.diff(pointer).tolist()
    after = followers(pointer, needs)
    open_ = [flow for flow, count in enumerate(missing) if count == 0]
    seen = 0
    while open_:
        seen += 1
        for later in after[open_.pop()]:
            missing[later] -= 1
            if missing[later] == 0:
                open_.append(later)
    if seen < flows:
        stuck = next(flow for flow, count in enumerate(missing) if count)
        raise ValueError(f"dep_idx: flow {stuck} waits for itself, round a circle of flows")


def followers(pointer: np.ndarray, needs: np.ndarray) -> list[list[int]]:
    """Of each flow, those that wait for it."""
    after: list[list[int]] = [[] for _ in range(len(pointer) - 1)]
    owner = np.repeat(np.arange(len(pointer) - 1), np.diff(pointer))
    for flow, needed in zip(owner.tolist(), needs.tolist()):
        after[needed].append(flow)
    return after
