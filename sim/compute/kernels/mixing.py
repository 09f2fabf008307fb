"""Weighted sums of rows, some columns at a time: each value is read and written once.

Legend: n rows, m rows that were sent, b rows of a block, P of a row's values, c columns.
"""

from __future__ import annotations

import numpy as np

from sim.compiled import compiled

_kernel = compiled(__file__)


@_kernel
def mix(x, at, first, c, stay, begins, sources, weights, sent, places, start, rate, grad):
    """`x_i <- stay_i x_i + sum_j W_ij sent_j - rate_i grad_i`, in columns from `first` on.

    No product is fused with a sum: what vectors and what is left of them give has the same bits.

    Args:
        x: rows [M, P], of which row i is `x[at[i]]`.
        c: how many columns.
        stay: [n].
        begins, sources, weights: W [n, m], compressed by rows.
        sent, places, start: rows, of which row j is `sent[places[j]]`, [m], from column `start`.
        rate, grad: [n] and [n, c]; [0] and [0, 0] where there is no step.
    """
    total = np.empty(c, x.dtype)
    for i in range(len(at)):
        total[:] = 0
        for k in range(begins[i], begins[i + 1]):
            weight, other = weights[k], sent[places[sources[k]], start : start + c]
            for j in range(c):
                total[j] += weight * other[j]
        row, kept = x[at[i], first : first + c], stay[i]
        if len(grad):
            by, g = rate[i], grad[i]
            for j in range(c):
                row[j] = row[j] * kept + total[j] - by * g[j]
        else:
            for j in range(c):
                row[j] = row[j] * kept + total[j]


@_kernel
def step_and_difference(x, grad, known, start, rate):
    """`x <- x - rate grad`, and `x - start - known` takes the place of the gradient; rows [b, P].

    Args:
        known: [b, P].
        start: [P].
        rate: [b].
    """
    for i in range(len(x)):
        row, g, k, by = x[i], grad[i], known[i], rate[i]
        for j in range(len(row)):
            moved = row[j] - by * g[j]
            row[j] = moved
            g[j] = moved - start[j] - k[j]
