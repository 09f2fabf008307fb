"""Whole collectives: one coupled activity against their single flows, and what a call costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import networkx as nx
import numpy as np
import simpy

from experiments.bench.networks.loads import access_graph
from experiments.bench.row import Row, row
from sim.network.network import Network

SIZES = (16, 64)
"""Members of the collectives that are compared."""
_BYTES = 64e6
_UP = 12.5e6
_LATENCY = 0.02
REPEATS = 5
_NEXT = 9
"""Calls after the first, of which the median counts: a few milliseconds are easily disturbed."""


def agreement(sizes: Sequence[int] = SIZES) -> list[Row]:
    """The largest relative difference of the time alone, coupled against stepwise."""
    unit = "relative difference of the time"
    members = " and ".join(str(n) for n in sizes)
    made = []
    for op in ("all_reduce", "all_gather"):
        for name, platform in PLATFORMS.items():
            worst = max(_difference(op, platform(n), n) for n in sizes)
            label = f"{op} by ring, coupled against stepwise, {name}, {members} members"
            made.append(row(label, unit, [worst], target="<= 1e-9"))
    return made


def costs(members: int = 1024, repeats: int = REPEATS) -> list[Row]:
    """Time of one collective of so many members: the first on a network, and the next ones.

    It is the process's CPU time, which is wall time on an idle machine: on a busy one the turns of
    other processes are longer than all that is measured here.

    An all-gather whose members are ready at different times, as in a step of DeMo, and a ring
    all-reduce, as in a round of DiLoCo. simpy's own time for the readiness of the members, events
    without anybody who waits, is measured in turns and taken off.
    """
    made = []
    for op, label in (("all_gather", "ready at different times"), ("all_reduce", "ready at once")):
        cold, warm = [], []
        for _ in range(repeats):
            network = Network(access_graph(members, _LATENCY))
            network.attach(simpy.Environment())
            cold.append(_cost(network, op))
            warm.append(statistics.median(_cost(network, op) for _ in range(_NEXT)))
        name = f"{op} of {members:,} members, {label}"
        made.append(row(f"{name}: next calls", "ms", warm, target="<= 5"))
        made.append(row(f"{name}: first call on a network", "ms", cold))
    return made


def _cost(network: Network, op: str) -> float:
    """Milliseconds that one collective takes more than its members' readiness."""
    members = range(network.n)

    def all_gather(ready: list[simpy.Event]) -> None:
        network.all_gather(members, _BYTES / network.n, ready=ready)

    def all_reduce(ready: list[simpy.Event]) -> None:
        network.all_reduce(members, _BYTES)

    if op == "all_reduce":
        return 1e3 * _seconds(network, [], all_reduce)
    delays = np.random.default_rng(1).exponential(1.0, network.n).tolist()
    return 1e3 * (
        _seconds(network, delays, all_gather) - _seconds(network, delays, lambda ready: None)
    )


def _seconds(
    network: Network, delays: list[float], begin: Callable[[list[simpy.Event]], None]
) -> float:
    """Seconds of CPU time from the beginning until nothing happens any more."""
    env = network.env
    ready: list[simpy.Event] = [env.timeout(delay) for delay in delays]
    began = time.process_time()
    begin(ready)
    env.run()
    return time.process_time() - began


def _difference(op: str, graph: nx.DiGraph, n: int) -> float:
    seconds = [_alone(op, Network(graph, collectives=mode), n) for mode in ("coupled", "flows")]
    return abs(seconds[0] / seconds[1] - 1.0)


def _alone(op: str, network: Network, n: int) -> float:
    """Simulated seconds of a collective on an idle network."""
    env = simpy.Environment()
    network.attach(env)
    if op == "all_reduce":
        env.run(network.all_reduce(range(n), _BYTES))
    else:
        env.run(network.all_gather(range(n), _BYTES / n))
    return float(env.now)


def _links(up: np.ndarray, backbone: float = np.inf) -> nx.DiGraph:
    """Hosts that send at `up` and receive at twice that, and a link that all traffic crosses."""
    n = len(up)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(n), kind="host")
    graph.add_nodes_from([n, n + 1], kind="router")
    graph.add_edge(n, n + 1, bandwidth=backbone, latency=0.0)
    for host, rate in enumerate(up.tolist()):
        graph.add_edge(host, n, bandwidth=rate, latency=_LATENCY)
        graph.add_edge(n + 1, host, bandwidth=2.0 * rate, latency=0.0)
    return graph


def _unequal(n: int) -> np.ndarray:
    return _UP * 10.0 ** np.random.default_rng(n).uniform(0.0, 1.0, n)


PLATFORMS: dict[str, Callable[[int], nx.DiGraph]] = {
    "equal private links": lambda n: _links(np.full(n, _UP)),
    "10x unequal private links": lambda n: _links(_unequal(n)),
    "equal links, shared backbone": lambda n: _links(np.full(n, _UP), n * _UP / 4),
    "10x unequal links, shared backbone": lambda n: _links(_unequal(n), _unequal(n).sum() / 4),
}
"""Made from the number of hosts; the backbone has a quarter of what all can send."""
