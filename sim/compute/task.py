"""Task (interface): the model that is trained, its data and its evaluation.

Legend: n nodes of a batch, B examples per node and step, P parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sim.compute.layout import Layout

Batch = Any
"""A tensor, or a tuple or dict of tensors, each with a leading dimension of n nodes."""


class Task(ABC):
    """A tiny learning problem, trained for real.

    Attributes:
        layout: the named tensors of the model.
        tokens_per_step: examples (or tokens) that one node sees per local step.
        flops_per_token: FLOP of forward and backward for one of them; 6 P for dense models.
        floor: the smallest reachable value of the evaluated loss, in the loss's unit, or None
            when it is not known.
    """

    layout: Layout
    tokens_per_step: int
    flops_per_token: float
    floor: float | None = None

    @property
    def flops_per_step(self) -> float:
        """FLOP of one local step of one node."""
        return self.flops_per_token * self.tokens_per_step

    @abstractmethod
    def bind(self, seed: int, n_nodes: int) -> None:
        """Fix the seed of the data and the number of nodes; called once, before anything else."""

    @abstractmethod
    def init(self, generator: torch.Generator) -> Tensor:
        """Initial parameters, float32 [P]; the same for every strategy of a seed."""

    @abstractmethod
    def batch(self, nodes: np.ndarray, steps: np.ndarray) -> Batch:
        """Row i is the batch of node `nodes[i]` at its local step `steps[i]` (int64 [n] both).

        A pure function of (seed, node, step): it must not depend on who shares the call.
        """

    @abstractmethod
    def loss(self, params: Tensor, batch: Batch) -> Tensor:
        """The loss (scalar) of one node: `params` [P] and a batch without its node dimension.

        Must be traceable by `torch.func.grad` and `torch.func.vmap`.
        """

    @abstractmethod
    def evaluate(self, params: Tensor) -> dict[str, float]:
        """Metrics of one model [P] on held-out data; `"loss"` is always among them."""

    def describe(self) -> dict[str, Any]:
        """Facts about the data for a run's manifest (hashes, sizes); called after `bind`."""
        return {}
