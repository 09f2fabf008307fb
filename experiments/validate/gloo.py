"""Transfers and collectives that were really made: gloo over links shaped by tbf.

What is dependable there: point to point, incast, and all-reduce among equal links, if the tensor
is at least 50 times the shaper's burst (else its credit shows), the least of the repeats (the
machine was shared). All-reduce among unequal links ran up to a fifth slower than the slowest hop
allows, for a cause that was not found: such rows are printed, not judged.

Nothing is fitted: of the bytes that tbf counts, TCP carries 1448 in a frame of 1514 (1500 and an
Ethernet header); in a ring both directions of a link are busy, so that one acknowledgement of
66 bytes rides along with every second frame.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import networkx as nx
import simpy

from experiments.validate.columns import DATA, Line, has, read
from experiments.validate.row import Row
from sim.network.network import Network

COLUMNS = ("op", "bytes", "rep", "measured_s", "up_Bps", "down_Bps")
_BURST = 32 * 1024
"""Bytes of tbf's burst."""
_LEAST = 50 * _BURST
_GOODPUT, _DUPLEX = 1448 / 1514, 1448 / (1514 + 33)
_TOLERANCE = 0.05
_OPS = ("p2p", "incast", "all_reduce")
_MOST_WORKERS = 256
_SOURCE = "gloo over tbf, least of {n} repeats"


def rows() -> list[Row]:
    """The measurements that are shipped."""
    return judge(DATA / "gloo_tbf_seed3.csv")


def judge(path: str | Path) -> list[Row]:
    """A row for each operation and size; judged if the measurement is dependable.

    Raises:
        ValueError: a column is missing, or a value is impossible; names file and row.
    """
    lines = read(path)
    if not has(lines, COLUMNS):
        raise ValueError(f"{path}: expected the columns {list(COLUMNS)}")
    repeats: dict[tuple[str, int, tuple[float, ...], tuple[float, ...]], list[float]]
    repeats = defaultdict(list)
    for line in lines:
        repeats[_case(line)].append(line.number("measured_s", positive=True))
    return [_row(*case, measured) for case, measured in repeats.items()]


def _case(line: Line) -> tuple[str, int, tuple[float, ...], tuple[float, ...]]:
    op, up, down = line.text("op"), _rates(line, "up_Bps"), _rates(line, "down_Bps")
    if op not in _OPS:
        raise ValueError(f"{line.where}: op={op!r}: expected one of {list(_OPS)}")
    if len(up) != len(down) or not 2 <= len(up) <= _MOST_WORKERS:
        raise ValueError(
            f"{line.where}: {len(up)} rates up and {len(down)} down: expected as many, of "
            f"2 .. {_MOST_WORKERS} workers"
        )
    return op, line.count("bytes"), up, down


def _rates(line: Line, column: str) -> tuple[float, ...]:
    parts = line.text(column).split(";")
    return tuple(Line(line.where, {column: part}).number(column, positive=True) for part in parts)


def _row(
    op: str, nbytes: int, up: tuple[float, ...], down: tuple[float, ...], measured: list[float]
) -> Row:
    equal = len({*up, *down}) == 1
    links = f"{'equal' if equal else 'unequal'} links"
    dependable = (op != "all_reduce" or equal) and nbytes >= _LEAST and len(measured) >= 3
    return Row(
        f"{op} of {nbytes / 1e6:.2f} MB, {len(up)} workers, {links}, {min(up) / 1e6:g} MB/s (s)",
        ours=simulate(op, nbytes, up, down),
        reference=min(measured),
        tolerance=_TOLERANCE,
        source=_SOURCE.format(n=len(measured)),
        kind="measurement",
        judged=dependable,
    )


def simulate(op: str, nbytes: float, up: tuple[float, ...], down: tuple[float, ...]) -> float:
    """Seconds of an operation on the event simulator; links of `up` and `down` bytes/s."""
    factor = _DUPLEX if op == "all_reduce" else _GOODPUT
    env, network = simpy.Environment(), Network(_switch(up, down, factor), collectives="flows")
    network.attach(env)
    if op == "all_reduce":
        env.run(network.all_reduce(range(len(up)), nbytes))
    elif op == "incast":
        env.run(network.flow_set([(worker, 0) for worker in range(1, len(up))], nbytes))
    else:
        env.run(network.transfer(0, 1, nbytes))
    return float(env.now)


def _switch(up: tuple[float, ...], down: tuple[float, ...], factor: float) -> nx.DiGraph:
    """Workers on one switch."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(up)), kind="host")
    graph.add_node(len(up), kind="router")
    for worker, (rate_up, rate_down) in enumerate(zip(up, down)):
        graph.add_edge(worker, len(up), bandwidth=factor * rate_up, latency=0.0)
        graph.add_edge(len(up), worker, bandwidth=factor * rate_down, latency=0.0)
    return graph
