"""Where bytes go when hosts leave and links are cut: all that are sent arrive, or are waste.

What arrived whole is counted apart from the network's own totals: from its record of each
transfer, or from what each member of a collective has heard.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import simpy

from experiments.validate.row import Row
from sim.network.collectives import Collective
from sim.network.network import Network
from sim.streams import Streams
from topologies import star

_TOLERANCE = 1e-9
_PAYLOAD, _MEMBERS = 1e6, 12
_LOSSES = ((3, 2.0), (7, 5.5))
"""Members of a collective that leave, and when, in seconds."""

Start = Callable[[Network], Collective]
COLLECTIVES: dict[str, Start] = {
    "mesh all-gather": lambda net: net.all_gather(range(_MEMBERS), _PAYLOAD, algorithm="mesh"),
    "ring all-gather": lambda net: net.all_gather(range(_MEMBERS), _PAYLOAD, algorithm="ring"),
    "exchange": lambda net: net.exchange(
        [(i, (i + k) % _MEMBERS) for i in range(_MEMBERS) for k in range(1, 7)], _PAYLOAD
    ),
}


def rows() -> list[Row]:
    """Random transfers; gathers and exchanges, message by message; reductions in all fidelities."""
    gathers = [_heard(name, start) for name, start in COLLECTIVES.items()]
    reductions = [_reduction(fidelity) for fidelity in ("flows", "hops", "coupled")]
    return [*_transfers(), *gathers, *reductions]


def _row(what: str, ours: float, sent: float, source: str) -> Row:
    return Row(f"{what} (bytes)", ours, sent, _TOLERANCE, source, "property")


def _transfers() -> list[Row]:
    """Transfers at random times between hosts that leave and links that are cut."""
    rng, n = Streams(0).rng("validate.conservation"), 30
    graph = nx.DiGraph()
    graph.add_nodes_from(range(n), kind="host")
    graph.add_node(n, kind="router")
    for host, (up, down) in enumerate(10 ** rng.uniform(5, 7, (n, 2))):
        graph.add_edge(host, n, bandwidth=float(up), latency=0.01)
        graph.add_edge(n, host, bandwidth=float(down), latency=0.01)
    records: list[dict[str, Any]] = []
    env, network = simpy.Environment(), Network(graph)
    network.attach(env, lambda kind, **fields: records.append(fields))
    for _ in range(400):
        src, dst = (int(host) for host in rng.choice(n, 2, replace=False))
        _later(env, rng.uniform(0, 30), network.transfer, src, dst, 10 ** rng.uniform(4, 7))
    for _ in range(20):
        host, at = int(rng.integers(n)), rng.uniform(0, 40)
        _later(env, at, network.leave, host)
        _later(env, at + rng.uniform(0, 5), network.join, host)
    for _ in range(10):
        host, at = int(rng.integers(n)), rng.uniform(0, 40)
        _later(env, at, network.link_down, host, n)
        _later(env, at + rng.uniform(0, 5), network.link_up, host, n)
    env.run()
    return _balance(network, records)


def _later(env: simpy.Environment, at: float, act: Callable, *arguments: Any) -> None:
    env.timeout(float(at)).callbacks.append(lambda _: act(*arguments))


def _balance(network: Network, transfers: list[dict[str, Any]]) -> list[Row]:
    totals = network.totals()
    whole = sum(t["nbytes"] for t in transfers if t["status"] == "delivered")
    lost = sum(t["status"] == "lost" for t in transfers)
    where, sent = f"{len(transfers)} transfers, {lost} of them lost", float(totals.sent.sum())
    return [
        _row(f"{where}: received", float(totals.received.sum()), sent, "received = sent"),
        _row(
            f"{where}: delivered whole, and wasted",
            float(whole + totals.wasted.sum()),
            sent,
            "sent = delivered + wasted",
        ),
    ]


def _run(start: Start, fidelity: str) -> tuple[Network, Collective]:
    """A collective that two members leave."""
    graph = star(_MEMBERS, bandwidth=1e6, latency=0.01)
    env, network = simpy.Environment(), Network(graph, collectives=fidelity, detection=1.0)
    network.attach(env)
    collective = start(network)
    for member, at in _LOSSES:
        _later(env, at, network.leave, member)
    env.run(collective)
    return network, collective


def _heard(name: str, start: Start) -> Row:
    network, collective = _run(start, "flows")
    totals = network.totals()
    arrived = _PAYLOAD * len(collective.heard) + float(totals.wasted.sum())
    what = f"{name} of {_MEMBERS} that {len(_LOSSES)} leave: payloads heard, and wasted"
    return _row(what, arrived, float(totals.sent.sum()), "sent = delivered + wasted")


def _reduction(fidelity: str) -> Row:
    network, _ = _run(lambda net: net.all_reduce(range(_MEMBERS), 10 * _PAYLOAD), fidelity)
    totals = network.totals()
    what = f"ring all-reduce of {_MEMBERS} that {len(_LOSSES)} leave, {fidelity}: received"
    return _row(what, float(totals.received.sum()), float(totals.sent.sum()), "received = sent")
