"""Signs of rows packed eight to a byte, and what is made of them: compiled, or by torch.

A bit is set where a value is negative, so zeros of both signs, and NaN, count as positive; bits
lie least significant first. Groups of consecutive values may have a scale: what a bit stands for
is then plus or minus that. Compiled, rows are read once and written once, and sums over rows are
made some columns at a time, which stay in the first cache while all rows go by.

Rows are treated apart and added up in their order, so results depend neither on how many there are
nor on the thread.

Legend: n rows, m values of a row, G groups of B values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from optimizers.compression.groups import grouped, members, ungrouped
from optimizers.compression.lanes import LANES, add_signed_lanes, negative_lanes
from optimizers.compression.selection import takes
from sim.compiled import compiled
from sim.compute.placed import Placed
from sim.packing import Format

_COLUMNS = 2048
"""Values that are added up at a time; a multiple of LANES."""
_kept = compiled(__file__)


@dataclass(frozen=True)
class PackedSigns(Format):
    """Bytes that hold the signs of `m` values, which are decoded to a floating type."""

    m: int
    dtype: torch.dtype

    def nbytes(self, m: int) -> int:
        return m

    def values(self, m: float) -> float:
        return self.m

    def pack(self, values: Tensor) -> bytes:
        return values.contiguous().numpy().tobytes()

    def unpack(self, data: bytes, m: int, dtype: torch.dtype) -> Tensor:
        return torch.frombuffer(bytearray(data), dtype=torch.uint8) if m else torch.empty(0)


def pack(x: Tensor) -> Tensor:
    """The signs of rows [n, m], uint8 [n, ceil(m / 8)]."""
    if takes(x):
        bits = np.empty((len(x), -(-x.shape[1] // 8)), np.uint8)
        _pack(x.detach().contiguous().numpy(), bits)
        return torch.from_numpy(bits)
    eights = grouped(x < 0, 8) if x.shape[1] >= 8 else (x < 0)[:, None]
    places = torch.arange(eights.shape[-1], device=x.device)
    return (eights * 2**places).sum(-1).to(torch.uint8)


def add(bits: Tensor, scale: Tensor, size: int, rows: Placed, factor: float) -> None:
    """`rows += factor * scale * signs`, in place, for rows [n, m].

    Args:
        bits: uint8 [n, ceil(m / 8)].
        scale: of each group [n, G].
        size: B.
    """
    if takes(rows.memory):
        assert rows.memory.is_contiguous()
        factors = (scale * factor).contiguous().numpy()
        _add(bits.contiguous().numpy(), factors, size, rows.memory.detach().numpy(), rows.at)
    else:
        rows.add(_unpacked(bits, scale, size, rows.memory.shape[1]), factor)


def total(bits: Tensor, scale: Tensor, size: int, m: int, runs: int) -> Tensor:
    """The sums of scaled signs over the rows of each run, [runs, m]; see `add`."""
    out = scale.new_zeros(runs, m)
    if takes(out):
        _total(bits.contiguous().numpy(), scale.contiguous().numpy(), size, out.numpy())
        return out
    return _unpacked(bits, scale, size, m).unflatten(0, (runs, -1)).sum(1)


def mean_magnitudes(x: Tensor, size: int) -> Tensor:
    """The mean magnitudes of groups of so many values of rows [n, m], [n, G]."""
    if takes(x):
        means = x.new_empty(len(x), -(-x.shape[1] // size))
        _mean_magnitudes(x.detach().contiguous().numpy(), size, means.numpy())
        return means
    groups = grouped(x.abs(), size)
    return (groups.sum(-1, keepdim=True) / members(groups, x.shape[1:])).flatten(1)


def _unpacked(bits: Tensor, scale: Tensor, size: int, m: int) -> Tensor:
    """Scaled signs [n, m]."""
    negative = (bits[..., None] >> torch.arange(8, device=bits.device)) & 1
    signs = 1 - 2 * negative.flatten(1)[:, :m].to(scale.dtype)
    return ungrouped(grouped(signs, size) * scale[..., None], (m,))


@_kept
def _pack(x, bits):
    m = x.shape[1]
    whole = m - m % LANES
    for r in range(len(x)):
        row, o = x[r], 0
        for first in range(0, whole, LANES):
            negative = negative_lanes(row, first)
            for _ in range(LANES // 8):
                bits[r, o] = negative & np.uint64(255)
                negative >>= np.uint64(8)
                o += 1
        for first in range(whole, m, 8):
            byte = 0
            for i in range(first, min(first + 8, m)):
                byte |= (row[i] < 0) << (i - first)
            bits[r, o] = byte
            o += 1


@_kept
def _mean_magnitudes(x, size, means):
    """Summed some values at a time, which lanes do; those sums in float64, for they may be many."""
    m = x.shape[1]
    for r in range(len(x)):
        for g in range(means.shape[1]):
            stop = min((g + 1) * size, m)
            magnitude = 0.0
            for first in range(g * size, stop, _COLUMNS):
                magnitude += np.float64(
                    _sum_of_magnitudes(x[r, first : min(first + _COLUMNS, stop)])
                )
            means[r, g] = magnitude / (stop - g * size)


@compiled(__file__, fastmath={"reassoc"})
def _sum_of_magnitudes(x):
    total = x.dtype.type(0)
    for i in range(len(x)):
        total += abs(x[i])
    return total


@_kept
def _add(bits, factors, size, out, at):
    m = out.shape[1]
    for r in range(len(at)):
        for g in range(factors.shape[1]):
            _add_group(bits[r], factors[r, g], g * size, min((g + 1) * size, m), out[at[r]])


@_kept
def _total(bits, scale, size, out):
    runs, m = out.shape
    n = len(bits) // runs
    for run in range(runs):
        for left in range(0, m, _COLUMNS):
            right = min(left + _COLUMNS, m)
            for r in range(run * n, run * n + n):
                for g in range(left // size, (right - 1) // size + 1):
                    start, stop = max(g * size, left), min((g + 1) * size, right)
                    _add_group(bits[r], scale[r, g], start, stop, out[run])


@_kept
def _add_group(bits, factor, start, stop, out):
    """Add plus or minus a factor to the values of a row from `start` to `stop`."""
    i = start
    while i < stop and i % 8:
        out[i] += -factor if bits[i >> 3] >> (i & 7) & 1 else factor
        i += 1
    while i + LANES <= stop:
        add_signed_lanes(out, i, bits, i >> 3, factor)
        i += LANES
    while i < stop:
        out[i] += -factor if bits[i >> 3] >> (i & 7) & 1 else factor
        i += 1
