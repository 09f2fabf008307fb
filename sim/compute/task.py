"""Task (interface): the model that is trained, its data and its evaluation.

Legend: n nodes of a batch, B examples per node and step, P parameters, Pb values of buffers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sim.compute.layout import Layout

if TYPE_CHECKING:
    from sim.compute.stacked import Stacked

Batch = Any
"""A tensor, or a tuple or dict of tensors, each with a leading dimension of n nodes."""


class Task(ABC):
    """A tiny learning problem, trained for real.

    Attributes:
        layout: the named tensors of the model.
        buffers: named tensors that a training step updates without a gradient, such as the running
            statistics of BatchNorm. Each node has a row [Pb] of its own, float32; integers are
            carried as floats.
        draws: the training loss draws random numbers, such as the masks of dropout, from `words`.
        tokens_per_step: examples (or tokens) that one node sees per local step.
        flops_per_token: FLOP of forward and backward for one of them; 6 P for dense models.
        floor: the smallest reachable value of the evaluated loss, in the loss's unit, or None
            when it is not known.
    """

    layout: Layout
    buffers: Layout = Layout({})
    draws: bool = False
    tokens_per_step: int
    flops_per_token: float
    floor: float | None = None

    @property
    def flops_per_step(self) -> float:
        """FLOP of one local step of one node."""
        return self.flops_per_token * self.tokens_per_step

    @property
    def signature(self) -> str:
        """Tells tasks of equal shapes apart whose losses are computed differently."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

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

        Must be traceable by `torch.func.grad` and `torch.func.vmap`. For models without buffers
        and draws this is all that training needs.
        """

    def init_buffers(self) -> Tensor:
        """The buffers [Pb] that every node starts with."""
        return torch.empty(self.buffers.numel)

    def training_loss(
        self, params: Tensor, buffers: Tensor, batch: Batch, words: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The loss (scalar) of one node in training mode, and its buffers [Pb] afterwards.

        Traceable as `loss` is; the same values with and without `vmap`. It leaves its arguments as
        they are.

        Args:
            params, batch: as in `loss`.
            buffers: [Pb], before the step.
            words: int64 [1], a hash of (seed, node, step) that everything random is drawn from;
                None if the task does not draw.
        """
        return self.loss(params, batch), buffers

    def check(self) -> None:  # noqa: B027 (most losses can be batched)
        """Raise ValueError if the loss cannot be batched over nodes, naming the part.

        Called once before a run, after `bind`, unless the loop engine is asked for.
        """

    def stacked(self) -> Stacked | None:
        """Hand-batched code for the loss, new at each call; None if there is none."""
        return None

    @abstractmethod
    def evaluate(self, params: Tensor, buffers: Tensor | None = None) -> dict[str, float]:
        """Metrics of one model [P] on held-out data; `"loss"` is always among them.

        A task with buffers is given those to evaluate with, [Pb]: the mean of the nodes'.
        """

    def describe(self) -> dict[str, Any]:
        """Facts about the data for a run's manifest (hashes, sizes); called after `bind`."""
        return {}
