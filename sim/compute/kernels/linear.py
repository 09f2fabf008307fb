"""Linear layers of a block of nodes: y = x W^T + b, and ReLU after it.

Products are cut into pieces that OpenBLAS multiplies without packing them first, and weights are
transposed for it if they are used often: 105 to 115 GFLOP/s instead of 65 to 95 where a core's
peak is 116.

Legend: r rows of parameters (c, or 1 if shared), c nodes (or runs), M examples (or tokens) of a
node, I inputs, O outputs.
"""

from __future__ import annotations

import numpy as np

from sim.compiled import compiled
from sim.compute.kernels.numeric import copy_eight

_kernel = compiled(__file__, error_model="numpy")
NO_BIAS = -1
"""As the place of a bias: there is none."""
PIECE = 1_000_000
"""Multiply-adds up to which OpenBLAS takes its kernels for small matrices (0.3.17 or later)."""
_FEW = 6
"""Rows of a piece below which packing is no slower."""
_TALL = 128
"""Rows of a piece from which on adding up products of pieces is cheaper than copying columns."""
_OFTEN = 64
"""Rows of inputs from which on it pays to transpose the weights."""


@_kernel
def _piece(M, size):
    """How many of M rows to multiply at once by a matrix of `size` values; even cuts of M."""
    most = PIECE // size
    if most < _FEW:
        return M
    pieces = (M + most - 1) // most
    return (M + pieces - 1) // pieces


@_kernel
def matrix(rows, i, at, size_out, size_in):
    """The tensor [size_out, size_in] at `at` of row i, or of the row that all share."""
    row = rows[i if len(rows) > 1 else 0]
    return row[at : at + size_out * size_in].reshape(size_out, size_in)


@_kernel
def transpose(a, out):
    """out [I, O] = a^T, eight rows of a at a time: lines of `out` are not evicted half full."""
    size_out, size_in = a.shape
    whole = size_out - size_out % 8
    for o in range(0, whole, 8):
        for k in range(size_in):
            out[k, o], out[k, o + 1] = a[o, k], a[o + 1, k]
            out[k, o + 2], out[k, o + 3] = a[o + 2, k], a[o + 3, k]
            out[k, o + 4], out[k, o + 5] = a[o + 4, k], a[o + 5, k]
            out[k, o + 6], out[k, o + 7] = a[o + 6, k], a[o + 7, k]
    for o in range(whole, size_out):
        for k in range(size_in):
            out[k, o] = a[o, k]


@_kernel
def transposed(x, y):
    """y [c, I, M] = x [c, M, I], turned node by node."""
    for i in range(len(x)):
        transpose(x[i], y[i])


@_kernel
def copy_columns(source, source_at, to, to_at, D):
    """D columns of one matrix [T, any], from `source_at` on, to another, from `to_at` on."""
    a, b = source.reshape(-1), to.reshape(-1)
    whole = D - D % 8
    for t in range(len(source)):
        i, j = t * source.shape[1] + source_at, t * to.shape[1] + to_at
        for d in range(0, whole, 8):
            copy_eight(b, j + d, a, i + d)
        for d in range(whole, D):
            b[j + d] = a[i + d]


@_kernel
def times(x, weight, y):
    """y [M, O] = x [M, I] weight [I, O]."""
    M = len(x)
    rows = _piece(M, weight.size)
    for m in range(0, M, rows):
        np.dot(x[m : m + rows], weight, y[m : m + rows])


@_kernel
def _outer(dy, x, spare, weight):
    """weight [O, I] = dy^T x, the sum over rows of dy [M, O] and x [M, I]; `spare` is for work."""
    M = len(dy)
    rows = _piece(M, weight.size)
    if rows < min(M, _TALL):
        _outer_by_columns(dy, x, spare, weight)
        return
    np.dot(dy[:rows].T, x[:rows], weight)
    part = spare[: weight.size].reshape(weight.shape)
    for m in range(rows, M, rows):
        np.dot(dy[m : m + rows].T, x[m : m + rows], part)
        weight += part


@_kernel
def _outer_by_columns(dy, x, spare, weight):
    """The same in pieces of rows of `weight`, from copies of the columns of dy."""
    M, size_out = dy.shape
    columns = _piece(size_out, x.size)
    for o in range(0, size_out, columns):
        rows = weight[o : o + columns]
        part = spare[: M * len(rows)].reshape(M, len(rows))
        copy_columns(dy, o, part, 0, len(rows))
        np.dot(part.T, x, rows)


@_kernel
def _column_sums(dy, out):
    """out [O] = sum over the rows of dy [M, O]."""
    M, size_out = dy.shape
    whole = M - M % 4
    out[:] = 0
    for m in range(0, whole, 4):
        a, b, c, d = dy[m], dy[m + 1], dy[m + 2], dy[m + 3]
        for o in range(size_out):
            out[o] += (a[o] + b[o]) + (c[o] + d[o])
    for m in range(whole, M):
        for o in range(size_out):
            out[o] += dy[m, o]


@_kernel
def linear(params, weight_at, bias_at, x, y):
    """y [c, M, O] = x [c, M, I] W^T + b; weights [O, I] begin at `weight_at` of a row."""
    c, M, size_in = x.shape
    size_out = y.shape[2]
    turned = np.empty((size_in, size_out), np.float32)
    for i in range(c):
        weight = matrix(params, i, weight_at, size_out, size_in)
        if M >= _OFTEN:
            if i == 0 or len(params) > 1:
                transpose(weight, turned)
            times(x[i], turned, y[i])
        else:
            np.dot(x[i], weight.T, y[i])
        if bias_at >= 0:
            bias = params[i if len(params) > 1 else 0, bias_at : bias_at + size_out]
            for m in range(M):
                out = y[i, m]
                for o in range(size_out):
                    out[o] += bias[o]


@_kernel
def linear_relu(params, weight_at, bias_at, x, y):
    """y = max(0, x W^T + b)."""
    linear(params, weight_at, NO_BIAS, x, y)
    c, M, size_out = y.shape
    for i in range(c):
        bias = params[i if len(params) > 1 else 0, bias_at : bias_at + size_out]
        for m in range(M):
            out = y[i, m]
            for o in range(size_out):
                value = out[o] + bias[o]
                out[o] = value if value > 0 or value != value else np.float32(0)


@_kernel
def through_relu(y, dy):
    """Gradient before a ReLU whose output was y, in place of the one after it, dy."""
    flat, grad = y.reshape(-1), dy.reshape(-1)
    for j in range(len(flat)):
        grad[j] = grad[j] if flat[j] > 0 else np.float32(0)


@_kernel
def linear_weights(weight_at, bias_at, x, dy, grads):
    """Gradients of W and b, written to rows `grads [c, P]`, from dy [c, M, O]."""
    size_in, size_out = x.shape[2], dy.shape[2]
    spare = np.empty(max(dy.shape[1], size_in) * size_out, np.float32)
    for i in range(len(x)):
        _outer(dy[i], x[i], spare, matrix(grads, i, weight_at, size_out, size_in))
        if bias_at >= 0:
            _column_sums(dy[i], grads[i, bias_at : bias_at + size_out])


@_kernel
def linear_inputs(params, weight_at, dy, dx):
    """Gradient of the inputs, dx [c, M, I] = dy W."""
    size_in, size_out = dx.shape[2], dy.shape[2]
    for i in range(len(dx)):
        times(dy[i], matrix(params, i, weight_at, size_out, size_in), dx[i])
