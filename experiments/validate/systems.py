"""Numbers of systems that have run: INTELLECT-1's utilisation, DisTrO's volumes and latencies."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import simpy

from experiments.validate.columns import DATA, Line, read
from experiments.validate.row import Row
from sim.compute.layout import Layout
from sim.network.network import Network
from sim.payload import Dense

MEASURED_CU = (
    "scenario",
    "inner_steps",
    "inner_phase_minutes",
    "median_allreduce_s",
    "published_cu_percent",
)
_INTELLECT = "INTELLECT-1, arXiv 2412.01152, table 2"
_DISTRO = "DisTrO report, table 3 and section 3.1"
_POINT = 0.1
"""Percentage points: what the column is printed to."""
_PARAMETERS, _PAYLOAD, _NODES = 1_200_000_000, 2.8e6, 32
"""Of DisTrO's run; the payload in bytes of one node and step is what its report states."""


def rows() -> list[Row]:
    """INTELLECT-1's column; DisTrO's volumes and latencies."""
    return [*judge(DATA / "measured_cu_intellect1_table2.csv"), *_volumes(), *_latencies()]


def judge(path: str | Path) -> list[Row]:
    """Utilisation in percent from the minutes of local steps and the seconds of an all-reduce.

    Raises:
        ValueError: a value is impossible; names file, row and column.
    """
    return [_utilisation(line) for line in read(path)]


def _utilisation(line: Line) -> Row:
    inner = 60.0 * line.number("inner_phase_minutes", positive=True)
    reduce = line.optional("median_allreduce_s") or 0.0
    return Row(
        f"{line.text('scenario')}: utilisation (%)",
        100.0 * rounds(inner, reduce),
        line.number("published_cu_percent", 0.0, 100.0),
        _POINT,
        _INTELLECT,
        "published",
        relative=False,
    )


def rounds(inner: float, reduce: float) -> float:
    """Utilisation on the clock: rounds of `inner` seconds of steps, then `reduce` of blocking."""
    env, computed = simpy.Environment(), 0.0

    def training() -> Generator[simpy.Event, Any, None]:
        nonlocal computed
        for _ in range(3):
            yield env.timeout(inner)
            computed += inner
            yield env.timeout(reduce)

    env.run(env.process(training()))
    return computed / env.now


def _volumes() -> list[Row]:
    """What each of 32 nodes receives in a step: everybody's gradient, or everybody's payload."""
    dense = Dense("bfloat16").nbytes(Layout.flat(_PARAMETERS))
    full, small = _received(dense), _received(_PAYLOAD)
    published = {line.text("method"): line for line in read(DATA / "volume_distro_table3.csv")}
    plain, distro = published["AllReduce AdamW"], published["DisTrO AdamW"]
    what = "each of 32 nodes receives per step"
    return [
        _row(f"dense bf16, 1.2B parameters: {what} (GB)", full / 1e9, plain, 0.05),
        _row(f"2.8 MB payloads: {what} (MB)", small / 1e6, distro, 0.05),
        Row(
            "dense over 2.8 MB payloads: ratio of bytes received",
            full / small,
            distro.number("reduction"),
            0.5,
            _DISTRO,
            "published",
            relative=False,
        ),
    ]


def _row(what: str, ours: float, line: Line, tolerance: float) -> Row:
    published = line.number("receive_per_step", positive=True)
    return Row(what, ours, published, tolerance, _DISTRO, "published", relative=False)


def _received(nbytes: float) -> float:
    """Bytes that one node received in an all-gather, counted by the network."""
    network = _hub(_NODES, 1e9, 1e9)
    network.env.run(network.all_gather(range(_NODES), nbytes, algorithm="mesh"))
    received = network.totals().received[:_NODES]
    assert np.allclose(received, received[0])
    return float(received[0])


def _latencies() -> list[Row]:
    """Home links: a payload goes up once, and those of the 31 others come down."""
    published = {x.text("quantity"): x for x in read(DATA / "latency_distro_section3_1.csv")}
    up, down = 10e6 / 8, 100e6 / 8
    network = _hub(2, up, down)  # the second host stands for the others, on a fast line
    network.set_bandwidth(1, 2, 1e12)
    network.set_bandwidth(2, 1, 1e12)
    ends: dict[str, float] = {}

    def ended(name: str, _: simpy.Event) -> None:
        ends[name] = network.env.now

    jobs = {"upload time at 10 Mbit/s": (0, 1, _PAYLOAD)}
    jobs["download time at 100 Mbit/s"] = (1, 0, (_NODES - 1) * _PAYLOAD)
    for name, (src, dst, nbytes) in jobs.items():
        transfer = network.transfer(src, dst, nbytes)
        transfer.callbacks.append(partial(ended, name))
    network.env.run()
    return [
        Row(
            f"{name}, both at once (s)",
            ends[name],
            published[name].number("value", positive=True),
            0.005,
            _DISTRO,
            "published",
            relative=False,
        )
        for name in jobs
    ]


def _hub(n: int, up: float, down: float) -> Network:
    """Hosts on one router, no latency."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(n), kind="host")
    graph.add_node(n, kind="router")
    for host in range(n):
        graph.add_edge(host, n, bandwidth=up, latency=0.0)
        graph.add_edge(n, host, bandwidth=down, latency=0.0)
    network = Network(graph)
    network.attach(simpy.Environment())
    return network
