"""Steps of optimizers on a block of rows: every value is read and written once.

Legend: c rows, P parameters.
"""

from __future__ import annotations

import numpy as np

from sim.compiled import compiled

_kernel = compiled(__file__, error_model="numpy")


@_kernel
def adamw(params, grads, mean, square, scale, rate, decay, bias1, bias2, new1, b2, new2, eps):
    """One step of AdamW in place, on rows [c, P].

    Args:
        scale: float32 [c], factor of each row's gradient (clipping).
        rate, decay: float32 [c], learning rate, and what weight decay leaves of a parameter.
        bias1, bias2: float32 [c], 1 - b1^t, and the square root of 1 - b2^t.
        new1, b2, new2, eps: float32; 1 - b1 and 1 - b2 are rounded once, as torch does: 1 less
            the float32 of 0.999 would be off by 5e-5 of itself.
    """
    one = np.float32(1)
    for i in range(len(params)):
        x, g, m, v = params[i], grads[i], mean[i], square[i]
        s, step, left, inverse = scale[i], rate[i] / bias1[i], decay[i], one / bias2[i]
        for j in range(len(x)):
            d = g[j] * s
            m[j] = m[j] + (d - m[j]) * new1
            v[j] = v[j] * b2 + d * d * new2
            x[j] = x[j] * left - step * m[j] / (np.sqrt(v[j]) * inverse + eps)
