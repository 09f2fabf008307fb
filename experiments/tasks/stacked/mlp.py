"""The MLP for a block of nodes: hand-written forward and backward passes.

Legend: g runs (nodes, or one for all of them), M examples of a run, c nodes, P parameters.
"""

from __future__ import annotations

import numpy as np

from experiments.tasks.models import MLP
from sim.compute.kernels.cross_entropy import cross_entropy
from sim.compute.kernels.linear import (
    linear,
    linear_inputs,
    linear_relu,
    linear_weights,
    through_relu,
)
from sim.compute.layout import Layout
from sim.compute.stacked import Space


class StackedMLP:
    """Cross-entropy of an `MLP`.

    Args:
        module: gives the sizes.
        layout: where its tensors are in a row.
    """

    def __init__(self, module: MLP, layout: Layout) -> None:
        self._sizes = [layout.shapes[f"layers.{k}.weight"] for k in range(len(module.layers))]
        self._places = [
            (layout.slices[f"layers.{k}.weight"].start, layout.slices[f"layers.{k}.bias"].start)
            for k in range(len(self._sizes))
        ]
        self._space = Space()

    def values(self, examples: int) -> int:
        """float32 values of work space per node with so many examples."""
        return examples * sum(rows + columns for rows, columns in self._sizes)

    def gradients(
        self,
        params: np.ndarray,
        inputs: np.ndarray,
        targets: np.ndarray,
        grads: np.ndarray,
        losses: np.ndarray,
    ) -> None:
        """As `Stacked.gradients`; inputs float32 [c, B, I], targets int64 [c, B]."""
        runs, per_loss = len(grads), targets.shape[1]
        seen = [inputs.reshape(runs, -1, inputs.shape[-1])]
        M, last = seen[0].shape[1], len(self._sizes) - 1
        for k, ((size_out, _), (weight, bias)) in enumerate(zip(self._sizes, self._places)):
            y = self._space(f"y{k}", runs, M, size_out)
            (linear if k == last else linear_relu)(params, weight, bias, seen[k], y)
            seen.append(y)
        dy = seen.pop()
        cross_entropy(dy, targets, per_loss, losses)
        for k in range(last, -1, -1):
            weight, bias = self._places[k]
            linear_weights(weight, bias, seen[k], dy, grads)
            if k > 0:
                dx = self._space(f"d{k}", runs, M, self._sizes[k][1])
                linear_inputs(params, weight, dy, dx)
                through_relu(seen[k], dx)
                dy = dx
