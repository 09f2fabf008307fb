"""The CNN for a block of nodes: hand-written forward and backward passes.

Legend: g runs (nodes, or one for all of them), M examples of a run, c nodes, P parameters,
N side of the images, n of the second layer's output, C channels of the first.
"""

from __future__ import annotations

import numpy as np

from experiments.tasks.models import CNN
from sim.compute.kernels.convolution import (
    convolution_inputs,
    convolution_relu,
    convolution_weights,
)
from sim.compute.kernels.cross_entropy import cross_entropy
from sim.compute.kernels.linear import (
    linear,
    linear_inputs,
    linear_weights,
    through_relu,
    transposed,
)
from sim.compute.layout import Layout
from sim.compute.stacked import Space


class StackedCNN:
    """Cross-entropy of a `CNN`.

    Args:
        module: gives the sizes.
        layout: where its tensors are in a row.
    """

    def __init__(self, module: CNN, layout: Layout) -> None:
        self._side, self._halved = module.side, module.halved
        self._channels, self._classes = module.first.out_channels, module.head.out_features
        start = {name: part.start for name, part in layout.slices.items()}
        self._first, self._second, self._head = (
            (start[f"{part}.weight"], start[f"{part}.bias"]) for part in ("first", "second", "head")
        )
        self._space = Space()

    def values(self, examples: int) -> int:
        """float32 values of work space per node with so many examples."""
        pixels, halved, C = self._side**2, self._halved**2, self._channels
        per_example = pixels * (1 + 9 + 2 * C) + halved * (2 * 9 * C + 4 * 2 * C)
        return examples * (per_example + 2 * self._classes)

    def gradients(
        self,
        params: np.ndarray,
        inputs: np.ndarray,
        targets: np.ndarray,
        grads: np.ndarray,
        losses: np.ndarray,
    ) -> None:
        """As `Stacked.gradients`; inputs float32 [c, B, N N], targets int64 [c, B]."""
        runs, per_loss = len(grads), targets.shape[1]
        N, n, C = self._side, self._halved, self._channels
        flat = inputs.reshape(runs, -1, N * N)
        M, space = flat.shape[1], self._space
        x = space("x", runs, 1, N, N, M)
        transposed(flat, x.reshape(runs, N * N, M))
        seen, first = space("seen", runs, 9, N, N, M), space("first", runs, C, N, N, M)
        convolution_relu(params, *self._first, x, 1, seen, first)
        again = space("again", runs, 9 * C, n, n, M)
        second = space("second", runs, 2 * C, n, n, M)
        convolution_relu(params, *self._second, first, 2, again, second)
        features = space("features", runs, M, 2 * C * n * n)
        transposed(second.reshape(runs, -1, M), features)
        logits = space("logits", runs, M, self._classes)
        linear(params, *self._head, features, logits)
        cross_entropy(logits, targets.reshape(runs, -1), per_loss, losses)
        linear_weights(*self._head, features, logits, grads)
        dfeatures = space("dfeatures", runs, M, 2 * C * n * n)
        linear_inputs(params, self._head[0], logits, dfeatures)
        dsecond = space("dsecond", runs, 2 * C, n, n, M)
        transposed(dfeatures, dsecond.reshape(runs, -1, M))
        through_relu(second, dsecond)
        convolution_weights(*self._second, again, dsecond, grads)
        dfirst = space("dfirst", runs, C, N, N, M)
        dpatches = space("dpatches", 9 * C, n, n, M)
        convolution_inputs(params, self._second[0], dsecond, 2, dpatches, dfirst)
        through_relu(first, dfirst)
        convolution_weights(*self._first, seen, dfirst, grads)
