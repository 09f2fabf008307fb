"""Codecs that change the basis or the grouping and lose nothing: DCT, Blocks.

Legend: b rows of a block of nodes, P values of a row, [R, C] a matrix of one node, h x w a block
of it.

Each axis of length n is cut into pieces of the largest divisor of n that is at most `chunk`, so a
prime above `chunk` gives pieces of one (pad vocabularies). Matrices give blocks of h x w, in
row-major order, flattened; vectors give pieces; tensors of more axes are seen as
[first axis, the rest] (our choice: the reference handles one and two axes only).
Source: DeMo (Peng, Quesnelle, Kingma, arXiv:2411.19870), with its chunk rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from optimizers.compression import regrouping
from optimizers.compression.cosines import Cosines, Matrix, cosines, takes
from sim.compute.placed import Placed
from sim.payload import Compressor, Context, Payload, State, Wire

Shapes = tuple[tuple[int, ...], ...]
"""Shapes of tensors that lie one after the other in a row; a scalar is a vector of one."""


@dataclass(frozen=True)
class Blocks(Compressor):
    """Regroup a tensor into blocks, `[b, blocks, block elements]`, for a codec that follows.

    `Chain(Blocks(64), TopK(64))` keeps 64 of every 64 x 64 block, as SparseLoCo does.

    Args:
        chunk: longest side of a block.
        unit: `"block"`; or `"row"`: of a matrix each whole row is a unit, however long, which is
            what tplr-ai/CCLoco selects from without a DCT. Vectors are cut the same way.
    """

    chunk: int = 64
    unit: str = "block"

    summable = True
    shared_support = True
    unbiased = True
    linear = True

    def __post_init__(self) -> None:
        _check_chunk(self.chunk)
        if self.unit not in ("block", "row"):
            raise ValueError(f"unit={self.unit!r}: must be 'block' or 'row'")

    def sides(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of the blocks of a tensor of this shape."""
        if self.unit == "row" and len(shape) > 1:
            return 1, math.prod(shape[1:])
        return block_sides(shape, self.chunk)

    def blocks(self, x: Tensor) -> Tensor:
        """`[b, *shape]` as `[b, blocks, block elements]`."""
        h, w = self.sides(x.shape[1:])
        return _to_blocks(x.reshape(len(x), *_as_matrix(x.shape[1:])), h, w)

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        return Payload(self, x.shape[1:], Wire(self.blocks(x))), state

    def decode(self, payload: Payload) -> Tensor:
        return self.unblocked(payload.body, payload.shape)

    def unblocked(self, blocks: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The tensors `[b, *shape]` that have these blocks."""
        h, w = self.sides(shape)
        return _from_blocks(blocks, h, w, _as_matrix(shape)).reshape(len(blocks), *shape)


@dataclass(frozen=True)
class DCT(Compressor):
    """Blocks of a tensor in the orthonormal cosine basis (DCT-II on both sides of a block).

    The body for `[b, R, C]` is `[b, blocks, block elements]`, coefficients row-major, in the
    type of the input. Decoding is the transpose.

    Args:
        chunk: longest side of a block.
    """

    chunk: int = 64

    summable = True
    shared_support = True
    unbiased = True
    linear = True
    passes = 6.0

    def __post_init__(self) -> None:
        _check_chunk(self.chunk)

    def sides(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of the blocks of a tensor of this shape."""
        return block_sides(shape, self.chunk)

    def blocks(self, x: Tensor) -> Tensor:
        """The coefficients of `[b, *shape]`, `[b, blocks, block elements]`."""
        shape = x.shape[1:]
        if takes(x, self.chunk):
            made = x.new_empty(len(x), *blocks_shape(shape, self.sides(shape)))
            to = Placed.of(made.flatten(1))
            _cosines_of((shape,), self.chunk, x.dtype).turn(x.flatten(1), to)
            return made
        h, w = block_sides(shape, self.chunk)
        blocks = _to_blocks(x.reshape(len(x), *_as_matrix(shape)), h, w)
        return _turned(blocks, dct_basis(h, x.dtype, x.device), dct_basis(w, x.dtype, x.device))

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        return Payload(self, x.shape[1:], Wire(self.blocks(x))), state

    def decode(self, payload: Payload) -> Tensor:
        return self.unblocked(payload.body, payload.shape)

    def unblocked(self, blocks: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The tensors `[b, *shape]` that have these coefficients."""
        if takes(blocks, self.chunk):
            x = blocks.new_empty(len(blocks), *shape)
            basis = _cosines_of((shape,), self.chunk, x.dtype)
            basis.turn_back(blocks.flatten(1), Placed.of(x.flatten(1)))
            return x
        h, w = block_sides(shape, self.chunk)
        basis_h = dct_basis(h, blocks.dtype, blocks.device).T
        basis_w = dct_basis(w, blocks.dtype, blocks.device).T
        matrix = _from_blocks(_turned(blocks, basis_h, basis_w), h, w, _as_matrix(shape))
        return matrix.reshape(len(blocks), *shape)


def turn_rows(
    transform: Blocks | DCT,
    shapes: Shapes,
    x: Tensor,
    out: Placed,
    keep: float = 0.0,
    scale: float = 1.0,
) -> None:
    """`out = keep * out + scale * coefficients`, in place; x and out are flat rows `[b, P]`.

    With `keep` 0 it does not matter what `out` held.

    Args:
        shapes: of the tensors that lie in a row; each is transformed by itself.
    """
    if isinstance(transform, DCT) and takes(x, transform.chunk):
        _cosines_of(shapes, transform.chunk, x.dtype).turn(x, out, keep, scale)
        return
    if isinstance(transform, Blocks) and regrouping.takes(x):
        regrouping.regroup(x, _runs(transform, shapes), out, keep, scale)
        return
    sizes, there = [math.prod(shape) for shape in shapes], out.read()
    for shape, part, to in zip(shapes, x.split(sizes, dim=1), there.split(sizes, dim=1)):
        made = transform.blocks(part.reshape(len(x), *shape)).flatten(1)
        to.copy_(scale * made if keep == 0 else to.mul_(keep).add_(made, alpha=scale))
    out.write(there)


def turn_rows_back(
    transform: Blocks | DCT, shapes: Shapes, coefficients: Tensor, out: Placed
) -> None:
    """Write to `out` the flat rows `[b, P]` of tensors that have these coefficients."""
    if isinstance(transform, DCT) and takes(coefficients, transform.chunk):
        _cosines_of(shapes, transform.chunk, coefficients.dtype).turn_back(coefficients, out)
        return
    if isinstance(transform, Blocks) and regrouping.takes(coefficients):
        regrouping.regroup_back(coefficients, _runs(transform, shapes), out)
        return
    parts = coefficients.split([math.prod(shape) for shape in shapes], dim=1)
    tensors = [
        transform.unblocked(part.unflatten(1, blocks_shape(shape, transform.sides(shape))), shape)
        for shape, part in zip(shapes, parts)
    ]
    out.write(torch.cat([tensor.flatten(1) for tensor in tensors], dim=1))


@lru_cache(maxsize=256)
def _cosines_of(shapes: Shapes, chunk: int, dtype: torch.dtype) -> Cosines:
    return cosines(tuple(_as_blocks(shape, chunk) for shape in shapes), dtype)


def block_sides(shape: tuple[int, ...], chunk: int) -> tuple[int, int]:
    """h and w of the blocks of a tensor of this shape.

    >>> block_sides((1000, 512), 64)
    (50, 64)
    """
    rows, columns = _as_matrix(shape)
    return largest_divisor(rows, chunk), largest_divisor(columns, chunk)


def blocks_shape(shape: tuple[int, ...], sides: tuple[int, int]) -> tuple[int, int]:
    """How many blocks of these sides a tensor of this shape has, and elements in each.

    >>> blocks_shape((1000, 512), block_sides((1000, 512), 64))
    (160, 3200)
    """
    h, w = sides
    return math.prod(shape) // (h * w), h * w


@lru_cache(maxsize=256)
def turned_shapes(transform: Blocks | DCT, shapes: Shapes) -> Shapes:
    """The shapes of the coefficients of tensors: their blocks."""
    return tuple(blocks_shape(shape, transform.sides(shape)) for shape in shapes)


@lru_cache(maxsize=256)
def places_in_rows(transform: Blocks, shapes: Shapes) -> Tensor:
    """Where in a row of tensors each value of their blocks comes from, int64 [P]."""
    sizes = [math.prod(shape) for shape in shapes]
    numbers = torch.arange(sum(sizes)).split(sizes)
    parts = [transform.blocks(part.view(1, *shape)) for shape, part in zip(shapes, numbers)]
    return torch.cat([part.flatten() for part in parts])


@lru_cache(maxsize=256)
def _runs(transform: Blocks, shapes: Shapes) -> np.ndarray:
    return regrouping.runs_of(places_in_rows(transform, shapes))


@lru_cache(maxsize=4096)
def largest_divisor(n: int, at_most: int) -> int:
    """The largest divisor of n that is at most `at_most`."""
    return next(d for d in range(min(n, at_most), 0, -1) if n % d == 0)


@lru_cache(maxsize=256)
def dct_basis(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal DCT-II of n points: row f is sqrt(2/n) cos(pi (2j + 1) f / 2n), [n, n].

    Row 0 is divided by sqrt 2. Computed in float64, whatever the type.
    """
    point = torch.arange(n, dtype=torch.float64, device=device)
    basis = torch.cos(math.pi / (2 * n) * torch.outer(point, 2 * point + 1)) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis.to(dtype)


def _turned(blocks: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`left @ block @ right.T` of every h x w block of `[b, blocks, h w]`."""
    h, w = len(left), len(right)
    turned = blocks.reshape(-1, w) @ right.T if w > 1 else blocks
    turned = left @ turned.reshape(-1, h, w) if h > 1 else turned
    return turned.reshape(blocks.shape)


def _to_blocks(matrix: Tensor, h: int, w: int) -> Tensor:
    """`[b, R, C]` to `[b, blocks, h w]`, blocks in row-major order."""
    b, R, C = matrix.shape
    blocks = (R // h) * (C // w)
    return matrix.reshape(b, R // h, h, C // w, w).transpose(2, 3).reshape(b, blocks, h * w)


def _from_blocks(blocks: Tensor, h: int, w: int, shape: tuple[int, int]) -> Tensor:
    """The inverse of `_to_blocks`, `[b, *shape]`."""
    R, C = shape
    n = len(blocks)
    return blocks.reshape(n, R // h, C // w, h, w).transpose(2, 3).reshape(n, R, C)


def _as_blocks(shape: tuple[int, ...], chunk: int) -> Matrix:
    """R, C, h and w of a tensor of this shape."""
    return (*_as_matrix(shape), *block_sides(shape, chunk))


def _as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """A vector is a matrix of one row; further axes join the second."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def _check_chunk(chunk: int) -> None:
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk={chunk!r}: must be an integer >= 1, for example 64")
