"""Links and hosts: attributes of a topology graph, and the check that a graph is one.

A topology is a `networkx.Graph` (each direction of a link has the full bandwidth) or `DiGraph`
(links differ by direction):

- nodes are 0 .. N-1; hosts (`kind="host"`) come first, routers (`kind="router"`) after them;
- an edge has `bandwidth` (bytes/s in each direction, shared by the flows on it, may be infinite),
  `latency` (seconds, one way) and perhaps `flow_bandwidth` (bytes/s, the most that one connection
  gets on that edge) and `loss` (the share of packets that get lost on it, in [0, 1));
- `graph.graph["routing"]` is "latency" (shortest by latency, the default) or "fewest_hops".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import networkx as nx
import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from sim import units

KINDS = ("host", "router")
G = TypeVar("G", bound=nx.Graph)
ROUTINGS = ("latency", "fewest_hops")
LONGEST = 1000.0
"""Seconds: the most latency of a link; more is a mistake in the unit."""
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "bandwidth": (lambda value: value > 0, "> 0 (bytes/s)"),
    "latency": (lambda value: 0 <= value <= LONGEST, f"finite, >= 0 and <= {LONGEST:g} (seconds)"),
    "flow_bandwidth": (lambda value: value > 0, "> 0 (bytes/s)"),
    "loss": (lambda value: 0 <= value < 1, ">= 0 and < 1 (a probability)"),
}
_OPTIONAL = ("flow_bandwidth", "loss")


def link(
    bandwidth: units.Quantity,
    latency: units.Quantity,
    flow_bandwidth: units.Quantity | None = None,
    loss: float | None = None,
) -> dict[str, float]:
    """The attributes of one edge, from strings or numbers.

    >>> link("100Mbps", "50ms")
    {'bandwidth': 12500000.0, 'latency': 0.05}
    """
    attributes = {
        "bandwidth": units.bandwidth(bandwidth),
        "latency": units.seconds(latency, "latency"),
    }
    if attributes["latency"] > LONGEST:
        raise ValueError(
            f"latency={latency!r}: must be finite and <= {LONGEST:g} s; write for example 50ms"
        )
    if flow_bandwidth is not None:
        attributes["flow_bandwidth"] = units.bandwidth(flow_bandwidth, "flow_bandwidth")
    if loss is not None:
        attributes["loss"] = loss
        if not 0.0 <= loss < 1.0:
            raise ValueError(f"loss={loss!r}: must be a probability in [0, 1), such as 0.01")
    return attributes


def set_links(
    graph: G,
    bandwidth: units.Quantity,
    latency: units.Quantity,
    flow_bandwidth: units.Quantity | None = None,
) -> G:
    """Give every edge these attributes, and every node without a kind `kind="host"`; in place.

    >>> graph = set_links(nx.petersen_graph(), "1Gbps", "10ms")
    >>> graph.edges[0, 1]["bandwidth"]
    125000000.0
    """
    attributes = link(bandwidth, latency, flow_bandwidth)
    for _, data in graph.nodes(data=True):
        data.setdefault("kind", "host")
    for _, _, data in graph.edges(data=True):
        data.update(attributes)
    return graph


def unlinked(graph_type: type[G], n: int, n_routers: int = 0) -> G:
    """A graph of n hosts and then routers, in the order of their ids, without links."""
    graph = graph_type()
    graph.add_nodes_from(range(n), kind="host")
    graph.add_nodes_from(range(n, n + n_routers), kind="router")
    return graph


def hosts(graph: nx.Graph) -> list[int]:
    """The ids of the hosts, ascending."""
    return sorted(node for node, kind in graph.nodes(data="kind") if kind == "host")


def n_hosts(graph: nx.Graph) -> int:
    """How many hosts there are."""
    return sum(kind == "host" for _, kind in graph.nodes(data="kind"))


def validate(graph: nx.Graph) -> None:
    """Raise ValueError naming the first node, edge or attribute that breaks the contract above.

    Hosts must all reach each other, in both directions of a DiGraph.
    """
    if not isinstance(graph, nx.Graph) or graph.is_multigraph():
        raise ValueError(f"topology of type {type(graph).__name__}: must be a Graph or a DiGraph")
    routing = graph.graph.get("routing", ROUTINGS[0])
    if routing not in ROUTINGS:
        close = units.nearest(str(routing), list(ROUTINGS))
        raise ValueError(f"routing={routing!r}: one of {ROUTINGS}; did you mean {close!r}?")
    _validate_nodes(graph)
    for u, v, data in graph.edges(data=True):
        if u == v:
            raise ValueError(f"edge ({u}, {v}): joins a node to itself")
        for key, (valid, _) in _RANGES.items():
            value = data.get(key)
            if type(value) is not float or not valid(value):  # nearly all are
                _validate_attribute(u, v, key, value)
    _validate_connected(graph)


def _validate_nodes(graph: nx.Graph) -> None:
    for node in graph:
        if not isinstance(node, int | np.integer) or not 0 <= node < len(graph):
            raise ValueError(f"node {node!r}: nodes must be the integers 0 .. {len(graph) - 1}")
    for node, kind in graph.nodes(data="kind"):
        if kind not in KINDS:
            raise ValueError(f"node {node}: kind={kind!r} must be one of {KINDS}")
    found = hosts(graph)
    n = len(found)
    if n == 0:
        raise ValueError("no host: a topology needs at least 1 node with kind='host'")
    if found != list(range(n)):
        late = found[-1]
        raise ValueError(f"node {late}: a host comes after a router; hosts must be 0 .. {n - 1}")


def _validate_attribute(u: int, v: int, key: str, value: object) -> None:
    if value is None and key in _OPTIONAL:
        return
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError(f"edge ({u}, {v}): {key}={value!r} must be a number; see set_links")
    valid, span = _RANGES[key]
    if not valid(float(value)):
        raise ValueError(f"edge ({u}, {v}): {key}={value} must be {span}")


def _validate_connected(graph: nx.Graph) -> None:
    n, ends = n_hosts(graph), np.array(list(graph.edges), np.int64).reshape(-1, 2).T
    there = sparse.coo_array((np.ones(len(ends[0])), tuple(ends)), shape=(len(graph),) * 2).tocsr()
    ways = {"be reached from": there, "reach": there.T.tocsr()}
    if not graph.is_directed():
        ways = {"be reached from": there + there.T}
    for how, matrix in ways.items():
        reached = csgraph.breadth_first_order(matrix, 0, return_predecessors=False)
        lost = np.setdiff1d(np.arange(n), reached)
        if len(lost):
            raise ValueError(
                f"host {lost[0]}: cannot {how} host 0 ({len(lost)} of {n} hosts cannot); hosts "
                "must be connected: add links, or keep the part that is"
            )
