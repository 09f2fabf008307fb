"""Routes over a graph: which links a message crosses, found when asked for.

- The graph is a networkx graph (or one that looks like it): nodes `0 .. n-1` are hosts
  (`kind="host"`), others routers (`kind="router"`); edges carry `bandwidth` (bytes/s in each
  direction), `latency` (seconds) and optionally `flow_bandwidth` (the most that one connection
  gets, bytes/s). In a directed graph each edge is one direction.
- The shortest path by latency, ties by fewest hops, then by the lower id of the node before; the
  other way round if `graph.graph["routing"] == "fewest_hops"`. Latencies are compared in whole
  picoseconds, so that ties are ties whatever the order in which they are summed.
- Hosts forward for others. There is no all-pairs table: one search per source, when needed.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

from sim import units
from sim.network.arguments import check_choice

Hops = tuple[tuple[int, int], ...]
"""(from, to) pairs of hosts between which the same bytes move at the same time."""
_REMEMBERED = 300_000
"""Hops in remembered plans before starting over: some 50 MB when memberships keep changing."""


class NoRoute(Exception):
    """No path at present: links are down."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What moving the same bytes over some hops at once loads.

    Attributes:
        hops: the hops.
        links, loads: int64 and float64 [E]; how many hops cross each link.
        latency: seconds until the first byte is everywhere; hops are followed in order, each
            begins where an earlier one has ended.
        cap: bytes/s of one hop, from `flow_bandwidth`; inf without.
        senders, sent: hosts, and how many of the hops each one feeds; `receivers, received` alike.
    """

    hops: Hops
    links: ndarray
    loads: ndarray
    latency: float
    cap: float
    senders: ndarray
    sent: ndarray
    receivers: ndarray
    received: ndarray


class Routes:
    """Directed links of a graph, numbered, and the routes over them."""

    def __init__(self, graph: Any) -> None:
        if graph.is_multigraph():
            raise ValueError("parallel edges: expected a Graph or DiGraph; merge them")
        self.routing = graph.graph.get("routing", "latency")
        check_choice("routing", self.routing, ["latency", "fewest_hops"])
        self.n, self._number = _number(graph)
        self.directed = graph.is_directed()
        self._out: list[list[tuple[int, int]]] = [[] for _ in self._number]
        self.index: dict[tuple[int, int], int] = {}
        """Link of each (from, to), nodes numbered with hosts first."""
        columns = list(self._read(graph))
        self.bandwidth, self.latency, self.flow_bandwidth = np.array(columns).reshape(-1, 3).T
        self._picoseconds = [round(t * 1e12) for t in self.latency.tolist()]
        self._up = [True] * len(columns)
        self._forget()

    def links_between(self, u: Any, v: Any) -> list[int]:
        """The link u -> v, and that of v -> u if the graph is undirected."""
        pairs = [(u, v)] if self.directed else [(u, v), (v, u)]
        try:
            return [self.index[self._number[a], self._number[b]] for a, b in pairs]
        except KeyError:
            raise ValueError(f"no link from {u!r} to {v!r} in the graph") from None

    def set_up(self, link: int, up: bool) -> None:
        """Take a link out of, or back into, what new routes may use."""
        self._up[link] = up
        self._forget()

    def path(self, src: int, dst: int) -> list[int]:
        """Links from host `src` to host `dst`, in order; none if they are the same.

        Raises:
            NoRoute: links that are down leave no path.
            ValueError: the graph has none.
        """
        if src == dst:
            return []
        exits = [(node, link) for node, link in self._out[src] if self._up[link]]
        direct = self.index.get((src, dst))
        if direct is not None and self._up[direct] and self._is_shortest(direct, exits):
            return [direct]
        # An access link is shared by all routes of its host: one search from the far end of it.
        first, root = ([exits[0][1]], exits[0][0]) if len(exits) == 1 else ([], src)
        before = self._searches.get(root)
        if before is None:
            before = self._searches[root] = self._search(root)
        links: list[int] = []
        while dst != root:
            if dst not in before:
                if all(self._up):
                    raise ValueError(f"no route from {src} to {dst}: the graph is not connected")
                raise NoRoute(f"no route from {src} to {dst}: links are down")
            dst, link = before[dst]
            links.append(link)
        return first + links[::-1]

    def plan(self, hops: Iterable[tuple[int, int]]) -> Plan:
        """The loads of moving bytes over these hops at once; remembered. Raises as `path`."""
        hops = tuple(hops)
        plan = self._plans.get(hops)
        if plan is None:
            if self._remembered > _REMEMBERED:
                self._forget_plans()
            plan = self._plans[hops] = self._one(*hops[0]) if len(hops) == 1 else self._many(hops)
            self._remembered += len(hops)
        return plan

    def _one(self, src: int, dst: int) -> Plan:
        links = np.array(self.path(src, dst), np.int64)
        moves = np.ones(int(src != dst), np.int64)  # to itself a host moves nothing
        return Plan(
            hops=((src, dst),),
            links=links,
            loads=np.ones(len(links)),
            latency=float(self.latency[links].sum()),
            cap=float(self.flow_bandwidth[links].min(initial=np.inf)),
            senders=src * moves,
            sent=moves,
            receivers=dst * moves,
            received=moves,
        )

    def _many(self, hops: Hops) -> Plan:
        parts = [self.plan([hop]) for hop in hops]
        nothing = np.zeros(0, np.int64)
        crossed = np.bincount(np.concatenate([nothing, *(part.links for part in parts)]))
        senders = np.concatenate([nothing, *(part.senders for part in parts)])
        receivers = np.concatenate([nothing, *(part.receivers for part in parts)])
        sent, received = np.bincount(senders), np.bincount(receivers)
        reached: dict[int, float] = {}
        for (src, dst), part in zip(hops, parts):
            reached[dst] = reached.get(src, 0.0) + part.latency
        return Plan(
            hops=hops,
            links=np.flatnonzero(crossed),
            loads=crossed[crossed > 0].astype(float),
            latency=max(reached.values(), default=0.0),
            cap=min((part.cap for part in parts), default=np.inf),
            senders=np.flatnonzero(sent),
            sent=sent[sent > 0],
            receivers=np.flatnonzero(received),
            received=received[received > 0],
        )

    def _is_shortest(self, direct: int, exits: list[tuple[int, int]]) -> bool:
        """Whether no detour can beat a direct link: each begins with a link at least as long."""
        if self.routing == "fewest_hops":
            return True
        return self._picoseconds[direct] <= min(self._picoseconds[link] for _, link in exits)

    def _search(self, root: int) -> dict[int, tuple[int, int]]:
        """Dijkstra: for each node reached, the node before it and the link between them."""
        best: dict[int, tuple[int, int]] = {root: (0, 0)}
        before: dict[int, tuple[int, int]] = {}
        heap = [(0, 0, root)]
        while heap:
            first, second, node = heapq.heappop(heap)
            if (first, second) > best[node]:
                continue
            for neighbor, link in self._out[node]:
                if not self._up[link]:
                    continue
                cost = (self._picoseconds[link], 1)
                cost = cost[::-1] if self.routing == "fewest_hops" else cost
                length = (first + cost[0], second + cost[1])
                if neighbor not in best or length < best[neighbor]:
                    best[neighbor], before[neighbor] = length, (node, link)
                    heapq.heappush(heap, (*length, neighbor))
                elif length == best[neighbor] and node < before[neighbor][0]:
                    before[neighbor] = (node, link)
        return before

    def _read(self, graph: Any) -> Iterable[tuple[float, float, float]]:
        """Number the links; their (bandwidth, latency, flow_bandwidth)."""
        for u, v, edge in graph.edges(data=True):
            if "bandwidth" not in edge or "latency" not in edge:
                raise ValueError(f"edge ({u!r}, {v!r}) has {dict(edge)}: needs bandwidth, latency")
            numbers = (
                units.bandwidth(edge["bandwidth"], f"bandwidth of edge ({u!r}, {v!r})"),
                units.seconds(edge["latency"], f"latency of edge ({u!r}, {v!r})"),
                units.bandwidth(edge.get("flow_bandwidth", np.inf), "flow_bandwidth"),
            )
            a, b = self._number[u], self._number[v]
            for src, dst in [(a, b)] if self.directed else [(a, b), (b, a)]:
                if src != dst:
                    self._out[src].append((dst, len(self.index)))
                    self.index[src, dst] = len(self.index)
                    yield numbers

    def _forget(self) -> None:
        self._searches: dict[int, dict[int, tuple[int, int]]] = {}
        self._forget_plans()

    def _forget_plans(self) -> None:
        self._plans: dict[Hops, Plan] = {}
        self._remembered = 0


def _number(graph: Any) -> tuple[int, dict[Any, int]]:
    """The number of hosts, and numbers of all nodes: hosts keep theirs, routers follow."""
    kinds = {node: data.get("kind") for node, data in graph.nodes(data=True)}
    wrong = {node: kind for node, kind in kinds.items() if kind not in ("host", "router")}
    if wrong:
        node, kind = next(iter(wrong.items()))
        raise ValueError(f"node {node!r} has kind={kind!r}: expected 'host' or 'router'")
    hosts = sorted(node for node, kind in kinds.items() if kind == "host")
    if hosts != list(range(len(hosts))) or not hosts:
        raise ValueError(f"hosts are {hosts[:5]}...: expected 0 .. n-1, at least one")
    routers = [node for node, kind in kinds.items() if kind == "router"]
    return len(hosts), {node: i for i, node in enumerate([*hosts, *routers])}
