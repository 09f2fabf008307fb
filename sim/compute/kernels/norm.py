"""Layer norm of a block of nodes, and the residual additions around it.

Legend: r rows of parameters (c, or 1 if shared), c nodes (or runs), M tokens of each, W width.
"""

from __future__ import annotations

import numpy as np

from sim.compiled import compiled

_kernel = compiled(__file__, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
_EPSILON = np.float32(1e-5)
"""Added to variances, as torch has it."""


@_kernel
def add(params, bias_at, x, y):
    """y += x + b, for x and y [c, M, W]."""
    c, M, W = x.shape
    for i in range(c):
        bias = params[i if len(params) > 1 else 0, bias_at : bias_at + W]
        for m in range(M):
            a, b = x[i, m], y[i, m]
            for w in range(W):
                b[w] += a[w] + bias[w]


@_kernel
def norm(params, gain_at, bias_at, x, y, moments):
    """y [c, M, W] = (x - mean) / deviation * gain + bias, per token.

    Args:
        moments: float32 [c, M, 2], written: mean and 1 / deviation, for the backward pass.
    """
    c, M, W = x.shape
    share = np.float32(1 / W)
    for i in range(c):
        row = params[i if len(params) > 1 else 0]
        gain, bias = row[gain_at : gain_at + W], row[bias_at : bias_at + W]
        for m in range(M):
            a, b = x[i, m], y[i, m]
            mean = np.float32(0)
            for w in range(W):
                mean += a[w]
            mean *= share
            square = np.float32(0)
            for w in range(W):
                square += (a[w] - mean) * (a[w] - mean)
            inverse = np.float32(1) / np.sqrt(square * share + _EPSILON)
            for w in range(W):
                b[w] = (a[w] - mean) * inverse * gain[w] + bias[w]
            moments[i, m, 0], moments[i, m, 1] = mean, inverse


@_kernel
def norm_backward(params, gain_at, bias_at, x, moments, dy, dx, grads):
    """Add the gradient of the inputs to dx [c, M, W]; write those of gain and bias to `grads`."""
    c, M, W = x.shape
    share = np.float32(1 / W)
    for i in range(c):
        gain = params[i if len(params) > 1 else 0, gain_at : gain_at + W]
        dgain, dbias = grads[i, gain_at : gain_at + W], grads[i, bias_at : bias_at + W]
        dgain[:] = 0
        dbias[:] = 0
        for m in range(M):
            a, d, out = x[i, m], dy[i, m], dx[i, m]
            mean, inverse = moments[i, m, 0], moments[i, m, 1]
            along_one, along_x = np.float32(0), np.float32(0)
            for w in range(W):
                z = (a[w] - mean) * inverse
                dgain[w] += d[w] * z
                dbias[w] += d[w]
                along_one += d[w] * gain[w]
                along_x += d[w] * gain[w] * z
            along_one *= share
            along_x *= share
            for w in range(W):
                z = (a[w] - mean) * inverse
                out[w] += inverse * (d[w] * gain[w] - along_one - z * along_x)
