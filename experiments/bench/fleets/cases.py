"""The models that the fleet is measured with, and what is expected of each.

A case is a task with N nodes. Targets are ratios to a loop over N separate models with
`AdamW(fused=True)`: in one thread, on all cores, and with rows that nodes share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from experiments.tasks.digits import Digits
from experiments.tasks.markov import MarkovLanguage
from experiments.tasks.models import MLP
from experiments.tasks.module_task import ModuleTask
from optimizers.local import AdamW
from sim.compute.fleet import Fleet
from sim.compute.options import ComputeOptions

LOCAL = AdamW(lr=1e-3)


@dataclass(frozen=True)
class Case:
    """A model, and how many nodes hold it.

    Args:
        name: of the model.
        make: the task.
        nodes: N.
        steps: of a request, so that a measurement takes a second or more.
        one_thread, machine, shared: the ratios that are expected.
    """

    name: str
    make: Callable[[], ModuleTask]
    nodes: int
    steps: int
    one_thread: str
    machine: str
    shared: str

    def task(self, nodes: int | None = None) -> ModuleTask:
        """The task, bound."""
        task = self.make()
        task.bind(0, nodes or self.nodes)
        return task


CASES = (
    Case(
        "MLP 64-64-10",
        partial(Digits, width=64, examples=32),
        *(1024, 20, ">= 8", ">= 9", ">= 12"),
    ),
    Case(
        "MLP 64-256-256-10",
        partial(Digits, model=partial(MLP, 64, (256, 256), 10), examples=32),
        *(1024, 4, ">= 1.6", ">= 2", ">= 3"),
    ),
    Case(
        "GPT d32",
        partial(MarkovLanguage, width=32),
        *(1024, 2, ">= 2.5", ">= 2.3", ">= 2.8"),
    ),
    Case(
        "GPT d64",
        partial(MarkovLanguage, width=64),
        *(128, 4, ">= 1.8", ">= 1.8", ">= 2.2"),
    ),
    Case(
        "CNN",
        partial(Digits, model="cnn", width=12, examples=32),
        *(1024, 4, ">= 2", ">= 2.2", ">= 3.2"),
    ),
)


def fleet(task: ModuleTask, nodes: int, **options: object) -> Fleet:
    """A fleet of so many nodes, each at the initial parameters."""
    initial = task.init(torch.Generator().manual_seed(0))
    chosen = ComputeOptions(**options)  # type: ignore[arg-type]
    return Fleet(task, nodes, LOCAL, initial.to(chosen.device), task.layout, options=chosen)


def matmul_rate(size: int = 1024, repeats: int = 20) -> float:
    """FLOP/s of float32 matrix products in one thread: what a model can reach at best."""
    from experiments.bench.fleets.timing import seconds

    a = torch.rand(size, size)
    out: Tensor = torch.empty_like(a)

    def multiply() -> None:
        for _ in range(repeats):
            torch.mm(a, a, out=out)

    return 2.0 * size**3 * repeats / min(seconds(multiply) for _ in range(3))
