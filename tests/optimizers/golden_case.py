"""Golden files of `tests/golden`, and the small problems in float64 that they were made on.

Legend: T steps, N nodes, n of a batch, B examples, P parameters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optimizers.schedule import Schedule
from sim.compute.layout import Layout
from sim.compute.task import Task

GOLDEN = Path(__file__).parents[1] / "golden"
TENSORS = ("W1", "b1", "W2", "b2")


class Golden:
    """A golden file: its arrays as tensors, its `meta`, and the layout of its model."""

    def __init__(self, name: str) -> None:
        with np.load(GOLDEN / f"{name}.npz") as stored:
            self.meta: dict[str, Any] = json.loads(str(stored["meta"]))
            self._arrays = {k: torch.from_numpy(stored[k]) for k in stored if k != "meta"}
        given = [name for name in TENSORS if f"{name}_init" in self._arrays]
        self.layout = Layout({name: self[f"{name}_init"].shape for name in given})

    def __getitem__(self, key: str) -> Tensor:
        return self._arrays[key]

    def flat(self, what: str, names: Sequence[str] = TENSORS) -> Tensor:
        """`{tensor}_{what}` of these tensors side by side, `[..., P]`."""
        first = self[f"{names[0]}_{what}"]
        leading = first.dim() - len(self.layout.shapes[names[0]])
        tensors = {name: self[f"{name}_{what}"] for name in names}
        return self.layout.select(names).flatten(tensors, batch_dims=leading)


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
        layout, start: the tensors of the model and their initial values [P].
    """

    def __init__(self, x: Tensor, y: Tensor, layout: Layout, start: Tensor) -> None:
        self.layout, self._x, self._y, self._start = layout, x, y, start
        self.tokens_per_step, self.flops_per_token = x.shape[2], 6.0 * layout.numel

    @classmethod
    def of(cls, golden: Golden) -> Regression:
        """The problem of a golden file."""
        return cls(golden["X"], golden["Y"], golden.layout, golden.flat("init"))

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
        assert n_nodes == self._x.shape[1]

    def init(self, generator: torch.Generator) -> Tensor:
        return self._start.clone()

    def batch(self, nodes: np.ndarray, steps: np.ndarray) -> tuple[Tensor, Tensor]:
        step, node = torch.from_numpy(steps % len(self._x)), torch.from_numpy(nodes)
        return self._x[step, node], self._y[step, node]

    def loss(self, params: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        (x, y), model = batch, self.layout.views(params)
        hidden = torch.tanh(x @ model["W1"].T + model["b1"])
        return (hidden @ model["W2"].T + model["b2"] - y).square().mean()

    def evaluate(self, params: Tensor) -> dict[str, float]:
        return {"loss": float(self.loss(params, (self._x, self._y)))}


class Forced(Task):
    """Gradients that are given, [T, N, P]: the loss is their product with the parameters."""

    def __init__(self, gradients: Tensor, layout: Layout, start: Tensor) -> None:
        self.layout, self._gradients, self._start = layout, gradients, start
        self.tokens_per_step, self.flops_per_token = 1, 6.0 * layout.numel

    def bind(self, seed: int, n_nodes: int) -> None:
        assert n_nodes == self._gradients.shape[1]

    def init(self, generator: torch.Generator) -> Tensor:
        return self._start.clone()

    def batch(self, nodes: np.ndarray, steps: np.ndarray) -> Tensor:
        return self._gradients[torch.from_numpy(steps), torch.from_numpy(nodes)]

    def loss(self, params: Tensor, batch: Tensor) -> Tensor:
        return (params * batch).sum()

    def evaluate(self, params: Tensor) -> dict[str, float]:
        return {"loss": float(params.norm())}


class Logistic(Task):
    """`log(1 + exp(-y a.x)) + regularizer / 2 |x|^2` on one sample per node and step."""

    def __init__(self, golden: Golden) -> None:
        self._a, self._y, self._chosen = golden["A"], golden["y"], golden["sample_idx"]
        self._regularizer = golden.meta["regularizer"]
        self.layout = Layout({"x": (self._a.shape[1],)})
        self.tokens_per_step, self.flops_per_token = 1, 6.0 * self.layout.numel

    def bind(self, seed: int, n_nodes: int) -> None:
        assert n_nodes == self._chosen.shape[1]

    def init(self, generator: torch.Generator) -> Tensor:
        return torch.zeros(self.layout.numel, dtype=torch.float64)

    def batch(self, nodes: np.ndarray, steps: np.ndarray) -> tuple[Tensor, Tensor]:
        sample = self._chosen[torch.from_numpy(steps), torch.from_numpy(nodes)]
        return self._a[sample], self._y[sample]

    def loss(self, params: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        a, y = batch
        penalty = self._regularizer / 2 * params.square().sum()
        return torch.log1p(torch.exp(-y * (a @ params))) + penalty

    def evaluate(self, params: Tensor) -> dict[str, float]:
        return {"loss": float(self.loss(params, (self._a, self._y)).mean())}
