"""Simulated times beside closed forms, on networks small enough to be checked by hand.

The last rows are the four numbers of a home network that the main job rests on: 32 nodes with
18.9 Mbit/s up, a model of 10^9 parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import simpy

from experiments.closed_forms import simulated_alone
from sim.network.closed_forms import all_gather_seconds, ring_all_reduce_seconds
from sim.network.network import Network
from topologies import regions, ring, star

_UP = 18.9e6 / 8
_DENSE, _VALUES, _SIGNS = 2e9, 46.9e6, 16.6e6
"""Payloads of 10^9 parameters: bf16; DeMo's 1 in 128 coefficients with 16-bit index and 32-bit or
1-bit value, of 64 x 64 blocks."""


@dataclass(frozen=True)
class Check:
    """A simulated quantity beside its closed form, both in seconds.

    Args:
        tolerance: accepted relative difference.
    """

    name: str
    closed_form: float
    simulated: float
    tolerance: float = 1e-6

    @property
    def deviation(self) -> float:
        """Relative difference."""
        return self.simulated / self.closed_form - 1

    @property
    def holds(self) -> bool:
        """Within tolerance."""
        return abs(self.deviation) <= self.tolerance


def checks() -> list[Check]:
    """All of them."""
    return [*_transfers(), *_collectives(), *equal_homes()]


def _transfers() -> list[Check]:
    pair = ring(2, bandwidth="100Mbps", latency="50ms")
    hub = star(3, bandwidth="100Mbps", latency="10ms")
    far = regions(2, ["East US", "West Europe"])
    return [
        Check("transfer: latency + bytes / bandwidth", 0.05 + 0.8, _flows(pair, [(0, 1)])),
        Check("two transfers share a link", 0.02 + 1.6, _flows(hub, [(0, 2), (1, 2)])),
        Check("one connection gets a window per round trip", _window(far), _flows(far, [(0, 1)])),
    ]


def _collectives() -> list[Check]:
    graph, n, b, latency = ring(8, bandwidth="1Gbps", latency="5ms"), 8, 125e6, 5e-3
    reduce = ring_all_reduce_seconds(1e8, n, b, latency)
    gather = all_gather_seconds(1e7, n, b, latency)
    return [
        Check("ring all-reduce", reduce, simulated_alone(graph, n, 1e8, "all_reduce")),
        Check("all-gather", gather, simulated_alone(graph, n, 1e7, "all_gather")),
    ]


def equal_homes() -> list[Check]:
    """What the methods of the main job cost between equal homes without latency."""
    n, graph = 32, _cable_homes(32)
    reduce = ring_all_reduce_seconds(_DENSE, n, _UP)
    simulated = simulated_alone(graph, n, _DENSE, "all_reduce")
    return [
        Check(
            f"{n} homes at 18.9 Mbit/s up, 1B parameters: bf16 ring all-reduce", reduce, simulated
        ),
        _gather("DeMo's all-gather, 32-bit values", graph, _VALUES),
        _gather("DeMo's all-gather, 1-bit values", graph, _SIGNS),
        Check("DiLoCo of 100 inner steps, per step", reduce / 100, simulated / 100),
    ]


def _gather(name: str, graph: nx.DiGraph, nbytes: float) -> Check:
    n = 32
    closed = all_gather_seconds(nbytes, n, _UP)
    return Check(name, closed, simulated_alone(graph, n, nbytes, "all_gather"))


def _flows(graph: nx.Graph, pairs: list[tuple[int, int]], nbytes: float = 1e7) -> float:
    """When the last of some transfers that start together has ended."""
    env, network = simpy.Environment(), Network(graph)
    network.attach(env)
    env.run(network.flow_set(pairs, nbytes))
    return float(env.now)


def _window(graph: nx.Graph) -> float:
    """10 MB between two regions: the path's latency, then 83 Mbit per round trip between them."""
    wan = graph.edges[2, 3]["latency"]
    return wan + 2 * 0.25e-3 + 8e7 / min(83e6 / (2 * wan), 1.15e9)


def _cable_homes(n: int) -> nx.DiGraph:
    """Equal homes on cable without latency: the closed forms are those of text books."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(n), kind="host")
    graph.add_node(n, kind="router")
    for home in range(n):
        graph.add_edge(home, n, bandwidth=_UP, latency=0.0)
        graph.add_edge(n, home, bandwidth=184e6 / 8, latency=0.0)
    return graph
