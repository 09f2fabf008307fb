"""Routes: which links the bytes from one host to another cross.

The route of (src, dst) is `[access_up[src]] + core(gate[src], gate[dst]) + [access_down[dst]]`:

- A host with one neighbour, to and from which it has its only links, is *single-homed*: all its
  routes begin and end with these two. Its gate is the neighbour. Of any other host the access
  links are -1 (left out), and the gate is the host itself: hosts forward for others.
- What lies between two gates is searched when first wanted and remembered (`sim.network.cores`);
  there is no table of all pairs of hosts.
- Shortest by latency, ties by fewest hops, then by the lower number of the node before; the other
  way round if `graph.graph["routing"] == "fewest_hops"`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from sim.network.arguments import check_choice
from sim.network.cores import Cores
from sim.network.wires import Wires, read

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


class Table(NamedTuple):
    """Routes of H pairs of hosts.

    Attributes:
        lengths: how many links each one crosses; int64 [H].
        links: those of the first pair in order, then those of the second ...; int64.
        latency, cap: seconds, and bytes/s of one connection; float64 [H].
    """

    lengths: ndarray
    links: ndarray
    latency: ndarray
    cap: ndarray


class Routes:
    """Directed links of a graph, numbered, and the routes over them.

    Args:
        graph: as `sim.network.wires` describes it.

    Attributes:
        n: number of hosts.
        nodes: the nodes of the graph in the order of their numbers, hosts first.
        directed: whether the graph is; if not, links 2 i and 2 i + 1 are one edge.
        tail, head: numbers of the nodes at which each link begins and ends; int64 [L].
        bandwidth, latency, flow_bandwidth, loss: of each link; float64 [L].
        up: whether it can be used now; bool [L].
        access_up, access_down: links of single-homed hosts, from and to them, else -1; int64 [n].
        gate: where a host's paths branch; int64 [n], numbers that only `core` understands.

    >>> import networkx as nx
    >>> graph = nx.Graph()
    >>> graph.add_nodes_from(range(3), kind="host")
    >>> graph.add_edges_from([(0, 1), (1, 2)], bandwidth="1Gbps", latency="10ms")
    >>> Routes(graph).route(0, 2)
    (array([0, 2]), 0.02, inf)
    """

    def __init__(self, graph: Any) -> None:
        self.routing = graph.graph.get("routing", "latency")
        check_choice("routing", self.routing, ["latency", "fewest_hops"])
        wires = read(graph)
        self.n, self._number, self.directed = wires.n, wires.number, wires.directed
        self.nodes = list(self._number)
        self.tail, self.head = wires.tail, wires.head
        self.bandwidth, self.latency = wires.bandwidth, wires.latency
        self.flow_bandwidth, self.loss = wires.flow_bandwidth, wires.loss
        self.up = np.ones(len(self.tail), bool)
        keys = self.tail * len(self._number) + self.head
        self._order = np.argsort(keys)
        self._keys = keys[self._order]
        single, self.access_up, self.access_down = _single_homed(wires)
        self._core_node = np.flatnonzero(~single)
        self._gate_of_node = np.cumsum(~single) - 1
        self._gate_of_node[single] = -1
        node, leaf = np.arange(self.n), single[: self.n]
        node[leaf] = self.head[self.access_up[leaf]]
        self.gate = self._gate_of_node[node]
        self._cores = self._between(wires, single)
        self._forget_plans()

    # Paths between gates

    @property
    def version(self) -> int:
        """Changes when the numbers of core paths, and the arrays of them, are no longer valid.

        That is when a link between gates goes up or down (not an access link), and, at the
        beginning of a call of `core`, when too many are remembered.
        """
        return self._cores.version

    @property
    def core_ptr(self) -> ndarray:
        """int64; core path k is `core_links[core_ptr[k]:core_ptr[k + 1]]`. A new one when full."""
        return self._cores.ptr

    @property
    def core_links(self) -> ndarray:
        """int64, the links of all core paths; the array grows, and is a new one when full."""
        return self._cores.links

    @property
    def core_latency(self) -> ndarray:
        """Seconds, float64, of each core path; a new array when full."""
        return self._cores.latency

    @property
    def core_cap(self) -> ndarray:
        """Bytes/s that one connection gets, float64, of each core path; inf without a limit."""
        return self._cores.cap

    def core(self, a: int, b: int) -> int:
        """The number of the path from gate a to gate b; an empty one if they are the same.

        Raises:
            NoRoute: links that are down leave no path.
            ValueError: the graph has none.
        """
        number = self._cores.find(a, b)
        if number < 0:
            ends = (self.nodes[int(self._core_node[gate])] for gate in (a, b))
            raise self._unreachable(*(f"node {node!r}" for node in ends))
        return number

    # Routes between hosts

    def route(self, src: int, dst: int) -> tuple[ndarray, float, float]:
        """Links (int64) from host to host in order, seconds, and bytes/s of one connection.

        To itself a host crosses no link. Raises as `table`.
        """
        for host in (src, dst):
            if not 0 <= host < self.n:
                raise ValueError(f"host {host!r}: expected 0 .. {self.n - 1}")
        if src == dst:
            return np.zeros(0, np.int64), 0.0, np.inf
        path = self._cores.find(int(self.gate[src]), int(self.gate[dst]))
        access = [link for link in (self.access_up[src], self.access_down[dst]) if link >= 0]
        if path < 0 or not self.up[access].all():
            raise self._unreachable(str(src), str(dst))
        begin, end = self.core_ptr[path : path + 2]
        at = int(self.access_up[src] >= 0)
        links = np.concatenate([access[:at], self.core_links[begin:end], access[at:]])
        latency = self.latency[access[:at]].sum() + self.core_latency[path]
        latency += self.latency[access[at:]].sum()
        cap = min(self.core_cap[path], self.flow_bandwidth[access].min(initial=np.inf))
        return links.astype(np.int64), float(latency), float(cap)

    def table(self, src: Iterable[int] | ndarray, dst: Iterable[int] | ndarray) -> Table:
        """The routes of many pairs of hosts.

        Raises:
            NoRoute: links that are down leave a pair without a path.
            ValueError: no such host, or the graph has no path for a pair.
        """
        src, dst = self._hosts(src), self._hosts(dst)
        first, last = self.access_up[src], self.access_down[dst]
        self._check_access(src, dst, first, last)
        core = self._cores.find_many(self.gate[src], self.gate[dst])
        lost = (core < 0) & (src != dst)
        if lost.any():
            at = int(lost.argmax())
            raise self._unreachable(str(src[at]), str(dst[at]))
        return self._join(first, core, last, moves=src != dst)

    def plan(self, hops: Iterable[tuple[int, int]]) -> Plan:
        """The loads of moving bytes over these hops at once; remembered. Raises as `table`."""
        hops = tuple(hops)
        plan = self._plans.get(hops)
        if plan is None:
            if self._remembered > _REMEMBERED:
                self._forget_plans()
            plan = self._plans[hops] = self._load(hops)
            self._remembered += len(hops)
        return plan

    # Links

    def links_between(self, u: Any, v: Any) -> list[int]:
        """The link u -> v, and that of v -> u if the graph is undirected."""
        pairs = [(u, v)] if self.directed else [(u, v), (v, u)]
        return [self._link(a, b) for a, b in pairs]

    def set_up(self, link: int, up: bool) -> None:
        """Take a link out of, or back into, what new routes may use."""
        self.up[link] = up
        a, b = self._gate_of_node[self.tail[link]], self._gate_of_node[self.head[link]]
        if a >= 0 and b >= 0:
            self._cores.set_up(int(a), int(b), up)
        self._forget_plans()

    def _link(self, u: Any, v: Any) -> int:
        a, b = self._number.get(u), self._number.get(v)
        if a is not None and b is not None:
            key = a * len(self._number) + b
            at = int(np.searchsorted(self._keys, key))
            if at < len(self._keys) and self._keys[at] == key:
                return int(self._order[at])
        raise ValueError(f"no link from {u!r} to {v!r} in the graph")

    def _between(self, wires: Wires, single: ndarray) -> Cores:
        """The paths over the links that join gates."""
        links = np.flatnonzero(~(single[wires.tail] | single[wires.head]))
        ends = self._gate_of_node[wires.tail[links]], self._gate_of_node[wires.head[links]]
        of_links = wires.latency, wires.flow_bandwidth
        return Cores(*ends, links, len(self._core_node), *of_links, self.routing == "fewest_hops")

    def _hosts(self, hosts: Iterable[int] | ndarray) -> ndarray:
        numbers = np.asarray(hosts if isinstance(hosts, ndarray) else list(hosts))
        whole = numbers.dtype.kind in "iu" or not len(numbers)
        wrong = (numbers < 0) | (numbers >= self.n) if whole else np.ones(len(numbers), bool)
        if wrong.any():
            raise ValueError(f"host {numbers[wrong.argmax()]}: expected 0 .. {self.n - 1}")
        return numbers.astype(np.int64)

    def _check_access(self, src: ndarray, dst: ndarray, first: ndarray, last: ndarray) -> None:
        cut = np.zeros(len(src), bool)
        for access in (first, last):
            cut[access >= 0] |= ~self.up[access[access >= 0]]
        cut &= src != dst
        if cut.any():
            at = int(cut.argmax())
            raise self._unreachable(str(src[at]), str(dst[at]))

    def _join(self, first: ndarray, core: ndarray, last: ndarray, moves: ndarray) -> Table:
        """Access links and core paths as one table; nothing where the bytes do not move."""
        begin = self.core_ptr[core]
        inside = np.where(moves, self.core_ptr[core + 1] - begin, 0)
        up, down = (first >= 0) & moves, (last >= 0) & moves
        lengths = up + inside + down
        ends = np.cumsum(lengths)
        links = np.empty(lengths.sum(), np.int64)
        links[(ends - lengths)[up]], links[(ends - 1)[down]] = first[up], last[down]
        step = np.arange(inside.sum()) - np.repeat(np.cumsum(inside) - inside, inside)
        core_links = self.core_links[np.repeat(begin, inside) + step]
        links[np.repeat(ends - lengths + up, inside) + step] = core_links
        latency, cap = np.zeros(len(core)), np.where(moves, self.core_cap[core], np.inf)
        latency[up] = self.latency[first[up]]
        latency[moves] += self.core_latency[core[moves]]
        latency[down] += self.latency[last[down]]
        for some, access in ((up, first[up]), (down, last[down])):
            cap[some] = np.minimum(cap[some], self.flow_bandwidth[access])
        return Table(lengths, links, latency, cap)

    def _load(self, hops: Hops) -> Plan:
        pairs = np.array(hops, np.int64).reshape(-1, 2)
        _, crossed, latency, cap = self.table(pairs[:, 0], pairs[:, 1])
        moves = pairs[:, 0] != pairs[:, 1]  # to itself a host moves nothing
        links, loads = np.unique(crossed, return_counts=True)
        senders, sent = np.unique(pairs[moves, 0], return_counts=True)
        receivers, received = np.unique(pairs[moves, 1], return_counts=True)
        reached: dict[int, float] = {}
        for (src, dst), delay in zip(hops, latency.tolist()):
            reached[dst] = reached.get(src, 0.0) + delay
        return Plan(
            hops=hops,
            links=links,
            loads=loads.astype(float),
            latency=max(reached.values(), default=0.0),
            cap=float(cap.min(initial=np.inf)),
            senders=senders,
            sent=sent,
            receivers=receivers,
            received=received,
        )

    def _unreachable(self, src: str, dst: str) -> Exception:
        if not self.up.all():
            return NoRoute(f"no route from {src} to {dst}: links are down")
        return ValueError(
            f"no route from {src} to {dst}: the graph is not connected; add links that join its "
            "parts, or keep the largest part only"
        )

    def _forget_plans(self) -> None:
        self._plans: dict[Hops, Plan] = {}
        self._remembered = 0


def _single_homed(wires: Wires) -> tuple[ndarray, ndarray, ndarray]:
    """Which nodes are single-homed hosts, bool [nodes]; links from and to each host, or -1 [n].

    Of two hosts that have only each other neither counts: each is the other's gate.
    """
    n, nodes, links = wires.n, len(wires.number), np.arange(len(wires.tail))
    leaving, entering = np.full((2, nodes), -1)
    leaving[wires.tail], entering[wires.head] = links, links
    once = np.bincount(wires.tail, minlength=nodes) == 1
    once &= np.bincount(wires.head, minlength=nodes) == 1
    once[n:] = False
    hosts = np.flatnonzero(once)
    neighbor = wires.head[leaving[hosts]]
    mutual = (neighbor == wires.tail[entering[hosts]]) & ~once[neighbor]
    single = np.zeros(nodes, bool)
    single[hosts[mutual]] = True
    up, down = (np.where(single, ends, -1)[:n] for ends in (leaving, entering))
    return single, up, down
