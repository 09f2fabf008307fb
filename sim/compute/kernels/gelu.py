"""The exact GELU of a block of nodes, u Phi(u), fused with the bias before it.

Legend: r rows of parameters (c, or 1 if shared), c nodes (or runs), M tokens of each, O outputs.
"""

from __future__ import annotations

import numpy as np

from sim.compiled import compiled
from sim.compute.kernels.numeric import exp, upper_tail

_kernel = compiled(__file__, error_model="numpy", fastmath={"contract"})
_HALF = np.float32(0.5)
_DENSITY = np.float32(0.3989422804014327)
"""1 / sqrt(2 pi)."""


@_kernel
def gelu(params, bias_at, u, y):
    """y [c, M, O] = gelu(u + b); in place of u its derivative, for the backward pass."""
    c, M, size_out = u.shape
    for i in range(c):
        bias = params[i if len(params) > 1 else 0, bias_at : bias_at + size_out]
        for m in range(M):
            a, out = u[i, m], y[i, m]
            for o in range(size_out):
                x = a[o] + bias[o]
                bell = exp(-_HALF * x * x)
                tail = upper_tail(abs(x), bell)
                below = np.float32(1) - tail if x > 0 else tail
                out[o] = x * below
                a[o] = below + x * bell * _DENSITY


@_kernel
def gelu_backward(slope, dy):
    """Gradient before a GELU with these derivatives, in place of the one after it, dy."""
    flat, grad = slope.reshape(-1), dy.reshape(-1)
    for j in range(len(flat)):
        grad[j] *= flat[j]
