"""Groups: the values of a row that share a scale.

Legend: n rows, m values in a row, G groups of B values.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped(x: Tensor, size: int | None) -> Tensor:
    """`[n, ...]` as `[n, G, B]`, padded with zeros; one group of all if `size` is None."""
    flat = x.flatten(1)
    m = flat.shape[1]
    size = min(size or m, m)
    padded = F.pad(flat, (0, -m % size)) if m % size else flat
    return padded.unflatten(1, (-1, size))


def ungrouped(groups: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `grouped`, `[n, *shape]`."""
    return groups.flatten(1)[:, : math.prod(shape)].reshape(len(groups), *shape)


def members(groups: Tensor, shape: tuple[int, ...]) -> Tensor:
    """How many values of each group are not padding, `[G, 1]`."""
    _, G, B = groups.shape
    counts = groups.new_full((G, 1), float(B))
    counts[-1] = math.prod(shape) - (G - 1) * B
    return counts


def check_group(name: str, size: int | None, of: str = "the row") -> None:
    """Refuse a number of values that is none."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"{name}={size!r}: must be an integer >= 1, or None for {of}")


def nonzero(scale: Tensor) -> Tensor:
    """The scales to divide by: 1 where all values are zero."""
    return torch.where(scale == 0, 1, scale)
