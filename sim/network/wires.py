"""Wires: the directed links of a graph in arrays, numbered and checked.

- The graph is a networkx graph (or one that looks like it): nodes `0 .. n-1` are hosts
  (`kind="host"`), others routers (`kind="router"`); edges carry `bandwidth` (bytes/s in each
  direction), `latency` (seconds) and optionally `flow_bandwidth` (the most that one connection
  gets, bytes/s) and `loss` (the share of packets that get lost, in [0, 1)).
- In a directed graph an edge is one link, otherwise two: u to v, then v to u.
- Nodes are numbered hosts first, routers after them in the order of the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

from sim import units

LONGEST = 1e3
"""Seconds: the most latency of a link. Sums in whole picoseconds are exact up to 9,007 s."""


@dataclass(frozen=True, eq=False)
class Wires:
    """L directed links.

    Attributes:
        n: how many of the nodes are hosts.
        number: node of the graph -> its number; hosts keep theirs.
        directed: whether the graph is.
        tail, head: numbers of the nodes at which each link begins and ends; int64 [L].
        bandwidth, latency, flow_bandwidth, loss: of each link; float64 [L].
    """

    n: int
    number: dict[Any, int]
    directed: bool
    tail: ndarray
    head: ndarray
    bandwidth: ndarray
    latency: ndarray
    flow_bandwidth: ndarray
    loss: ndarray


def read(graph: Any) -> Wires:
    """The links of a graph; ValueError names the node or edge that is not as said above."""
    if graph.is_multigraph():
        raise ValueError("parallel edges: expected a Graph or DiGraph; merge them")
    n, number = _number(graph)
    edges = [edge for edge in graph.edges(data=True) if edge[0] != edge[1]]
    for u, v, edge in edges:
        if "bandwidth" not in edge or "latency" not in edge:
            raise ValueError(f"edge ({u!r}, {v!r}) has {dict(edge)}: needs bandwidth, latency")
    tail = np.array([number[u] for u, _, _ in edges], np.int64)
    head = np.array([number[v] for _, v, _ in edges], np.int64)
    columns = [
        _column(edges, "bandwidth", np.inf, units.bandwidth),
        _column(edges, "latency", 0.0, _latency),
        _column(edges, "flow_bandwidth", np.inf, units.bandwidth),
        _column(edges, "loss", 0.0, _loss),
    ]
    directed = graph.is_directed()
    if not directed:
        tail, head = np.stack([tail, head], 1).ravel(), np.stack([head, tail], 1).ravel()
        columns = [np.repeat(column, 2) for column in columns]
    return Wires(n, number, directed, tail, head, *columns)


def _column(
    edges: list[tuple[Any, Any, dict]],
    key: str,
    default: float,
    read_one: Callable[[Any, str], float],
) -> ndarray:
    """One attribute of all edges; each different value is read once."""
    known: dict[Any, float] = {}
    numbers = []
    for u, v, edge in edges:
        value = edge.get(key, default)
        plain = value.item() if isinstance(value, np.generic) else value
        if type(plain) not in (float, int, str) or plain not in known:
            known[plain] = read_one(plain, f"{key} of edge ({u!r}, {v!r})")
        numbers.append(known[plain])
    return np.array(numbers, float)


def _latency(value: units.Quantity, name: str) -> float:
    latency = units.seconds(value, name)
    if latency > LONGEST:
        raise ValueError(f"{name}={value!r}: expected 0 .. {LONGEST:g} seconds")
    return latency


def _loss(value: float, name: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0.0 <= value < 1.0):
        raise ValueError(f"{name}={value!r}: expected a probability in [0, 1), such as 0.01")
    return float(value)


def _number(graph: Any) -> tuple[int, dict[Any, int]]:
    """The number of hosts, and numbers of all nodes: hosts keep theirs, routers follow."""
    hosts: list[Any] = []
    routers: list[Any] = []
    for node, data in graph.nodes(data=True):
        kind = data.get("kind")
        if kind not in ("host", "router"):
            raise ValueError(f"node {node!r} has kind={kind!r}: expected 'host' or 'router'")
        (hosts if kind == "host" else routers).append(node)
    hosts.sort()
    if hosts != list(range(len(hosts))) or not hosts:
        raise ValueError(f"hosts are {hosts[:5]}...: expected 0 .. n-1, at least one")
    return len(hosts), {node: i for i, node in enumerate([*hosts, *routers])}
