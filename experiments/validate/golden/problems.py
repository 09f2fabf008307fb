"""The small problems that case files were made on, and experiments on them.

Legend: T steps, N nodes, n of a batch, B examples, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.experiment import Experiment
from experiments.validate.golden.case import Case
from experiments.validate.row import Row
from optimizers.schedule import Schedule
from sim.budget import Budget
from sim.compute.layout import Layout
from sim.compute.options import ComputeOptions
from sim.compute.task import Task
from sim.strategy import Strategy
from topologies import complete

_SUMMED = 4
"""In float32 a gradient, a sum of many products, is off by so many times what a value is."""


@dataclass(frozen=True)
class Listed(Schedule):
    """The factors of a file, by age."""

    factors: Tensor

    def factor(self, age: Tensor) -> Tensor:
        return self.factors.double()[age]


class Regression(Task):
    """Mean squared error of `tanh(x W1^T + b1) W2^T + b2`, in the type of its data.

    Args:
        x, y: inputs [T, N, B, in] and targets [T, N, B, out]; after T steps they come again.
        layout, start: the tensors of the model and their initial values [P]; which of the two
            matrices is W1, and which of the two vectors b1, is told by their shapes.
    """

    def __init__(self, x: Tensor, y: Tensor, layout: Layout, start: Tensor) -> None:
        self.layout, self._x, self._y, self._start = layout, x, y, start
        self._roles = roles(layout, x.shape[-1], y.shape[-1])
        self.tokens_per_step, self.flops_per_token = x.shape[2], 6.0 * layout.numel

    @classmethod
    def of(cls, case: Case) -> Regression:
        """The problem of a case file."""
        return cls(case["X"], case["Y"], case.layout, case.flat("init"))

    @staticmethod
    def fits(case: Case) -> bool:
        """Whether a file has batches, and the tensors of this model."""
        ranks = sorted(len(shape) for shape in case.layout.shapes.values())
        return "X" in case and "Y" in case and ranks == [1, 1, 2, 2]

    @classmethod
    def drawn(cls, n_nodes: int, steps: int = 8) -> Regression:
        """A problem of 3 inputs, 4 hidden units and 2 outputs with other targets on each node."""
        rng = np.random.default_rng(0)
        layout = Layout({"W1": (4, 3), "b1": (4,), "W2": (2, 4), "b2": (2,)})
        x = rng.standard_normal((steps, n_nodes, 5, 3))
        offsets = 0.3 * rng.standard_normal((n_nodes, 1, 2))
        y = torch.from_numpy(np.tanh(x[..., :2]) + offsets)
        start = 0.5 * rng.standard_normal(layout.numel)
        return cls(torch.from_numpy(x), y, layout, torch.from_numpy(start))

    def bind(self, seed: int, n_nodes: int) -> None:
        _check_nodes(n_nodes, self._x.shape[1])

    def init(self, generator: torch.Generator) -> Tensor:
        return self._start.clone()

    def batch(self, nodes: np.ndarray, steps: np.ndarray) -> tuple[Tensor, Tensor]:
        step, node = torch.from_numpy(steps % len(self._x)), torch.from_numpy(nodes)
        return self._x[step, node], self._y[step, node]

    def loss(self, params: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        (x, y), model = batch, self.layout.views(params)
        W1, b1, W2, b2 = (model[name] for name in self._roles)
        hidden = torch.tanh(x @ W1.T + b1)
        return (hidden @ W2.T + b2 - y).square().mean()

    def evaluate(self, params: Tensor, buffers: Tensor | None = None) -> dict[str, float]:
        return {"loss": float(self.loss(params, (self._x, self._y)))}


class Forced(Task):
    """Gradients that are given, [T, N, P]: the loss is their product with the parameters.

    After T steps they come again.
    """

    def __init__(self, gradients: Tensor, layout: Layout, start: Tensor) -> None:
        self.layout, self._gradients, self._start = layout, gradients, start
        self.tokens_per_step, self.flops_per_token = 1, 6.0 * layout.numel

    @classmethod
    def of(cls, case: Case) -> Forced:
        """The gradients of a golden file."""
        return cls(case.flat("grad"), case.layout, case.flat("init"))

    def bind(self, seed: int, n_nodes: int) -> None:
        _check_nodes(n_nodes, self._gradients.shape[1])

    def init(self, generator: torch.Generator) -> Tensor:
        return self._start.clone()

    def batch(self, nodes: np.ndarray, steps: np.ndarray) -> Tensor:
        steps = steps % len(self._gradients)
        return self._gradients[torch.from_numpy(steps), torch.from_numpy(nodes)]

    def loss(self, params: Tensor, batch: Tensor) -> Tensor:
        return (params * batch).sum()

    def evaluate(self, params: Tensor, buffers: Tensor | None = None) -> dict[str, float]:
        return {"loss": float(params.norm())}


class Logistic(Task):
    """`log(1 + exp(-y a.x)) + regularizer / 2 |x|^2` on one sample per node and step."""

    def __init__(self, case: Case) -> None:
        self._a, self._y, self._chosen = case["A"], case["y"], case["sample_idx"]
        self._regularizer = case.given("regularizer", 0.0) or 0.0
        self.layout = Layout({"x": (self._a.shape[1],)})
        self.tokens_per_step, self.flops_per_token = 1, 6.0 * self.layout.numel

    def bind(self, seed: int, n_nodes: int) -> None:
        _check_nodes(n_nodes, self._chosen.shape[1])

    def init(self, generator: torch.Generator) -> Tensor:
        return torch.zeros(self.layout.numel, dtype=self._a.dtype)

    def batch(self, nodes: np.ndarray, steps: np.ndarray) -> tuple[Tensor, Tensor]:
        sample = self._chosen[torch.from_numpy(steps), torch.from_numpy(nodes)]
        return self._a[sample], self._y[sample]

    def loss(self, params: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        a, y = batch
        penalty = self._regularizer / 2 * params.square().sum()
        return penalty - torch.nn.functional.logsigmoid(y * (a @ params))

    def evaluate(self, params: Tensor, buffers: Tensor | None = None) -> dict[str, float]:
        return {"loss": float(self.loss(params, (self._a, self._y)).mean())}


def experiment(
    case: Case, task: Task, strategy: Strategy, steps: int = 0, **parts: Any
) -> Experiment:
    """The workers of a case on a complete graph, for as many steps as it has or is said.

    A whole run, with a network, devices and a coordinator: the values must not notice.
    """
    alone = ComputeOptions(workers=1)  # recorders see all nodes of a step in one call
    budget, graph = Budget(steps=steps or case.steps), complete(case.workers)
    return Experiment(task, graph, strategy, budget=budget, compute=alone, **parts)


def task_of(case: Case) -> Task:
    """The gradients of a file; its problem if it has none.

    So that nothing is made of the rounding of a gradient: by Adam where it is small, by the sign
    of DeMo. What the problem's gradients are, `passed` checks apart.
    """
    alone = Regression.fits(case) and not has_gradients(case)
    return Regression.of(case) if alone else Forced.of(case)


def has_gradients(case: Case) -> bool:
    """Whether a file has those of its tensors."""
    return any(f"{name}_grad" in case for name in case.tensors)


def passed(case: Case, before: Tensor, still: Tensor | None = None) -> Iterator[Row]:
    """Gradients and losses of the problem at the parameters before each step, beside the file's.

    Args:
        before: [T, N, P].
        still: bool [P], where gradients are zero by decree.
    """
    if not Regression.fits(case):
        return
    T, N, _ = before.shape
    sizes = [tuple(case[name].shape) for name in ("X", "Y")]
    if any(len(size) != 4 or size[:3] != (T, N, sizes[0][2]) for size in sizes):
        raise ValueError(
            f"{case.name}: X and Y have the shapes {sizes}: must be [{T}, {N}, B, ...]"
        )
    batches = case["X"].flatten(0, 1).double(), case["Y"].flatten(0, 1).double()
    slopes = torch.func.vmap(torch.func.grad_and_value(Regression.of(case).loss))
    grads, losses = slopes(before.flatten(0, 1).double(), batches)
    if still is not None:
        grads = grads.masked_fill(still, 0)
    rough = 1 if case.dtype == torch.float64 else _SUMMED
    if has_gradients(case):
        theirs = case.flat("grad")
        yield case.compare("grad", grads.view_as(before), theirs, rough * case.accepts(theirs))
    if "loss" in case:
        losses, theirs = losses.view(T, N), case["loss"]
        yield case.compare("loss", losses, theirs, rough * case.accepts(theirs))


def roles(layout: Layout, inputs: int, outputs: int) -> tuple[str, str, str, str]:
    """Names of W1, b1, W2 and b2; in the order of the layout where shapes leave it open."""
    shapes = layout.shapes
    matrices, vectors = ([k for k in shapes if len(shapes[k]) == rank] for rank in (2, 1))
    for W1, W2 in permutations(matrices):
        for b1, b2 in permutations(vectors):
            (hidden,), needed = shapes[b1], shapes[b2] == (outputs,)
            if needed and (shapes[W1], shapes[W2]) == ((hidden, inputs), (outputs, hidden)):
                return W1, b1, W2, b2
    raise ValueError(
        f"tensors of {list(shapes.values())} are no model of {inputs} inputs and {outputs} outputs"
    )


def _check_nodes(n_nodes: int, given: int) -> None:
    if n_nodes != given:
        raise ValueError(
            f"meta.workers={n_nodes}, but there is data of {given}: they do not belong together"
        )
