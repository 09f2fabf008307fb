"""Simulated times beside closed forms, on networks small enough to be checked by hand.

Every collective runs alone on equal private links, in every fidelity. The formulas are written out
here, apart from those of the simulator: with p members, S bytes a vector, b bytes/s a link each
way and latency a between two members. The last rows are the four numbers of a home network that
decentralised training rests on: 32 nodes with 18.9 Mbit/s up, a model of 10^9 parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log2
from typing import Any

import networkx as nx
import simpy

from experiments.closed_forms import simulated_alone
from experiments.validate.row import Row
from sim.network.closed_forms import all_gather_seconds, ring_all_reduce_seconds
from sim.network.network import Network
from topologies import regions, ring, star

_UP = 18.9e6 / 8
_DENSE, _VALUES, _SIGNS = 2e9, 46.9e6, 16.6e6
"""Payloads of 10^9 parameters: bf16; DeMo's 1 in 128 coefficients with 16-bit index and 32-bit or
1-bit value, of 64 x 64 blocks."""
_HAND, _EXACT = 1e-6, 1e-9
_FIDELITIES = ("flows", "hops", "coupled")
_THAKUR = "Thakur et al. 2005"
_RING = "Patarasuk and Yuan 2009"

Run = Callable[[Network, int, float], simpy.Event]
Formula = Callable[[int, float, float, float], float]


def rows() -> list[Row]:
    """All of them."""
    return [*_transfers(), *_collectives(), *equal_homes()]


def _row(what: str, simulated: float, formula: float, source: str, tolerance: float) -> Row:
    return Row(f"{what} (s)", simulated, formula, tolerance, source, "formula")


def _transfers() -> list[Row]:
    pair = ring(2, bandwidth="100Mbps", latency="50ms")
    hub = star(3, bandwidth="100Mbps", latency="10ms")
    far = regions(2, ["East US", "West Europe"])
    cases = [
        ("transfer", pair, [(0, 1)], 0.05 + 0.8, "latency + bytes / bandwidth"),
        ("two transfers share a link", hub, [(0, 2), (1, 2)], 0.02 + 1.6, "latency + 2 S/b"),
        ("one connection far away", far, [(0, 1)], _window(far), "a window per round trip"),
    ]
    return [
        _row(name, _flows(graph, pairs), formula, source, _HAND)
        for name, graph, pairs, formula, source in cases
    ]


def _all_reduce(algorithm: str, **options: Any) -> Run:
    return lambda net, p, size: net.all_reduce(range(p), size, algorithm=algorithm, **options)


COLLECTIVES: dict[str, tuple[int, Run, Formula, str]] = {
    "ring all-reduce": (
        8,
        _all_reduce("ring"),
        lambda p, s, b, a: 2 * (p - 1) * (s / p / b + a),
        f"2 (p-1) (S/p/b + a), {_RING}",
    ),
    "halving-doubling all-reduce": (
        8,
        _all_reduce("halving_doubling"),
        lambda p, s, b, a: 2 * log2(p) * a + 2 * (p - 1) / p * s / b,
        f"2 log2(p) a + 2 (p-1)/p S/b, {_THAKUR}",
    ),
    "binary tree all-reduce": (
        15,
        _all_reduce("tree"),
        lambda p, s, b, a: 2 * (log2(p + 1) - 1) * (a + 2 * s / b),
        "a level: a + 2 S/b, up and down",
    ),
    "butterfly all-reduce": (
        8,
        _all_reduce("butterfly"),
        lambda p, s, b, a: 2 * (a + (p - 1) / p * s / b),
        "2 (a + (p-1)/p S/b), arXiv 2103.03239",
    ),
    "parameter server all-reduce": (
        8,
        _all_reduce("parameter_server"),
        lambda p, s, b, a: 2 * (a + (p - 1) * s / b),
        "2 (a + (p-1) S/b): its link carries all",
    ),
    "hierarchical all-reduce, 2 sites": (
        8,
        _all_reduce("hierarchical", sites={member: member // 4 for member in range(8)}),
        lambda p, s, b, a: 6 * (s / 4 / b + a) + 2 * (s / 2 / b + a) + 3 * a + s / b,
        "rings of 4, ring of 2, chain of 4",
    ),
    "ring reduce-scatter": (
        8,
        lambda net, p, size: net.reduce_scatter(range(p), size),
        lambda p, s, b, a: (p - 1) * (s / p / b + a),
        f"(p-1) (S/p/b + a), {_RING}",
    ),
    "ring all-gather": (
        8,
        lambda net, p, size: net.all_gather(range(p), size, algorithm="ring"),
        lambda p, s, b, a: (p - 1) * (s / b + a),
        f"(p-1) (S/b + a), {_THAKUR}",
    ),
    "full mesh all-gather": (
        8,
        lambda net, p, size: net.all_gather(range(p), size, algorithm="mesh"),
        lambda p, s, b, a: a + (p - 1) * s / b,
        "a + (p-1) S/b",
    ),
    "chain broadcast": (
        8,
        lambda net, p, size: net.broadcast(0, range(p), size, algorithm="chain"),
        lambda p, s, b, a: (p - 1) * a + s / b,
        "(p-1) a + S/b, in small chunks",
    ),
    "binary tree broadcast": (
        15,
        lambda net, p, size: net.broadcast(0, range(p), size, algorithm="tree"),
        lambda p, s, b, a: (log2(p + 1) - 1) * a + 2 * s / b,
        "depth a + 2 S/b, in small chunks",
    ),
    "all-to-all": (
        8,
        lambda net, p, size: net.all_to_all(range(p), size),
        lambda p, s, b, a: a + (p - 1) * s / b,
        "a + (p-1) S/b",
    ),
    "exchange with both ring neighbours": (
        8,
        lambda net, p, size: net.exchange(
            [(i, j % p) for i in range(p) for j in (i - 1, i + 1)], size
        ),
        lambda p, s, b, a: a + 2 * s / b,
        "a + 2 S/b",
    ),
}
"""By name: members, how to run it, its time alone and where that is from."""
BYTES: dict[str, tuple[Callable[[int], float], str]] = {
    "ring all-reduce": (lambda p: 2 * (p - 1) / p, f"2 (p-1)/p S, {_RING}"),
    "halving-doubling all-reduce": (lambda p: 2 * (p - 1) / p, f"2 (p-1)/p S, {_THAKUR}"),
    "ring all-gather": (lambda p: p - 1, f"(p-1) S, {_THAKUR}"),
}
"""Of those that no algorithm can better: bytes that a member sends, in S, and where from."""


def _collectives() -> list[Row]:
    nbytes, bandwidth, latency = 1e8, 125e6, 5e-3
    rows = []
    for name, (members, run, formula, source) in COLLECTIVES.items():
        closed = formula(members, nbytes, bandwidth, latency)
        for fidelity in _FIDELITIES:
            graph = star(members, bandwidth=bandwidth, latency=latency / 2)
            env, network = simpy.Environment(), Network(graph, collectives=fidelity)
            network.attach(env)
            outcome: Any = env.run(run(network, members, nbytes))
            what = f"{name} of {members}, {fidelity}"
            rows.append(_row(what, float(env.now), closed, source, _EXACT))
            if name in BYTES:
                factor, where = BYTES[name]
                sent, volume = max(outcome.sent.values()), factor(members) * nbytes
                what = f"{what}: bytes that each one sends"
                rows.append(Row(what, sent, volume, _EXACT, where, "formula"))
    return rows


def equal_homes() -> list[Row]:
    """What the common methods cost between equal homes without latency."""
    n, graph = 32, _cable_homes(32)
    reduce = ring_all_reduce_seconds(_DENSE, n, _UP)
    simulated = simulated_alone(graph, n, _DENSE, "all_reduce")
    name = f"{n} homes at 18.9 Mbit/s up, 1B parameters: bf16 ring all-reduce"
    return [
        _row(name, simulated, reduce, "2 (n-1)/n S/b", _HAND),
        _gather("DeMo's all-gather, 32-bit values", graph, _VALUES),
        _gather("DeMo's all-gather, 1-bit values", graph, _SIGNS),
        _row(
            "DiLoCo of 100 inner steps, per step",
            simulated / 100,
            reduce / 100,
            "2 (n-1)/n S/b / H",
            _HAND,
        ),
    ]


def _gather(name: str, graph: nx.DiGraph, nbytes: float) -> Row:
    n = 32
    closed = all_gather_seconds(nbytes, n, _UP)
    simulated = simulated_alone(graph, n, nbytes, "all_gather")
    return _row(name, simulated, closed, "(n-1) S/b", _HAND)


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
