"""Node-steps per second of the fleet, beside the loop's, measured alternately."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from experiments.bench.fleets.cases import CASES, Case, fleet, matmul_rate
from experiments.bench.fleets.loop import LoopOnAllCores, loop
from experiments.bench.fleets.timing import seconds
from experiments.bench.row import Row, row
from sim.compute.fleet import Fleet
from sim.compute.options import available_cores

REPEATS = 5
UNIT = "node-steps/s"
COUNTS = (8, 16, 64, 256, 1024)
"""Numbers of nodes for which the loop must never win."""
_FEW = 64
"""Models of the loop that are enough to know its rate."""


def rows(quick: bool = False) -> list[Row]:
    """All cases in one thread, on all cores and with shared rows; then over numbers of nodes."""
    made = []
    for case in CASES[:1] if quick else CASES:
        nodes, repeats = (8, 1) if quick else (case.nodes, REPEATS)
        made += _case(case, nodes, repeats)
        made += _over_nodes(case, (8,) if quick else COUNTS, repeats)
    return made


def _case(case: Case, nodes: int, repeats: int) -> list[Row]:
    task, cores = case.task(nodes), available_cores()
    ours = {n: trained(fleet(task, nodes, workers=n), case.steps) for n in {1, cores}}
    shared = mean_steps(fleet(task, nodes, workers=1), case.steps)
    alone, everywhere = loop(task, nodes), LoopOnAllCores(case, nodes, cores)
    found: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):
        measured = {
            "loop": nodes / seconds(alone),
            "one": nodes * case.steps / seconds(ours[1]),
            "shared": nodes * case.steps / seconds(shared),
            "loops": everywhere.rate(),
            "all": nodes * case.steps / seconds(ours[cores]),
        }
        for key, value in measured.items() if repeat else []:  # the first pass touches the memory
            found.setdefault(key, []).append(value)
    everywhere.close()
    name, one, loops = f"{case.name}, N = {nodes:,}", "loop, one thread", f"loop, {cores} processes"
    made = [
        row(f"{name}: one thread", UNIT, found["one"], found["loop"], one, case.one_thread),
        row(f"{name}: {cores} cores", UNIT, found["all"], found["loops"], loops, case.machine),
        row(f"{name}: shared rows", UNIT, found["shared"], found["loop"], one, case.shared),
    ]
    reached = [rate * task.flops_per_step / 1e9 for rate in found["one"]]
    best = [matmul_rate() / 1e9]
    target = ">= 0.5" if case.name == "GPT d64" else None
    made.append(row(f"{name}: of matmul rate", "GFLOP/s", reached, best, "float32 matmul", target))
    return made


def _over_nodes(case: Case, counts: tuple[int, ...], repeats: int) -> list[Row]:
    """The engine that `auto` takes, beside the loop, for few and for many nodes."""
    made = []
    for nodes in counts:
        task, few = case.task(nodes), min(nodes, _FEW)
        ours, alone = trained(fleet(task, nodes, workers=1), case.steps), loop(task, few)
        rates: list[float] = []
        loops: list[float] = []
        for repeat in range(repeats + 1):
            fast, slow = nodes * case.steps / seconds(ours), few / seconds(alone)
            if repeat:
                rates.append(fast)
                loops.append(slow)
        name = f"{case.name}: any N, {nodes:,} nodes"
        made.append(row(name, UNIT, rates, loops, "loop, one thread", ">= 1"))
    return made


def trained(made: Fleet, steps: int) -> Callable[[], None]:
    """So many local steps of every node, as a function to be timed."""
    ids = np.arange(made.n_nodes)

    @torch.no_grad()
    def run() -> None:
        request = made.request(ids, steps, trains=True)
        request.due = True
        made.result(request, ids)
        made.release(ids)

    return run


def mean_steps(made: Fleet, steps: int) -> Callable[[], None]:
    """So many steps of nodes that share one row: mean gradient, one step, as in an all-reduce."""
    ids = np.arange(made.n_nodes)
    state = made.local.init(made.initial[None])

    @torch.no_grad()
    def run() -> None:
        row = made.get("params", ids)[:1].clone()
        for _ in range(steps):
            made.put("params", ids, row[0])
            request = made.request(ids, 1, trains=False)
            request.summed = True
            mean = made.total(request, ids) / len(ids)
            row = row.clone()
            made.local.step_(row, mean[None], state)
        made.put("params", ids, row[0])

    return run
