"""The baseline: a loop over separate models, each with an optimizer of its own.

The strongest thing that one would write by hand: torch modules, `AdamW(fused=True)`, one thread
per process, data drawn beforehand (ours draws its data while it is measured).
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.bench.fleets.cases import LOCAL, Case
from experiments.bench.fleets.timing import seconds
from experiments.tasks.module_task import ModuleTask


def loop(task: ModuleTask, nodes: int) -> Callable[[], None]:
    """One step of every model, as a function to be timed."""
    initial = task.init(torch.Generator().manual_seed(0))
    models = [task.module(initial) for _ in range(nodes)]
    made = [
        torch.optim.AdamW(m.parameters(), lr=LOCAL.lr, betas=LOCAL.betas, fused=True)
        for m in models
    ]
    ids = np.arange(nodes)
    inputs, targets = _labelled(task, task.batch(ids, np.zeros_like(ids)))

    @torch.enable_grad()
    def step() -> None:
        for model, optimizer, x, y in zip(models, made, inputs, targets):
            optimizer.zero_grad()
            F.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
            optimizer.step()

    return step


def _labelled(task: ModuleTask, batch: Any) -> tuple[Tensor, Tensor]:
    labelled = task.labelled(batch)
    assert labelled is not None, "a task of the benchmark is mean cross-entropy"
    return labelled


class LoopOnAllCores:
    """The loop in as many processes as there are cores, each with its part of the models.

    Args:
        case: the model.
        nodes: of all processes together.
        cores: processes.
    """

    def __init__(self, case: Case, nodes: int, cores: int) -> None:
        self._cores, self._nodes = cores, nodes - nodes % cores
        context = multiprocessing.get_context("spawn")
        self._pools = [
            ProcessPoolExecutor(1, context, _prepare, (case, nodes // cores)) for _ in range(cores)
        ]

    def rate(self) -> float:
        """Node-steps per second of all processes together, in one pass over all models."""
        jobs = [pool.submit(_step) for pool in self._pools]
        return self._nodes / max(job.result() for job in jobs)

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools:
            pool.shutdown()


_STEPS: list[Callable[[], None]] = []


def _prepare(case: Case, nodes: int) -> None:
    torch.set_num_threads(1)
    _STEPS.append(loop(case.task(nodes), nodes))
    _STEPS[0]()


def _step() -> float:
    return seconds(_STEPS[0])
