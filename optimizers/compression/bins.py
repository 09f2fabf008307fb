"""Bins of equal width and the means of what falls into them: what `CodeBook` computes, compiled.

Sums of squares are added up in the order of torch's norm, in which the authors' programs find the
width of a bin: another one moves a value that lies between two bins to the other. A sum and a count
lie side by side, as a complex number, so that taking in a value costs one load and one store; and
of a table only the entries that were used are cleared, for a row may be shorter than its table.

Rows are treated apart and in order: results depend neither on how many there are nor on the thread.
Scratch memory belongs to the call, and the interpreter's lock is free meanwhile.

Legend: n rows, m values of a row, L bins, h hops.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sim.compiled import compiled

_MOST = 2**24
"""Values of a row: as many as a float32 can count."""
_kept = compiled(__file__, error_model="numpy")
_inlined = compiled(__file__, error_model="numpy", inline="always")  # rows may be short


def takes(x: Tensor) -> bool:
    """Whether the compiled functions take rows `x [n, m]`."""
    there = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return there and x.shape[1] <= _MOST


def widths(x: Tensor, bins: int, sigmas: float) -> Tensor:
    """The width of a bin of each row of `x [n, m]`, `[n]` in its type."""
    found = x.new_empty(len(x))
    _widths(_array(x), bins, sigmas, found.numpy())
    return found


def coded(x: Tensor, bins: int, sigmas: float, centred: bool) -> tuple[Tensor, Tensor]:
    """The bin of each value of rows `x [n, m]`, uint8, and the means of the bins, float32 [n, L].

    Args:
        centred: a mean was removed: codes are rounded in the steps of those who do so.
    """
    codes = torch.empty_like(x, dtype=torch.uint8, memory_format=torch.contiguous_format)
    table = torch.zeros(len(x), bins)
    _code_rows(_array(x), bins, sigmas, centred, codes.numpy(), table.numpy())
    return codes, table


def relay(x: Tensor, own: Tensor, spans: np.ndarray, bins: int, sigmas: float) -> None:
    """At each hop code and decode rows of `x [n, m]` and add their `own [h, n, m]`, in place.

    Args:
        spans: of each hop, the first row and the one after the last, int64 [h, 2].
    """
    assert x.is_contiguous(), "in place"
    _relay_rows(_array(x), _array(own), spans, bins, sigmas)


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


@_kept
def _code_rows(x, bins, sigmas, centred, codes, table):
    width, space = np.empty(len(x), x.dtype), np.zeros(bins, np.complex64)
    _widths(x, bins, sigmas, width)
    _place(x, width, bins, centred, codes)
    for r in range(len(x)):
        _take_in(x[r], codes[r], space)
        for q in codes[r]:
            if space[q].imag > 0:
                table[r, q] = space[q].real / space[q].imag
                space[q] = 0


@_kept
def _relay_rows(x, own, spans, bins, sigmas):
    width, codes = np.empty(len(x), x.dtype), np.empty(x.shape, np.uint8)
    space, inside = np.zeros(bins, np.complex64), np.empty(x.shape[1], np.complex64)
    for h in range(len(own)):
        first, stop = spans[h]
        _widths(x[first:stop], bins, sigmas, width[first:stop])
        _place(x[first:stop], width[first:stop], bins, False, codes[first:stop])
        for r in range(first, stop):
            _take_in(x[r], codes[r], space)
            _empty(space, codes[r], inside)
            for i in range(len(inside)):
                x[r, i] = inside[i].real / inside[i].imag + own[h, r, i]


@_kept
def _widths(x, bins, sigmas, width):
    """sigmas sigma / L of each row; 1 where there is no spread, or no number."""
    real = x.dtype.type
    root, span, parts = real(math.sqrt(max(1, x.shape[1] - 1))), real(sigmas), real(bins)
    for r in range(len(x)):
        width[r] = _squares(x[r])
    for r in range(len(x)):  # apart from the sums, whose steps wait for each other
        found = span * (np.sqrt(width[r]) / root) / parts
        width[r] = found if 0 < found < np.inf else 1


@_inlined
def _squares(row):
    """The sum of squares as torch adds it up: eight sums side by side, then the rest in order."""
    m = len(row)
    a = b = c = d = e = f = g = h = row.dtype.type(0)
    for i in range(0, m - m % 8, 8):
        a, b = a + row[i] * row[i], b + row[i + 1] * row[i + 1]
        c, d = c + row[i + 2] * row[i + 2], d + row[i + 3] * row[i + 3]
        e, f = e + row[i + 4] * row[i + 4], f + row[i + 5] * row[i + 5]
        g, h = g + row[i + 6] * row[i + 6], h + row[i + 7] * row[i + 7]
    total = a + b + c + d + e + f + g + h
    for i in range(m - m % 8, m - m % 4):
        total += row[i] * row[i]
    for i in range(m - m % 4, m):
        total = _fused(row[i], row[i], total)
    return total


@_kept
def _place(x, width, bins, centred, codes):
    """The bin of each value, rounded in the steps of CCLoco if centred, else of torch's tensors.

    What is not a number is in the first one.
    """
    half, last, zero = np.float32(bins // 2), np.float32(bins - 1), np.float32(0)
    for r in range(len(x)):
        span = np.float32(width[r])
        inverse = np.float32(1) / span
        for i in range(x.shape[1]):
            value = np.float32(x[r, i])
            place = value / span + half if centred else _fused(value, inverse, half)
            place = place if place > zero else zero
            codes[r, i] = np.uint8(np.rint(place if place < last else last))


@_inlined
def _take_in(row, codes, space):
    """Add the values of a row to the sums of their bins, and one to the counts."""
    for i in range(len(row)):
        space[codes[i]] += np.complex64(complex(np.float32(row[i]), np.float32(1)))


@_inlined
def _empty(space, codes, inside):
    """Move sum and count of the bin of each value to `inside`; then these bins are empty."""
    for i in range(len(codes)):
        inside[i] = space[codes[i]]
    for i in range(len(codes)):
        space[codes[i]] = 0


@compiled(__file__, error_model="numpy", fastmath={"contract"})
def _fused(a, b, c):
    """`a b + c`, rounded once where the machine can."""
    return a * b + c
