"""The problem of golden files and its inner optimizers in plain numpy, with gradients by hand.

Legend: T steps, N workers, B examples.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("W1", "b1", "W2", "b2")
Arrays = list[np.ndarray]


@dataclass
class Problem:
    """`tanh(x W1^T + b1) W2^T + b2` on T batches of N workers, whose targets differ mildly.

    Args:
        shape: inputs, hidden units, outputs.
        dead: hidden units whose weights and gradients are zero throughout.
    """

    T: int
    N: int
    shape: tuple[int, int, int] = (5, 6, 3)
    B: int = 4
    dtype: str = "float64"
    seed: int = 0
    dead: tuple[int, ...] = ()
    init: Arrays = field(init=False)

    def __post_init__(self) -> None:
        rng, (i, h, o) = np.random.default_rng(self.seed), self.shape
        shapes = ((h, i), (h,), (o, h), (o,))
        self.init = [(0.5 * rng.standard_normal(s)).astype(self.dtype) for s in shapes]
        self._still(self.init)
        self.X = rng.standard_normal((self.T, self.N, self.B, i)).astype(self.dtype)
        offsets = 0.3 * rng.standard_normal((self.N, 1, o))
        y = np.sin(self.X @ rng.standard_normal((i, o))) + offsets
        self.Y = y.astype(self.dtype)

    def loss_and_grads(self, params: Arrays, t: int, n: int) -> tuple[float, Arrays]:
        """On the batch of a worker at a step."""
        (W1, b1, W2, b2), x, y = params, self.X[t, n], self.Y[t, n]
        hidden = np.tanh(x @ W1.T + b1)
        off = hidden @ W2.T + b2 - y
        back = off * (2 / off.size)
        inside = (back @ W2) * (1 - hidden * hidden)
        grads = [inside.T @ x, inside.sum(0), back.T @ hidden, back.sum(0)]
        self._still(grads)
        return float((off * off).mean()), grads

    def _still(self, tensors: Arrays) -> None:
        for unit in self.dead:
            tensors[0][unit], tensors[1][unit], tensors[2][:, unit] = 0, 0, 0


class Inner:
    """Steps of SGD, Adam or AdamW on the tensors of one worker, by the formulas of their papers."""

    def __init__(self, kind: str, lr: float, **options: Any) -> None:
        self.kind, self.lr, self.options = kind, lr, options
        self.first: Arrays | None = None
        self.second: Arrays = []
        self.age = 0

    def step(self, params: Arrays, grads: Arrays) -> Arrays:
        self.age += 1
        zeros = [np.zeros_like(g) for g in grads]
        self.first, self.second = self.first or zeros, self.second or zeros
        if self.kind == "sgd":
            mu, ahead = self.options.get("momentum", 0.0), self.options.get("nesterov", False)
            self.first = [mu * m + g for m, g in zip(self.first, grads)]
            moves = [g + mu * m if ahead else m for m, g in zip(self.first, grads)]
            return [p - self.lr * move for p, move in zip(params, moves)]
        (b1, b2), eps = self.options["betas"], self.options["eps"]
        self.first = [b1 * m + (1 - b1) * g for m, g in zip(self.first, grads)]
        self.second = [b2 * v + (1 - b2) * g * g for v, g in zip(self.second, grads)]
        kept, new = 1 - self.lr * self.options.get("weight_decay", 0.0), []
        for p, m, v in zip(params, self.first, self.second):
            square = np.sqrt(v / (1 - b2**self.age))
            new.append(kept * p - self.lr * (m / (1 - b1**self.age)) / (square + eps))
        return new


class Tape:
    """Arrays of a file as they come, by tensor and name; stacked when it is written."""

    def __init__(self, names: tuple[str, ...] = NAMES) -> None:
        self.names = names
        self._found: dict[str, list[Any]] = {}

    def add(self, what: str, *values: Any) -> None:
        """One value for each of some tensors: `(name, value)` pairs, or a list for all of them."""
        pairs = zip(self.names, values[0]) if isinstance(values[0], list) else values
        for name, value in pairs:
            self._found.setdefault(f"{name}_{what}", []).append(value)

    def add_workers(self, what: str, each: list[Arrays]) -> None:
        """The tensors of N workers."""
        self.add(what, [np.stack(tensor) for tensor in zip(*each)])

    def arrays(self) -> dict[str, np.ndarray]:
        return {key: np.stack(values) for key, values in self._found.items()}


def write(path: Path, meta: dict[str, Any], problem: Problem | None, **arrays: np.ndarray) -> Path:
    """A file of that layout."""
    if problem is not None:
        arrays |= {f"{name}_init": start for name, start in zip(NAMES, problem.init)}
        arrays |= {"X": problem.X, "Y": problem.Y}
    np.savez(path, meta=np.array(json.dumps(meta)), **arrays)
    return path
