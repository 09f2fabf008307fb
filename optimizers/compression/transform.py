"""Codecs that change the basis or the grouping and lose nothing: DCT, Blocks.

Legend: b rows of a block of nodes, [R, C] a matrix of one node, h x w a block of it.

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

import torch
from torch import Tensor

from sim.payload import Compressor, Context, Payload, State, Wire


@dataclass(frozen=True)
class Blocks(Compressor):
    """Regroup a tensor into blocks, `[b, blocks, block elements]`, for a codec that follows.

    `Chain(Blocks(64), TopK(64))` keeps 64 of every 64 x 64 block, as SparseLoCo does.

    Args:
        chunk: longest side of a block.
    """

    chunk: int = 64

    summable = True
    shared_support = True
    unbiased = True
    linear = True

    def __post_init__(self) -> None:
        _check_chunk(self.chunk)

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        shape = x.shape[1:]
        h, w = block_sides(shape, self.chunk)
        blocks = _to_blocks(x.reshape(len(x), *_as_matrix(shape)), h, w)
        return Payload(self, shape, Wire(blocks)), state

    def decode(self, payload: Payload) -> Tensor:
        h, w = block_sides(payload.shape, self.chunk)
        matrix = _from_blocks(payload.body, h, w, _as_matrix(payload.shape))
        return matrix.reshape(payload.n, *payload.shape)


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

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        shape = x.shape[1:]
        h, w = block_sides(shape, self.chunk)
        blocks = _to_blocks(x.reshape(len(x), *_as_matrix(shape)), h, w)
        basis_h, basis_w = dct_basis(h, x.dtype, x.device), dct_basis(w, x.dtype, x.device)
        return Payload(self, shape, Wire(_turned(blocks, basis_h, basis_w))), state

    def decode(self, payload: Payload) -> Tensor:
        h, w = block_sides(payload.shape, self.chunk)
        body = payload.body
        basis_h = dct_basis(h, body.dtype, body.device).T
        basis_w = dct_basis(w, body.dtype, body.device).T
        turned = _turned(body, basis_h, basis_w)
        matrix = _from_blocks(turned, h, w, _as_matrix(payload.shape))
        return matrix.reshape(payload.n, *payload.shape)


def block_sides(shape: tuple[int, ...], chunk: int) -> tuple[int, int]:
    """h and w of the blocks of a tensor of this shape.

    >>> block_sides((1000, 512), 64)
    (50, 64)
    """
    rows, columns = _as_matrix(shape)
    return largest_divisor(rows, chunk), largest_divisor(columns, chunk)


def blocks_shape(shape: tuple[int, ...], chunk: int) -> tuple[int, int]:
    """How many blocks a tensor of this shape has, and elements in each.

    >>> blocks_shape((1000, 512), 64)
    (160, 3200)
    """
    h, w = block_sides(shape, chunk)
    return math.prod(shape) // (h * w), h * w


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


def _as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """A vector is a matrix of one row; further axes join the second."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def _check_chunk(chunk: int) -> None:
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk={chunk!r}: must be an integer >= 1, for example 64")
