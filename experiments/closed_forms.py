"""What the network must do, in closed form: link time of a method's exchange on a topology.

The closed forms hold where the hops of a ring over the hosts 0, 1, ..., n-1 do not share links:
hosts on lines of their own to routers between which connections do not compete. Bandwidths and
latencies of the hops are found here with networkx, apart from the routes of the simulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx
import simpy

from optimizers import AllReduce, DeMo, DiLoCo
from sim.network.closed_forms import all_gather_seconds, crossover_n, ring_all_reduce_seconds
from sim.network.network import Network
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
            op = "all_reduce" if strategy.compressor.summable else "all_gather"
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


def link_time(graph: nx.Graph, workload: Workload, exchange: Exchange) -> LinkTime | None:
    """Closed form and simulation of an exchange among all hosts; None if there is but one host.

    Raises:
        ValueError: the codec's size depends on the values.
    """
    n, nbytes = n_hosts(graph), workload.nbytes(exchange.codec)
    if n == 1:
        return None
    dense = workload.layout.numel * workload.bytes_per_value
    return LinkTime(
        exchange.op,
        nbytes,
        _closed_form(graph, n, nbytes, exchange.op),
        simulated_alone(graph, n, nbytes, exchange.op),
        exchange.steps,
        crossover_n(dense, nbytes),
    )


def simulated_alone(graph: nx.Graph, n: int, nbytes: float, op: str) -> float:
    """Seconds that the simulator's network takes for one collective with nothing else going on."""
    env, network = simpy.Environment(), Network(graph)
    network.attach(env)
    collective = getattr(network, op)(range(n), nbytes)
    env.run(collective)
    return float(env.now)


def ring_hops(graph: nx.Graph, n: int) -> list[tuple[float, float]]:
    """(bytes/s, seconds) of each hop of a ring over the hosts 0 .. n-1, if it has links alone."""
    weight = None if graph.graph.get("routing") == "fewest_hops" else "latency"
    hosts = [*range(n), 0] if n > 1 else [0]
    return [_along(graph, nx.shortest_path(graph, i, j, weight=weight)) for i, j in pairwise(hosts)]


def _along(graph: nx.Graph, path: Sequence[int]) -> tuple[float, float]:
    links = [graph.edges[u, v] for u, v in pairwise(path)]
    rates = [min(x["bandwidth"], x.get("flow_bandwidth", float("inf"))) for x in links]
    return min(rates), sum(link["latency"] for link in links)


def _closed_form(graph: nx.Graph, n: int, nbytes: float, op: str) -> float:
    rates, latencies = zip(*ring_hops(graph, n))
    if op == "all_reduce":
        return ring_all_reduce_seconds(nbytes, n, rates, latencies)
    return max(all_gather_seconds(nbytes, n, b, latency) for b, latency in zip(rates, latencies))
