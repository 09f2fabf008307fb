"""Cosine coefficients of all tensors of a block of rows, by one compiled call.

Each h x w block of a matrix is copied to scratch memory that fits the first cache, where the steps
of `rotations` act on whole rows of it: on its columns, then, transposed, on its rows; common
lengths have code of their own, see `codelets`. Pieces of vectors are turned side by side. What is
made can be added to what is there already, which is how a momentum takes in a gradient without a
tensor in between. The next row is brought into the cache meanwhile.

Rows are treated apart and in a fixed order: results depend neither on how many there are nor on
the thread. Scratch memory belongs to the call, and the interpreter's lock is free meanwhile.

Legend: b rows, P values of a row, [R, C] a matrix of one row, h x w a block of it, q steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from optimizers.compression.codelets import LENGTHS, WIDTH, turn_columns
from optimizers.compression.lanes import (
    LANES,
    TILE,
    add_lanes,
    copy_lanes,
    fetch_lanes,
    transpose_tile,
    turn_half,
    turn_lanes,
)
from optimizers.compression.rotations import Rotations, cosine_rotations
from sim.compiled import compiled
from sim.compute.placed import Placed

_LONGEST = 256
"""Blocks with longer sides are left to matrix products: an odd length takes n^2 / 2 steps."""
_SIDE_BY_SIDE = 64
"""Pieces of vectors that are turned together."""
Matrix = tuple[int, int, int, int]
"""R, C, h, w of a tensor seen as a matrix, and of its blocks."""
_kept = compiled(__file__, fastmath={"contract"})


def takes(x: Tensor, longest: int) -> bool:
    """Whether `Cosines` can turn these rows in blocks with sides up to `longest`."""
    there = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return there and longest <= _LONGEST


@dataclass(frozen=True)
class _Plan:
    """The steps of all lengths, there or back."""

    spans: np.ndarray
    """Of each length: first step, the step after the last, place in `order`, int64 [lengths, 3]."""
    places: np.ndarray
    """i and j of each step, int64 [q, 2]."""
    turns: np.ndarray
    """a, b, c and d of each step, [q, 4], in the type of the rows."""
    order: np.ndarray
    """Of each length one after the other, where its results lie after the steps."""

    @staticmethod
    def of(rotations: Sequence[Rotations], dtype: torch.dtype) -> _Plan:
        past = np.cumsum([len(plan.places) for plan in rotations])
        lengths = [len(plan.order) for plan in rotations]
        return _Plan(
            np.stack([np.r_[0, past[:-1]], past, np.cumsum([0, *lengths[:-1]])], axis=1),
            np.concatenate([plan.places for plan in rotations]),
            torch.from_numpy(np.concatenate([plan.turns for plan in rotations])).to(dtype).numpy(),
            np.concatenate([plan.order for plan in rotations]),
        )


@dataclass(frozen=True)
class Cosines:
    """The cosine basis of tensors that lie one after the other in a row; see `cosines`."""

    tensors: np.ndarray
    """Of each: start, stop, C, h, w, and the places of h and w in `spans`, int64 [tensors, 7]."""
    there: _Plan
    back: _Plan

    def turn(self, x: Tensor, out: Placed, keep: float = 0.0, scale: float = 1.0) -> None:
        """`out = keep * out + scale * coefficients` of rows `x [b, P]`, in place.

        With `keep` 0 it does not matter what `out` held.
        """
        self._call(x, out, self.there, keep, scale)

    def turn_back(self, coefficients: Tensor, out: Placed) -> None:
        """Write to `out` the rows `[b, P]` that have these coefficients."""
        self._call(coefficients, out, self.back, 0.0, 1.0)

    def _call(self, x: Tensor, out: Placed, plan: _Plan, keep: float, scale: float) -> None:
        memory = out.memory
        assert memory.is_contiguous(), "made in place"
        assert (len(out), memory.shape[1:], memory.dtype) == (len(x), x.shape[1:], x.dtype)
        steps = plan.spans, plan.places, plan.turns, plan.order
        source, to = x.detach().contiguous().numpy(), memory.detach().numpy()
        factors = np.array([keep, scale], plan.turns.dtype)
        _turn(source, to, out.at, plan is self.back, self.tensors, *steps, factors[0], factors[1])


def cosines(matrices: tuple[Matrix, ...], dtype: torch.dtype) -> Cosines:
    """The cosine basis of matrices (R, C, h, w), cut into blocks of h x w, for rows of a type."""
    matrices = _joined([_as_vector(*matrix) for matrix in matrices])
    lengths = sorted({length for *_, h, w in matrices for length in (h, w)})
    plans = [cosine_rotations(length) for length in lengths]
    starts = np.cumsum([0, *(R * C for R, C, _, _ in matrices)]).tolist()
    tensors = [
        (start, start + R * C, C, h, w, lengths.index(h), lengths.index(w))
        for start, (R, C, h, w) in zip(starts, matrices)
    ]
    return Cosines(
        np.array(tensors, dtype=np.int64).reshape(-1, 7),
        _Plan.of(plans, dtype),
        _Plan.of([plan.undone for plan in plans], dtype),
    )


def _as_vector(R: int, C: int, h: int, w: int) -> Matrix:
    """Blocks of one row, or of a matrix of one column, lie in memory as pieces of a vector do."""
    if h > 1 and C > 1:
        return R, C, h, w
    return 1, R * C, 1, max(h, w) if C == 1 else w


def _joined(matrices: list[Matrix]) -> tuple[Matrix, ...]:
    """Vectors with pieces of one length that follow each other are one vector."""
    joined: list[Matrix] = []
    for R, C, h, w in matrices:
        if R == 1 and joined and joined[-1][0] == 1 and joined[-1][3] == w:
            joined[-1] = (1, joined[-1][1] + C, 1, w)
        else:
            joined.append((R, C, h, w))
    return tuple(joined)


@_kept
def _turn(x, out, at, back, tensors, spans, places, turns, order, keep, scale):
    """Row by row, which is how memory is fast; but pieces of vectors of all rows together."""
    space, turned = _scratch(tensors, x.dtype), _scratch(tensors, x.dtype)
    for r in range(len(x)):
        row, after = out[at[r]], min(r + 1, len(x) - 1)
        for q in range(len(tensors)):
            start, stop, C, h, w, tall, wide = _of(tensors, q)
            if h == 1:
                continue
            columns, rows = space[: h * w].reshape((h, w)), turned[: h * w].reshape((w, h))
            for place in range(start, stop, h * w):
                corner = start + _corner(place - start, C, h, w)
                to, pace = (corner, C) if back else (place, w)
                _fetch(x[after], place, h * w)
                _fetch(out[at[after]], place, h * w)
                _copy_block(x[r], place if back else corner, w if back else C, columns)
                _rotate(columns, spans[tall], places, turns, back)
                _transpose(columns, order[spans[tall, 2] :], rows)
                _rotate(rows, spans[wide], places, turns, back)
                _transpose(rows, order[spans[wide, 2] :], columns)
                _add_block(columns, row, to, pace, keep, scale)
    natural = np.arange(_SIDE_BY_SIDE)
    for q in range(len(tensors)):
        start, stop, _, h, w, _, wide = _of(tensors, q)
        if h > 1:
            continue
        pieces = space[: _SIDE_BY_SIDE * w].reshape((_SIDE_BY_SIDE, w))
        across = turned[: _SIDE_BY_SIDE * w].reshape((w, _SIDE_BY_SIDE))
        _fetch_pieces(x, out, at, 0, start, stop, pieces)
        for first in range(0, len(x) * (stop - start) // w, _SIDE_BY_SIDE):
            _fetch_pieces(x, out, at, first + _SIDE_BY_SIDE, start, stop, pieces)
            _take_pieces(x, first, start, stop, pieces)
            _transpose(pieces, natural, across)  # what is left of former ones is turned too
            _rotate(across, spans[wide], places, turns, back)
            _transpose(across, order[spans[wide, 2] :], pieces)
            _add_pieces(pieces, first, start, stop, out, at, keep, scale)


@_kept
def _of(tensors, q):
    """What is known of a tensor: start, stop, C, h, w, places of h and w in `spans`."""
    q = tensors[q]
    return q[0], q[1], q[2], q[3], q[4], q[5], q[6]


@_kept
def _scratch(tensors, dtype):
    """Memory for a block of any of the tensors, or for pieces of a vector side by side."""
    sides = np.where(tensors[:, 3] == 1, _SIDE_BY_SIDE, tensors[:, 3])
    return np.zeros((sides * tensors[:, 4]).max(), dtype)


@_kept
def _take_pieces(x, first, start, stop, pieces):
    """Pieces of the vectors from `start` to `stop` of all rows, from number `first` on."""
    m, w = pieces.shape
    each = (stop - start) // w
    for p in range(first, min(first + m, len(x) * each)):
        place = start + p % each * w
        _copy(x[p // each, place : place + w], pieces[p - first])


@_kept
def _fetch_pieces(x, out, at, first, start, stop, pieces):
    m, w = pieces.shape
    each = (stop - start) // w
    for p in range(first, min(first + m, len(x) * each)):
        place = start + p % each * w
        _fetch(x[p // each], place, w)
        _fetch(out[at[p // each]], place, w)


@_kept
def _add_pieces(pieces, first, start, stop, out, at, keep, scale):
    m, w = pieces.shape
    each = (stop - start) // w
    for p in range(first, min(first + m, len(at) * each)):
        place = start + p % each * w
        _add(pieces[p - first], out[at[p // each], place : place + w], keep, scale)


@_kept
def _corner(passed, C, h, w):
    """Where a block begins in its matrix [R, C], `passed` values being in blocks before it."""
    block = passed // (h * w)
    return block // (C // w) * h * C + block % (C // w) * w


@_kept
def _copy(source, to):
    for i in range(len(source)):
        to[i] = source[i]


@_kept
def _copy_block(row, first, pace, to):
    """The rows of a block, which begin `pace` values apart."""
    h, w = to.shape
    whole = w - w % LANES
    for i in range(h):
        place = first + i * pace
        for j in range(0, whole, LANES):
            copy_lanes(to, i, j, row, place + j)
        for j in range(whole, w):
            to[i, j] = row[place + j]


@_kept
def _fetch(row, first, n):
    """Have ready in the cache, in time, what is turned next."""
    for i in range(first, first + n, LANES):
        fetch_lanes(row, i)


@_kept
def _add_block(block, row, first, pace, keep, scale):
    """Add the rows of a block where they begin `pace` values apart."""
    h, w = block.shape
    whole = w - w % LANES
    for i in range(h):
        place = first + i * pace
        for j in range(0, whole, LANES):
            add_lanes(row, place + j, keep, block, i, j, scale)
        if whole < w:
            _add(block[i, whole:], row[place + whole : place + w], keep, scale)


@_kept
def _add(source, to, keep, scale):
    if keep == 0:
        for i in range(len(to)):
            to[i] = scale * source[i]
    else:
        for i in range(len(to)):
            to[i] = keep * to[i] + scale * source[i]


@_kept
def _transpose(x, order, to):
    """Column i of `to` is row `order[i]` of x."""
    m, n = to.shape
    tall, wide = m - m % TILE, n - n % TILE
    for i in range(0, wide, TILE):
        for j in range(0, tall, TILE):
            transpose_tile(x, order, i, to, j)
    for i in range(n):
        row = x[order[i]]
        for j in range(0 if i >= wide else tall, m):
            to[j, i] = row[j]


@_kept
def _rotate(x, span, places, turns, back):
    """The steps of a span on the rows of x."""
    n = x.shape[1]
    if len(x) in LENGTHS:
        lanes = WIDTH // x.itemsize
        whole = n - n % lanes
        for first in range(0, whole, lanes):
            turn_columns(x, first, back)
    else:
        whole = n - n % LANES
        for first in range(0, whole, LANES):
            for q in range(span[0], span[1]):
                a, b, c, d = turns[q, 0], turns[q, 1], turns[q, 2], turns[q, 3]
                turn_lanes(x, places[q, 0], places[q, 1], first, a, b, c, d)
        if n - whole >= LANES // 2:
            for q in range(span[0], span[1]):
                a, b, c, d = turns[q, 0], turns[q, 1], turns[q, 2], turns[q, 3]
                turn_half(x, places[q, 0], places[q, 1], whole, a, b, c, d)
            whole += LANES // 2
    _rotate_rest(x, whole, span, places, turns)


@_kept
def _rotate_rest(x, whole, span, places, turns):
    """The steps on the columns from `whole` on."""
    if whole == x.shape[1]:
        return
    for q in range(span[0], span[1]):
        u, v = x[places[q, 0]], x[places[q, 1]]
        a, b, c, d = turns[q, 0], turns[q, 1], turns[q, 2], turns[q, 3]
        for i in range(whole, x.shape[1]):
            s, t = u[i], v[i]
            u[i], v[i] = a * s + b * t, c * s + d * t
