"""Cross-entropy of logits with integer targets: loss per node, and the gradient in place.

Legend: c nodes (or runs), M predictions of each, V classes.
"""

from __future__ import annotations

import math

import numpy as np

from sim.compiled import compiled
from sim.compute.kernels.numeric import exp_all

_kernel = compiled(__file__, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
UNSCORED = -100
"""A target that is not scored, as torch has it."""


@_kernel
def _softmax(row, share):
    """Softmax times `share`, in place of logits [V]; returns the log of the sum of exponentials."""
    top = row[0]
    for v in range(len(row)):
        top = max(top, row[v])
    exp_all(row, top)
    total = np.float32(0)
    for v in range(len(row)):
        total += row[v]
    scale = share / total
    for v in range(len(row)):
        row[v] *= scale
    return math.log(total) + top


@_kernel
def cross_entropy(logits, targets, per_loss, losses):
    """Mean losses of each node, nats; `logits [c, M, V]` become their gradients.

    Args:
        targets: int64 [c, M]; what is `UNSCORED` has no loss and no gradient.
        per_loss: how many of the c M predictions, one after the other, make one loss; the
            gradients are those of the sum of all losses.
        losses: float32 [c M / per_loss], written.

    Raises:
        IndexError: if a target is no class.
    """
    V = logits.shape[2]
    rows, wanted = logits.reshape(-1, V), targets.reshape(-1)
    for k in range(len(losses)):
        first = k * per_loss
        scored = 0
        for m in range(first, first + per_loss):
            if wanted[m] != UNSCORED:
                if wanted[m] < 0 or wanted[m] >= V:
                    raise IndexError("a target is neither a class nor -100")
                scored += 1
        share, total = np.float32(1 / max(1, scored)), 0.0
        for m in range(first, first + per_loss):
            if wanted[m] == UNSCORED:
                rows[m] = 0
            else:
                chosen = rows[m, wanted[m]]
                total += _softmax(rows[m], share) - chosen
                rows[m, wanted[m]] -= share
        losses[k] = total / max(1, scored)
