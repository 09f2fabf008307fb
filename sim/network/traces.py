"""Traces: bandwidth and outages over time, from tables, driven by one process.

- A trace is a step function: a link keeps what a row gave it until the next row that names it.
  Before the first row it is what the topology says. Times count from `start`.
- With a `period` the table begins again at each multiple of it; until its first row, what the
  last rows gave still holds. Such a process never ends: run until a time or an event.
- At bandwidth 0 bytes wait. `up = 0` cuts a link: what crosses it is lost, and messages take
  another way if there is one. An empty cell leaves things as they are.
- Files are not trusted: their size is bounded, and errors name the line.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simpy
from numpy import ndarray

from sim import units
from sim.network.arguments import check_choice
from sim.network.tables import Changes, Table, read_changes, read_lines
from sim.network.transport import Transport

PACKET = 1500.0
"""Bytes that one line of a packet trace delivers."""


class NetworkTrace(ABC):
    """What happens to the links of a network while it is used."""

    @abstractmethod
    def start(self, network: Transport) -> simpy.Process:
        """Begin now, on a network that is attached to its clock; the process ends with the trace.

        Raises:
            ValueError: a row is wrong, or names what the network lacks.
        """


@dataclass(frozen=True, eq=False)
class LinkTrace(NetworkTrace):
    """Bandwidth of links over time: a table with the columns `time,u,v,bandwidth` and perhaps `up`.

    `u, v` are nodes of the topology (whole numbers in a file; both directions change if the
    topology is undirected), `bandwidth` is >= 0, `up` is 1 or 0; rows are in the order of time.

    Args:
        table: a CSV file, relative to the working directory, or a DataFrame, or a mapping from
            each column to its cells.
        period: seconds after which the table begins again, more than its last time; None: never.
        time_unit, bandwidth_unit: of plain numbers; cells may have their own (`10Mbps`).
        max_bytes: a larger file is refused.

    >>> import networkx as nx, pandas as pd
    >>> graph = nx.Graph([(0, 1, {"bandwidth": "8Mbps", "latency": 0})])
    >>> nx.set_node_attributes(graph, "host", "kind")
    >>> env, network = simpy.Environment(), Transport(graph)
    >>> network.attach(env)
    >>> rows = pd.DataFrame({"time": [1], "u": [0], "v": [1], "bandwidth": ["4Mbps"]})
    >>> process = LinkTrace(rows).start(network)
    >>> env.run(network.transfer(0, 1, 1.5e6))  # 1 MB in the first second, 0.5 MB in the second
    >>> round(env.now, 6)
    2.0
    """

    table: Table
    period: units.Quantity | None = None
    time_unit: str = "s"
    bandwidth_unit: str = "Bps"
    max_bytes: units.Quantity = "64MB"

    def start(self, network: Transport) -> simpy.Process:
        """Begin now; see `NetworkTrace.start`."""
        rows = read_changes(
            self.table,
            ["u", "v"],
            ["bandwidth"],
            self.time_unit,
            self.bandwidth_unit,
            self.max_bytes,
        )
        targets: dict[tuple[Any, Any], list[_Target]] = {}
        for i, ends in enumerate(rows.links):
            if ends not in targets:
                try:
                    network.routes.links_between(*ends)
                except ValueError as error:
                    raise ValueError(f"{rows.where(i)}: {error}") from None
                targets[ends] = [_Target(*ends, 1.0)]
        steps = [targets[ends] for ends in rows.links]
        return network.env.process(_drive(network, rows, steps, _period(self.period, rows)))


@dataclass(frozen=True, eq=False)
class AccessTrace(NetworkTrace):
    """One course of bandwidth for the links of some hosts: `time,factor` or `time,bandwidth`.

    A `factor` >= 0 multiplies what the topology gives each link, a `bandwidth` replaces it; a
    column `up` (1 or 0) may follow. Rows are in the order of time.

    Args:
        table: a CSV file, relative to the working directory, or a DataFrame, or a mapping from
            each column to its cells.
        hosts: whose links; None: those of all hosts.
        direction: "up" (from the host), "down" (to it) or "both"; an undirected topology knows
            "both" only.
        period, time_unit, bandwidth_unit, max_bytes: as for `LinkTrace`.
    """

    table: Table
    hosts: Sequence[int] | None = None
    direction: str = "both"
    period: units.Quantity | None = None
    time_unit: str = "s"
    bandwidth_unit: str = "Bps"
    max_bytes: units.Quantity = "64MB"

    def __post_init__(self) -> None:
        check_choice("direction", self.direction, ["up", "down", "both"])

    def start(self, network: Transport) -> simpy.Process:
        """Begin now; see `NetworkTrace.start`."""
        values, unit = ["factor", "bandwidth"], self.bandwidth_unit
        rows = read_changes(self.table, [], values, self.time_unit, unit, self.max_bytes)
        targets = _access(network, self.hosts, self.direction, rows.key == "factor")
        steps = [targets] * len(rows.time)
        return network.env.process(_drive(network, rows, steps, _period(self.period, rows)))


@dataclass(frozen=True, eq=False)
class PacketTrace(NetworkTrace):
    """A packet-delivery trace, as the Mahimahi link emulator reads, on the links of some hosts.

    Each line of the file is a time in whole milliseconds at which one packet of 1,500 bytes may
    pass; lines do not go backwards. The file repeats with its last time as its period, as in
    Mahimahi. Bandwidth is the packets of an interval over its length (the last one may be shorter),
    so that a whole period carries exactly 1,500 bytes a line.

    Args:
        path: the file, relative to the working directory.
        hosts: whose links; None: those of all hosts, each with the whole trace to itself.
        direction: as for `AccessTrace`.
        interval: seconds over which packets are counted; shorter is more faithful, and slower.
        max_bytes: a larger file is refused.

    References:
        R. Netravali et al., "Mahimahi: Accurate Record-and-Replay for HTTP", USENIX ATC 2015.
    """

    path: str | Path
    hosts: Sequence[int] | None = None
    direction: str = "both"
    interval: units.Quantity = "1s"
    max_bytes: units.Quantity = "64MB"

    def __post_init__(self) -> None:
        check_choice("direction", self.direction, ["up", "down", "both"])
        units.seconds(self.interval, "interval", positive=True)

    def start(self, network: Transport) -> simpy.Process:
        """Begin now; see `NetworkTrace.start`."""
        time, bandwidth, period = packets_to_bandwidth(self._times(), self.interval)
        unchanged = np.full(len(time), -1, np.int8)
        rows = Changes("bandwidth", time, bandwidth, unchanged, [], str(self.path), time)
        targets = _access(network, self.hosts, self.direction, scaled=False)
        steps = [targets] * len(time)
        return network.env.process(_drive(network, rows, steps, period))

    def _times(self) -> ndarray:
        """Seconds, float64 [packets]."""
        times, last = [], 0
        for line, text in read_lines(self.path, self.max_bytes):
            if not text.isdecimal() or int(text) < last:
                raise ValueError(
                    f"{self.path}, line {line}: {text!r}; expected a whole number of "
                    f"milliseconds >= {last}"
                )
            last = int(text)
            times.append(last)
        if last == 0:
            raise ValueError(
                f"{self.path}: {len(times)} packets, none after 0 ms; a trace has some"
            )
        return np.array(times) * 1e-3


def packets_to_bandwidth(
    times: ndarray, interval: units.Quantity
) -> tuple[ndarray, ndarray, float]:
    """The bandwidth of intervals, from the times (seconds, ascending) at which packets pass.

    Returns:
        Times from which each bandwidth (bytes/s) holds, both float64, equal neighbours merged; and
        the period in seconds, the last of `times`. A packet at the border of two intervals counts
        in the earlier one.

    >>> packets_to_bandwidth(np.array([0.5, 1.0, 4.0]), "1s")
    (array([0., 1., 3.]), array([3000.,    0., 1500.]), 4.0)
    """
    width, period = units.seconds(interval, "interval", positive=True), float(times[-1])
    n = max(math.ceil(period / width - 1e-9), 1)
    at = np.clip(np.ceil(times / width - 1e-9).astype(int) - 1, 0, n - 1)
    begins = np.arange(n) * width
    lengths = np.diff(begins, append=period)
    bandwidth = np.bincount(at, minlength=n) * PACKET / lengths
    changed = np.concatenate([[True], ~np.isclose(bandwidth[1:], bandwidth[:-1], rtol=1e-12)])
    return begins[changed], bandwidth[changed], period


class _Target(NamedTuple):
    """A link that a row changes, and what a value of 1 is for it."""

    u: Any
    v: Any
    scale: float


def _access(
    network: Transport, hosts: Iterable[int] | None, direction: str, scaled: bool
) -> list[_Target]:
    """The links of hosts in a direction; with what they carry as the scale, or with 1."""
    routes = network.routes
    if direction != "both" and not routes.directed:
        raise ValueError(f"direction={direction!r}: the topology is undirected; expected 'both'")
    chosen = np.zeros(len(routes.nodes), bool)
    for host in range(routes.n) if hosts is None else hosts:
        if not (isinstance(host, int | np.integer) and 0 <= host < routes.n):
            raise ValueError(f"hosts: {host!r}; expected 0 .. {routes.n - 1}")
        chosen[host] = True
    leaving, entering = chosen[routes.tail], chosen[routes.head]
    ways = {"up": leaving, "down": entering, "both": leaving | entering}
    found = np.flatnonzero(ways[direction])
    if not routes.directed:
        found = found[found % 2 == 0]  # the other direction follows, and changes with it
    scales = routes.bandwidth[found] if scaled else np.ones(len(found))
    ends = zip(routes.tail[found].tolist(), routes.head[found].tolist(), scales.tolist())
    return [_Target(routes.nodes[a], routes.nodes[b], scale) for a, b, scale in ends]


def _period(period: units.Quantity | None, rows: Changes) -> float | None:
    if period is None:
        return None
    value = units.seconds(period, "period", positive=True)
    if not rows.time[-1] < value < math.inf:
        raise ValueError(
            f"period={period!r}: expected more than the last time, {rows.time[-1]:g} s"
        )
    return value


def _drive(
    network: Transport, rows: Changes, steps: Sequence[list[_Target]], period: float | None
) -> Generator[simpy.Event, None, None]:
    """Apply the rows when their time has come, again and again if there is a period."""
    env, begun = network.env, network.env.now
    for cycle in itertools.count():
        offset = begun + (cycle * period if period is not None else 0.0)
        for i, (time, targets) in enumerate(zip(rows.time.tolist(), steps)):
            if offset + time > env.now:
                yield env.timeout(offset + time - env.now)
            for target in targets:
                _apply(network, target, float(rows.value[i]), int(rows.up[i]))
        if period is None:
            return


def _apply(network: Transport, target: _Target, value: float, up: int) -> None:
    u, v, scale = target
    if not math.isnan(value):
        network.set_bandwidth(u, v, value * scale if value > 0.0 else 0.0)  # 0 * inf is 0 here
    if up < 0 or up == network.routes.up[network.routes.links_between(u, v)].all():
        return
    if up:
        network.link_up(u, v)
    else:
        network.link_down(u, v)
