"""The idealised wall-clock model of Scaling Laws for DiLoCo (arXiv 2503.09799, appendix A).

An all-reduce of N values (16 bits each) over R chips that reach W bits/s takes
2 N / W (1 - 1/R) + eps. Data-parallel training pays it across data centres in every step; DiLoCo
with M >= 2 replicas pays it inside each data centre, over R / M chips of the fastest network, in
every step, and across all R in every H-th.

Ours are rings on the event simulator: every chip has private links, and the latency of a whole
all-reduce is spread over its 2 (R - 1) hops.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import simpy

from experiments.validate.columns import DATA, Line, read
from experiments.validate.row import Row
from sim.network.network import Network
from topologies import star

COLUMNS = ("archetype", "bandwidth_gbit_s", "latency_s")
_EXACT, _FLOWS = 1e-9, 0.01
_SOURCE = "arXiv 2503.09799, app. A: 2N/W (1 - 1/R) + eps"
_PARAMETERS, _CHIPS, _REPLICAS, _INNER_STEPS = 10**9, 16, 4, 30


@dataclass(frozen=True)
class Archetype:
    """A network: bytes/s of each chip, and seconds of latency of a whole all-reduce."""

    name: str
    bandwidth: float
    latency: float

    def seconds(self, chips: int) -> float:
        """The paper's time of an all-reduce of bf16 gradients."""
        return 2.0 * 2.0 * _PARAMETERS / self.bandwidth * (1.0 - 1.0 / chips) + self.latency

    def simulated(self, chips: int, collectives: str) -> float:
        """The same as a ring on the event simulator."""
        hop = self.latency / (2 * (chips - 1))
        graph = star(chips, bandwidth=self.bandwidth, latency=hop / 2)
        env, network = simpy.Environment(), Network(graph, collectives=collectives)
        network.attach(env)
        env.run(network.all_reduce(range(chips), 2.0 * _PARAMETERS))
        return float(env.now)


def rows() -> list[Row]:
    """The published archetypes."""
    return judge(DATA / "wallclock_network_archetypes.csv")


def judge(path: str | Path) -> list[Row]:
    """For each archetype: an all-reduce in both fidelities; DiLoCo per step across it.

    Raises:
        ValueError: an impossible value; names file, row and column.
    """
    found = [_archetype(line) for line in read(path)]
    inside = max(found, key=lambda archetype: archetype.bandwidth)
    return [row for archetype in found for row in _rows(archetype, inside)]


def _archetype(line: Line) -> Archetype:
    bandwidth = line.number("bandwidth_gbit_s", positive=True)
    return Archetype(line.text("archetype"), 1e9 / 8 * bandwidth, line.number("latency_s"))


def _rows(across: Archetype, inside: Archetype) -> list[Row]:
    law = across.seconds(_CHIPS)
    per_step = inside.seconds(_CHIPS // _REPLICAS) + law / _INNER_STEPS
    macro, flows = (across.simulated(_CHIPS, kind) for kind in ("coupled", "flows"))
    here = inside.simulated(_CHIPS // _REPLICAS, "flows") + flows / _INNER_STEPS
    name, what = across.name, f"all-reduce of 1B parameters over {_CHIPS} chips"
    diloco = f"DiLoCo, {_REPLICAS} replicas, H = {_INNER_STEPS}: communication per step"
    return [
        Row(f"{name} network: {what}, macro (s)", macro, law, _EXACT, _SOURCE, "formula"),
        Row(f"{name} network: {what}, flows (s)", flows, law, _FLOWS, _SOURCE, "formula"),
        Row(f"{name} network: {diloco} (s)", here, per_step, _FLOWS, _SOURCE, "formula"),
    ]
