"""Hand-batched code for a task whose loss is the mean cross-entropy of a module's outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from experiments.tasks.stacked import FORMS
from sim.compute.layout import Layout
from sim.compute.stacked import Stacked
from sim.compute.task import Batch

Labelled = Callable[[Batch], tuple[Tensor, Tensor]]
"""Inputs [c, ...] and integer targets [c, ...] of a batch; a target of -100 is not scored."""


class Form(Protocol):
    """A module's forward and backward passes for a block of nodes."""

    def values(self, examples: int) -> int: ...

    def gradients(
        self,
        params: np.ndarray,
        inputs: np.ndarray,
        targets: np.ndarray,
        grads: np.ndarray,
        losses: np.ndarray,
    ) -> None: ...


def form_of(module: nn.Module, layout: Layout) -> Form | None:
    """The code for a module of just these classes, all of whose parameters are trained."""
    if set(layout.shapes) != {name for name, _ in module.named_parameters()}:
        return None
    form: Callable[..., Form] | None = FORMS.get(type(module))
    return None if form is None else form(module, layout)


class LabelledLoss(Stacked):
    """Mean cross-entropy.

    Args:
        form: of the module.
        labelled: takes a batch apart.
    """

    def __init__(self, form: Form, labelled: Labelled) -> None:
        self._form, self._labelled = form, labelled

    def values_per_node(self, batch: Batch) -> int:
        _, targets = self._labelled(batch)
        return self._form.values(targets[0].numel())

    def gradients(
        self, params: np.ndarray, batch: Batch, grads: np.ndarray, losses: np.ndarray
    ) -> None:
        inputs, targets = (part.contiguous().numpy() for part in self._labelled(batch))
        self._form.gradients(params, inputs, targets, grads, losses)
