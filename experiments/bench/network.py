"""The network engine: as exact as SimGrid and faster, and what it costs at 100,000 nodes.

- `experiments.bench.networks.speed`: 10,000 flows at once on raw links, beside SimGrid.
- `experiments.bench.networks.agreement`: finish times, beside SimGrid's files.
- `experiments.bench.networks.closed_loop`: every node a simpy process that sends again at once.
  Judged as a ratio to simpy's bare timeouts with as many processes: what 60,000 and 45,000 flows
  per second are of the timeouts that an idle machine does, some 510,000 with 10,000 processes
  and 250,000 with 100,000.
- `experiments.bench.networks.collectives`: coupled against stepwise, and what a call costs.

About six minutes on two cores, most of them SimGrid's.
"""

from __future__ import annotations

import time

import numpy as np
import simpy

from experiments.bench.networks import agreement, closed_loop, collectives, loads, rival, speed
from experiments.bench.networks.closed_loop import Loop
from experiments.bench.row import Row, row
from sim.network.fluid import Links

NODES = (1_000, 3_000, 10_000, 30_000, 100_000)
"""Of the closed loops; `experiments.bench.networks.figure` shows how the cost grows."""
TARGETS = {10_000: ">= 0.12", 100_000: ">= 0.18"}
"""Flows over bare timeouts: 60,000 / 510,000 and 45,000 / 250,000."""
COST = "closed loop: cost per flow"
LATENCY = 0.02
_MB = 1e6


def rows(quick: bool = False) -> list[Row]:
    """All of them; `quick` makes everything tiny: it shows that they run, not how fast."""
    made = [_start()]
    made += agreement.rows(agreement.files()[:2] if quick else agreement.files())
    made += collectives.agreement((4,) if quick else collectives.SIZES)
    made += collectives.costs(8, 1) if quick else collectives.costs()
    made += closed_loops((10, 20, 40), quick) if quick else closed_loops(NODES)
    simgrid, patience = rival.find(), speed.Patience()
    for case in speed.CASES:
        if quick:
            case = speed.Case(case.make, 20, 50, case.target, case.approximate_target)
        made += speed.rows(case, simgrid, patience)
    return made


def closed_loops(nodes: tuple[int, ...], quick: bool = False) -> list[Row]:
    """Flows per second, memory, and how the cost of a flow grows with the number of nodes."""
    loops = [closed_loop.measure(n, max(2 * n, 100 if quick else 50_000), 3) for n in nodes]
    made = [_cost(loop) for loop in loops]
    made += [_rate(loop, "no latency", target) for loop in loops if (target := _target(loop))]
    largest, base = loops[-1], loops[-3]
    growth = f"{COST}, {largest.nodes:,} nodes over {base.nodes:,}"
    more, less = ([1e6 / rate for rate in loop.flows] for loop in (largest, base))
    made.append(row(growth, "us", more, less, f"ours, {base.nodes:,} nodes", "<= 2"))
    name = f"closed loop: {largest.nodes:,} nodes"
    made.append(row(f"{name}, peak memory", "MB", [largest.peak / _MB], target="<= 500"))
    made.append(row(f"{name}, network made from its graph", "s", [largest.build]))
    share = f"closed loop: {base.nodes:,} nodes, in the solver"
    made.append(row(share, "share of wall time", base.solving))
    late = closed_loop.measure(base.nodes, 2 * base.nodes, 3, LATENCY)
    return [*made, _rate(late, f"{1e3 * LATENCY:g} ms latency", None)]


def _target(loop: Loop) -> str | None:
    return TARGETS.get(loop.nodes)


def _cost(loop: Loop) -> Row:
    return row(f"{COST}, {loop.nodes:,} nodes", "us", [1e6 / rate for rate in loop.flows])


def _rate(loop: Loop, what: str, target: str | None) -> Row:
    name = f"closed loop: {loop.nodes:,} nodes, {what}"
    return row(name, "flows/s", loop.flows, loop.timeouts, "simpy's bare timeouts/s", target)


def _start() -> Row:
    """The first flow of a process: compiled code is made, or loaded from the disk."""
    env = simpy.Environment()
    began = time.perf_counter()
    Links(env, np.ones(2)).activity([0, 1], 1.0)
    env.run()
    seconds = time.perf_counter() - began
    for run in (speed.by_simpy, speed.batch):
        run(loads.private_access(50, 20))
    return row("first flow of a process, compiled code made or loaded", "s", [seconds])
