"""Where the wall time of a demo cell goes, and whether batching beats a loop over nodes.

Cells of `experiment=first_light`, shortened: the same nodes, task, network and evaluations per
step. The loop is what one would write by hand: a module and a fused AdamW per node, one thread,
the same batches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from experiments.assemble import assemble
from experiments.bench.row import Row
from experiments.cells import read
from experiments.experiment import Experiment
from experiments.tasks.markov import MarkovLanguage
from sim.profile import CAUSES

CELLS = (("all_reduce", "datacenter"), ("diloco", "homes"), ("demo", "datacenter"))
STEPS, REPEATS, LOOP_STEPS = 100, 3, 5


@dataclass(frozen=True)
class _Run:
    """One run of a cell: shares of wall time by cause, rates per wall second."""

    shares: dict[str, float]
    node_steps: float
    simulated: float


def rows(quick: bool = False) -> list[Row]:
    """The split of each cell's wall time, its speed beside the loop's, and simulated time.

    `quick` is one cell, a few steps, once.
    """
    cells, steps, repeats = (CELLS[:1], 5, 1) if quick else (CELLS, STEPS, REPEATS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row for cell in cells for row in _cell(*cell, steps, repeats)]
    finally:
        torch.set_num_threads(threads)


def _cell(strategy: str, place: str, steps: int, repeats: int) -> list[Row]:
    name, runs, loops = f"{strategy}, {place}", [], []
    _run(strategy, place, steps)  # the first run of a process also pays for torch's start
    for _ in range(repeats):
        runs.append(_run(strategy, place, steps))
        loops.append(_loop(strategy, place))
    made = [
        _row(f"{name}: {cause}", "share of wall time", runs, partial(_share, cause))
        for cause in CAUSES
    ]
    other = _row(
        f"{name}: everything but gradients",
        "share of wall time",
        runs,
        lambda run: 1.0 - run.shares["gradients"],
    )
    speed = _row(f"{name}: whole run", "node-steps/s", runs, lambda run: run.node_steps)
    loop = replace(speed, baseline=statistics.median(loops), baseline_name="loop, fused AdamW")
    clock = _row(f"{name}: clock", "simulated s per wall s", runs, lambda run: run.simulated)
    return [*made, replace(other, target="<= 0.25"), loop, clock]


def _share(cause: str, run: _Run) -> float:
    return run.shares[cause]


def _row(name: str, unit: str, runs: list[_Run], value: Callable[[_Run], float]) -> Row:
    values = [value(run) for run in runs]
    median = statistics.median(values)
    spread = (max(values) - min(values)) / 2 / median if median else None
    return Row(name, unit, median, spread=spread)


def _experiment(strategy: str, place: str, steps: int = STEPS) -> Experiment:
    """A cell with fewer steps, and as many evaluations per step as the whole has."""
    (cell,) = read(["experiment=first_light", f"strategy={strategy}", f"place={place}"]).cells
    experiment = assemble(cell.cfg)
    whole = experiment.budget.steps or steps
    short = replace(experiment.budget, steps=min(steps, whole))
    evaluations = max(1, round(experiment.evaluations * steps / whole))
    return replace(experiment, budget=short, evaluations=evaluations)


def _run(strategy: str, place: str, steps: int) -> _Run:
    experiment = _experiment(strategy, place, steps)
    trace = experiment.run()
    total, last = experiment.profile["total"], trace.rows("metric")[-1]
    shares = {cause: experiment.profile[cause] / total for cause in CAUSES}
    return _Run(shares, last["node_steps"] / total, last["time"] / total)


def _loop(strategy: str, place: str) -> float:
    """Node-steps per second of a module and an optimizer per node, one after the other."""
    experiment = _experiment(strategy, place)
    sim, task = experiment.build(), experiment.task
    assert isinstance(task, MarkovLanguage)
    nodes = np.arange(sim.fleet.n_nodes)
    models = [task.module(sim.fleet.initial) for _ in nodes]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01, fused=True) for model in models]
    started = time.perf_counter()
    for step in range(LOOP_STEPS):
        batch = task.batch(nodes, np.full(len(nodes), step))
        for model, optimizer, tokens in zip(models, optimizers, batch):
            optimizer.zero_grad()
            logits = model(tokens[:, :-1])[:, 1:]
            F.cross_entropy(logits.flatten(0, 1), tokens[:, 2:].flatten()).backward()
            optimizer.step()
    return LOOP_STEPS * len(nodes) / (time.perf_counter() - started)
