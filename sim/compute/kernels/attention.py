"""Causal attention of a block of nodes, one head of one sequence at a time, in cache.

Notable choices:

- The matrix products of a head are small enough for BLAS to run at full speed without packing, so
  they are computed in full, and the half that looks ahead is set to zero.
- Scores lie as [keys, queries]: what softmax does per query is then done for many queries at once,
  by loops that the compiler vectorises.

Legend: c nodes (or runs), M tokens of each, in sequences of T; W width, H heads, D = W / H,
G groups of D columns.
"""

from __future__ import annotations

import numpy as np

from sim.compiled import compiled
from sim.compute.kernels.linear import copy_columns
from sim.compute.kernels.numeric import exp

_kernel = compiled(__file__, error_model="numpy", fastmath={"contract", "nsz"})
_LANES = 16
"""Loops over queries begin at multiples of this, so that no vector is cut."""


@_kernel
def _split(rows, tiles):
    """tiles [G, T, D] from rows [T, G D]."""
    G, _, D = tiles.shape
    for g in range(G):
        copy_columns(rows, g * D, tiles[g], 0, D)


@_kernel
def _merge(tiles, rows):
    """Rows [T, G D] from tiles [G, T, D]."""
    G, _, D = tiles.shape
    for g in range(G):
        copy_columns(tiles[g], 0, rows, g * D, D)


@_kernel
def _turn(tile, scale, turned):
    """turned [D, T] = tile^T times `scale`."""
    T, D = tile.shape
    for t in range(T):
        for d in range(D):
            turned[d, t] = tile[t, d] * scale


@_kernel
def softmax_causal(scores, top, total):
    """Softmax over the keys up to each query's own, in place of scores [T keys, T queries].

    Later keys get zero. `top` and `total` [T] are space for the work.
    """
    T, low, zero = len(scores), np.float32(-1e30), np.float32(0)
    top[:] = low
    total[:] = zero
    for j in range(T):
        first = j // _LANES * _LANES
        row, most = scores[j, first:], top[first:]
        for i in range(len(row)):
            most[i] = max(row[i] if i >= j - first else low, most[i])
    for j in range(T):
        first = j // _LANES * _LANES
        row, most, sums = scores[j, first:], top[first:], total[first:]
        for i in range(len(row)):
            value = exp(row[i] - most[i]) if i >= j - first else zero
            row[i] = value
            sums[i] += value
    for i in range(T):
        total[i] = np.float32(1) / total[i]
    for j in range(T):
        row = scores[j]
        for i in range(T):
            row[i] = row[i] * total[i] if i >= j else zero


@_kernel
def softmax_backward(weights, scale, dweights, along):
    """Gradient of the scores times `scale`, in place of that of weights [T keys, T queries].

    `along` [T] is space for the work.
    """
    T = len(weights)
    along[:] = 0
    for j in range(T):
        first = j // _LANES * _LANES
        p, d, sums = weights[j, first:], dweights[j, first:], along[first:]
        for i in range(len(p)):
            sums[i] += p[i] * d[i]
    for j in range(T):
        p, d = weights[j], dweights[j]
        for i in range(T):
            d[i] = p[i] * (d[i] - along[i]) * scale


@_kernel
def attend(qkv, heads, weights, y):
    """y [c, M, W]: attention of every token to itself and the earlier ones of its sequence.

    Args:
        qkv: float32 [c, M, 3 W], queries, keys and values, heads side by side in each.
        weights: float32 [c M / T, H, T keys, T queries], written for the backward pass.
    """
    T, W = weights.shape[3], y.shape[2]
    D = W // heads
    tiles, out = np.empty((3 * heads, T, D), np.float32), np.empty((heads, T, D), np.float32)
    query, work = np.empty((D, T), np.float32), np.empty((2, T), np.float32)
    inputs, outputs = qkv.reshape(-1, T, 3 * W), y.reshape(-1, T, W)
    for s in range(len(weights)):
        _split(inputs[s], tiles)
        for h in range(heads):
            _turn(tiles[h], np.float32(1 / np.sqrt(D)), query)
            np.dot(tiles[heads + h], query, weights[s, h])
            softmax_causal(weights[s, h], work[0], work[1])
            np.dot(weights[s, h].T, tiles[2 * heads + h], out[h])
        _merge(out, outputs[s])


@_kernel
def attend_backward(qkv, heads, weights, dy, dqkv):
    """Gradient of the inputs, dqkv [c, M, 3 W], from dy [c, M, W] and what `attend` left."""
    T, W = weights.shape[3], dy.shape[2]
    D = W // heads
    both = np.empty((2, 3 * heads, T, D), np.float32)
    tiles, dtiles = both[0], both[1]
    dout, turned = np.empty((heads, T, D), np.float32), np.empty((D, T), np.float32)
    scores, along = np.empty((T, T), np.float32), np.empty(T, np.float32)
    inputs, dinputs = qkv.reshape(-1, T, 3 * W), dqkv.reshape(-1, T, 3 * W)
    doutputs = dy.reshape(-1, T, W)
    for s in range(len(weights)):
        _split(inputs[s], tiles)
        _split(doutputs[s], dout)
        for h in range(heads):
            np.dot(weights[s, h], dout[h], dtiles[2 * heads + h])
            _turn(dout[h], np.float32(1), turned)
            np.dot(tiles[2 * heads + h], turned, scores)
            softmax_backward(weights[s, h], np.float32(1 / np.sqrt(D)), scores, along)
            np.dot(scores.T, tiles[heads + h], dtiles[h])
            np.dot(scores, tiles[h], dtiles[heads + h])
        _merge(dtiles, dinputs[s])
