"""Convolutions of 3 x 3, padded by one, and ReLU after them, as matrix products with patches.

Examples are the last dimension of images, so that a patch is made of contiguous pieces.

Legend: r rows of parameters (c, or 1 if shared), c nodes (or runs), B examples of each, I and O
channels, N side of the images, n side of the output, (N - 1) // stride + 1.
"""

from __future__ import annotations

import numpy as np

from sim.compiled import compiled
from sim.compute.kernels.linear import PIECE, matrix, times, transpose

_kernel = compiled(__file__, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})


@_kernel
def _seen(N, n, stride):
    """Which pixel [9, n n] each tap of the kernel meets for each pixel of the output; -1: none."""
    seen = np.empty((9, n * n), np.int64)
    for k in range(9):
        for p in range(n * n):
            row, column = p // n * stride + k // 3 - 1, p % n * stride + k % 3 - 1
            seen[k, p] = row * N + column if 0 <= row < N and 0 <= column < N else -1
    return seen


@_kernel
def _patches(x, stride, out):
    """out [9 I, n, n, B]: what every pixel of the output sees of x [I, N, N, B]; zero outside."""
    channels, N, _, B = x.shape
    seen = _seen(N, out.shape[1], stride)
    images, patches = x.reshape(channels, -1, B), out.reshape(channels, 9, -1, B)
    for i in range(channels):
        for k in range(9):
            for p in range(patches.shape[2]):
                # A branch around the loop would cost more than the loop (references are counted).
                inside = seen[k, p] >= 0
                pixel, to = images[i, max(seen[k, p], 0)], patches[i, k, p]
                for e in range(B):
                    to[e] = pixel[e] if inside else np.float32(0)


@_kernel
def _patches_backward(dout, stride, dx):
    """dx [I, N, N, B], written: the sum of the gradients of all patches that a pixel is in."""
    channels, N, _, B = dx.shape
    seen = _seen(N, dout.shape[1], stride)
    images, patches = dx.reshape(channels, -1, B), dout.reshape(channels, 9, -1, B)
    dx[:] = 0
    for i in range(channels):
        for k in range(9):
            for p in range(patches.shape[2]):
                inside = seen[k, p] >= 0
                d, to = patches[i, k, p], images[i, max(seen[k, p], 0)]
                for e in range(B):
                    to[e] += d[e] if inside else np.float32(0)


@_kernel
def convolution_relu(params, weight_at, bias_at, x, stride, patches, y):
    """y [c, O, n, n, B] = max(0, W * x + b), for x [c, I, N, N, B].

    Args:
        weight_at, bias_at: where W [O, I, 3, 3] and b [O] begin in a row.
        patches: float32 [c, 9 I, n, n, B], written for the backward pass.
    """
    c, size_in, size_out = len(x), patches.shape[1], y.shape[1]
    for i in range(c):
        _patches(x[i], stride, patches[i])
        out = y[i].reshape(size_out, -1)
        weight = matrix(params, i, weight_at, size_out, size_in)
        times(weight, patches[i].reshape(size_in, -1), out)
        bias = params[i if len(params) > 1 else 0, bias_at : bias_at + size_out]
        for o in range(size_out):
            row, b = out[o], bias[o]
            for j in range(len(row)):
                value = row[j] + b
                row[j] = value if value > 0 or value != value else np.float32(0)


@_kernel
def convolution_weights(weight_at, bias_at, patches, dy, grads):
    """Gradients of W and b, written to rows `grads [c, P]`, from dy [c, O, n, n, B]."""
    size_in, size_out = patches.shape[1], dy.shape[1]
    for i in range(len(dy)):
        d = dy[i].reshape(size_out, -1)
        weight = matrix(grads, i, weight_at, size_out, size_in)
        _outer_columns(d, patches[i].reshape(size_in, -1), weight)
        for o in range(size_out):
            row, total = d[o], np.float32(0)
            for j in range(len(row)):
                total += row[j]
            grads[i, bias_at + o] = total


@_kernel
def _outer_columns(dy, x, weight):
    """weight [O, I] = dy x^T, the sum over columns of dy [O, M] and x [I, M]."""
    if dy.size * len(x) <= PIECE:
        np.dot(dy, x.T, weight)
        return
    turned = np.empty((dy.shape[1], len(dy)), np.float32)
    product = np.empty((len(x), len(dy)), np.float32)
    transpose(dy, turned)
    times(x, turned, product)
    transpose(product, weight)


@_kernel
def convolution_inputs(params, weight_at, dy, stride, dpatches, dx):
    """Gradient of the inputs, dx [c, I, N, N, B]; `dpatches` [9 I, n, n, B] is space for work."""
    size_in, size_out = len(dpatches), dy.shape[1]
    turned = np.empty((size_in, size_out), np.float32)
    for i in range(len(dy)):
        transpose(matrix(params, i, weight_at, size_out, size_in), turned)
        times(turned, dy[i].reshape(size_out, -1), dpatches.reshape(size_in, -1))
        _patches_backward(dpatches, stride, dx[i])
