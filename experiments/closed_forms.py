"""What the network must do, in closed form: link time of a method's exchange on a topology.

The closed forms hold where the hops of a ring over the hosts 0, 1, ..., n-1 do not share links:
hosts on lines of their own to routers between which connections do not compete. Bandwidths and
latencies of the hops are found here with networkx, apart from the routes of the simulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import networkx as nx
import simpy

from optimizers import AllReduce, DeMo, DiLoCo
from sim.network.closed_forms import all_gather_seconds, crossover_n, ring_all_reduce_seconds
from sim.network.network import Network
from sim.network.options import NetworkOptions
from sim.payload import Compressor
from sim.strategy import Strategy
from sim.workload import Workload
from topologies.links import n_hosts


@dataclass(frozen=True)
class Exchange:
    """The one collective that a method repeats.

    Args:
        op: `"all_reduce"` (a ring that sums) or `"all_gather"` (of everybody's payload).
        codec: how a payload is written.
        steps: local steps between two of them.
    """

    op: str
    codec: Compressor
    steps: int = 1

    @classmethod
    def of(cls, strategy: Strategy) -> Exchange | None:
        """The exchange of a strategy; None if it has no such pattern, or no closed form here."""
        if isinstance(strategy, DeMo):
            return cls("all_gather", strategy.compressor)
        if isinstance(strategy, AllReduce | DiLoCo):
            if strategy.reduction is not None or strategy.nodes is not None:
                return None
            summed = strategy.compressor.summable and strategy.aggregation.summable
            op = "all_reduce" if summed else "all_gather"
            steps = strategy.inner_steps if isinstance(strategy, DiLoCo) else 1
            return cls(op, strategy.compressor, steps)
        return None


@dataclass(frozen=True)
class LinkTime:
    """Link time of one exchange alone, all members ready at once.

    Attributes:
        nbytes: of one payload.
        closed_form, simulated: seconds of one exchange.
        steps: local steps that it serves.
        crossing: members beyond which gathering this codec's payloads takes longer than a ring
            all-reduce of the workload's dense values.
    """

    op: str
    nbytes: int
    closed_form: float
    simulated: float
    steps: int
    crossing: float

    @property
    def deviation(self) -> float:
        """Of the simulated from the closed form, relative."""
        return self.simulated / self.closed_form - 1 if self.closed_form else 0.0


def link_time(
    graph: nx.Graph,
    workload: Workload,
    exchange: Exchange,
    options: NetworkOptions | None = None,
) -> LinkTime | None:
    """Closed form and simulation of an exchange among all hosts.

    None if there is but one host, or if the network's options make it something else than a ring
    over the hosts in their order, without headers: then there is no closed form here.

    Raises:
        ValueError: the codec's size depends on the values.
    """
    n, nbytes = n_hosts(graph), workload.nbytes(exchange.codec)
    options = options or NetworkOptions()
    by_ring = getattr(options, exchange.op) == "ring" and options.ring_order == "given"
    if n == 1 or not by_ring or options.header_bytes:
        return None
    dense = workload.layout.numel * workload.bytes_per_value
    return LinkTime(
        exchange.op,
        nbytes,
        _closed_form(graph, n, nbytes, exchange.op, options.connections),
        simulated_alone(graph, n, nbytes, exchange.op, options),
        exchange.steps,
        crossover_n(dense, nbytes),
    )


def simulated_alone(
    graph: nx.Graph, n: int, nbytes: float, op: str, options: NetworkOptions | None = None
) -> float:
    """Seconds that the simulator's network takes for one collective with nothing else going on."""
    env, network = simpy.Environment(), Network(graph, **vars(options or NetworkOptions()))
    network.attach(env)
    collective = getattr(network, op)(range(n), nbytes)
    env.run(collective)
    return float(env.now)


def ring_hops(graph: nx.Graph, n: int, connections: int = 1) -> list[tuple[float, float]]:
    """(bytes/s, seconds) of each hop of a ring over the hosts 0 .. n-1, if it has links alone."""
    hosts = [*range(n), 0] if n > 1 else [0]
    return [_along(graph, path, connections) for path in _paths(graph, list(pairwise(hosts)))]


def _paths(graph: nx.Graph, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Shortest paths; hosts with a single neighbour are reached through it, so it is searched for
    a path once, however many hosts it has."""
    weight = None if graph.graph.get("routing") == "fewest_hops" else "latency"
    ends = {host: _ends(graph, host) for pair in pairs for host in pair}
    leaves = [host for host, (*_, end) in ends.items() if end != host]
    inner = graph.subgraph(graph.nodes - set(leaves)) if len(leaves) < len(graph) else graph

    @cache
    def between(u: int, v: int) -> list[int]:
        return nx.shortest_path(inner, u, v, weight=weight)

    return [[*ends[i][:-1], *between(ends[i][-1], ends[j][-1]), *ends[j][-2::-1]] for i, j in pairs]


def _ends(graph: nx.Graph, host: int) -> tuple[int, ...]:
    """A host, and the router that all of its traffic goes through, if there is one."""
    near = set(graph.adj[host])
    near |= set(graph.pred[host]) if graph.is_directed() else set()
    only = min(near) if len(near) == 1 else host
    return (host,) if graph.nodes[only].get("kind") != "router" else (host, only)


def _along(graph: nx.Graph, path: Sequence[int], connections: int) -> tuple[float, float]:
    links = [graph.edges[u, v] for u, v in pairwise(path)]
    caps = [connections * link.get("flow_bandwidth", float("inf")) for link in links]
    rate = min(*caps, *(link["bandwidth"] for link in links))
    return rate, sum(link["latency"] for link in links)


def _closed_form(graph: nx.Graph, n: int, nbytes: float, op: str, connections: int) -> float:
    rates, latencies = zip(*ring_hops(graph, n, connections))
    if op == "all_reduce":
        return ring_all_reduce_seconds(nbytes, n, rates, latencies)
    return max(all_gather_seconds(nbytes, n, b, latency) for b, latency in zip(rates, latencies))
