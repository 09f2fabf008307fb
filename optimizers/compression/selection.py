"""The k largest magnitudes of each unit of some rows, exactly: compiled, or by torch.

A number without its sign bit is an integer that grows with the magnitude, so comparing integers
compares magnitudes, with infinity above all numbers and NaN above infinity. Ties go to the lowest
index. Compiled, a unit is cut into groups, at least 2k: the k-th largest of their peaks bounds the
k-th largest value from below, and only what reaches it is looked at again. Where groups would be
too narrow, the bound is a guess from a sample, and counts if at least k reach it. The k-th largest
of those few is found bit by bit, each bit by counting how many reach it.

Rows are treated apart: results depend neither on how many there are nor on the thread. Scratch
memory belongs to the call, and the interpreter's lock is free meanwhile.

Legend: b rows, P values of a row, k largest of e in a unit, K kept in a row, u units.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from optimizers.compression.lanes import LANES, lowest_bit, reached_lanes
from sim.compiled import compiled
from sim.compute.placed import Placed

_INTEGERS = {torch.float32: np.int32, torch.float64: np.int64}
_NARROWEST, _WIDEST = 8, LANES
"""Values of a group: with fewer, peaks cost more than they save; with more, reading it again."""
_EVERY, _LEAST_SAMPLED = 17, 1024
"""One of so many values is in a sample, odd so that it is from all columns of most matrices; of
fewer values there is none."""
_kept = compiled(__file__)


def takes(x: Tensor) -> bool:
    """Whether the compiled functions take these values: numbers on the CPU, of 32 or 64 bits."""
    return x.device.type == "cpu" and x.dtype in _INTEGERS


def largest(units: Tensor, k: int) -> Tensor:
    """Indices of the k largest magnitudes along the last axis, lowest first, int64 `[..., k]`.

    NaN counts as the largest of all; the lowest index wins ties.
    """
    *lead, e = units.shape
    if k == e:
        return torch.arange(e, device=units.device).expand(units.shape)
    if not takes(units):
        return _largest_by_torch(units, k)
    rows = Placed.of(units.reshape(-1, e))
    return select(rows, np.array([[0, 1, e, k]]))[1].reshape(*lead, k)


def select(rows: Placed, parts: np.ndarray, take: bool = False) -> tuple[Tensor, Tensor]:
    """The largest of each unit of rows `[b, P]`, parts and units one after the other.

    Args:
        parts: of each, its start in a row, its units, and e and k of these, int64 `[parts, 4]`.
        take: subtract from the rows, in place, what was selected.

    Returns:
        values `[b, K]` and indices in their units, int64 `[b, K]`, ascending within a unit.
    """
    assert rows.memory.is_contiguous() or not take
    x = rows.memory.detach().contiguous().numpy()
    K = int((parts[:, 1] * parts[:, 3]).sum())
    values, index = np.empty((len(rows), K), x.dtype), np.empty((len(rows), K), np.int64)
    integers = _INTEGERS[rows.memory.dtype]
    unsigned = integers(np.iinfo(integers).max)
    nan = integers(np.array(np.inf, x.dtype).view(integers) + 1)
    _select(x, x.view(integers), rows.at, parts, unsigned, nan, take, values, index)
    return torch.from_numpy(values), torch.from_numpy(index)


def add(rows: Placed, values: Tensor, index: Tensor, scale: float = 1.0) -> None:
    """Add `scale * values [b, K]` to rows `[b, P]`, in place, at `index` in them, int64 [b, K]."""
    assert rows.memory.is_contiguous()
    x = rows.memory.detach().numpy()
    factor = x.dtype.type(scale)
    within = _add(x, rows.at, values.contiguous().numpy(), index.contiguous().numpy(), factor)
    assert within, f"an index lies outside of the {x.shape[1]} values of a row"


def _largest_by_torch(units: Tensor, k: int) -> Tensor:
    magnitude = units.abs()
    top, index = magnitude.topk(k + 1, dim=-1)
    index = index[..., :k].sort(-1).values
    # topk promises no order among equals, which matters only where the cut runs between them.
    tied = top[..., k - 1] == top[..., k]
    if not tied.is_meta and bool(tied.any()):
        index[tied] = _first_of_ties(magnitude[tied], top[..., k - 1 : k][tied], k)
    return index


def _first_of_ties(magnitude: Tensor, cut: Tensor, k: int) -> Tensor:
    """Indices of all above the cut, and of the first that equal it until there are k: [r, k]."""
    above = ~(magnitude <= cut)  # NaN counts as above, as in topk
    equal = magnitude == cut
    room = k - above.sum(-1, keepdim=True)
    keep = above | (equal & (equal.cumsum(-1) <= room))
    return keep.nonzero()[:, 1].reshape(-1, k)


@_kept
def _select(x, bits, at, parts, unsigned, nan, take, values, index):
    longest = parts[:, 2].max() + LANES  # vectors are read from any place on
    sizes, few = np.empty(longest, bits.dtype), np.empty(longest, bits.dtype)
    peaks, found = np.empty(longest, bits.dtype), np.empty(longest, np.int64)
    for r in range(len(at)):
        row, numbers, o = x[at[r]], bits[at[r]], 0
        for q in range(len(parts)):
            start, units, e, k = parts[q, 0], parts[q, 1], parts[q, 2], parts[q, 3]
            for first in range(start, start + units * e, e):
                if k == e:
                    for j in range(k):
                        index[r, o + j] = j
                else:
                    _magnitudes(numbers[first : first + e], unsigned, nan, sizes)
                    _pick(sizes[:e], k, peaks, few, found, index[r, o : o + k])
                for j in range(o, o + k):
                    value = row[first + index[r, j]]
                    values[r, j] = value
                    if take:
                        row[first + index[r, j]] -= value
                o += k


@_kept
def _magnitudes(bits, unsigned, nan, sizes):
    """Integers in the order of the magnitudes; every NaN is the same one."""
    for i in range(len(bits)):
        sizes[i] = min(bits[i] & unsigned, nan)


@_kept
def _pick(sizes, k, peaks, few, found, index):
    """Write the indices of the k largest of `sizes`, ascending."""
    n = _candidates(sizes, k, peaks, few, found)
    for j in range(n):
        few[j] = sizes[found[j]]
    cut = sizes.dtype.type(_kth_largest(few[:n], k))
    room, o = k, 0
    for j in range(n):
        room -= few[j] > cut
    for j in range(n):
        first_tied = (few[j] == cut) & (room > 0)
        room -= first_tied
        found[o] = found[j]
        o += (few[j] > cut) | first_tied
    for j in range(k):
        index[j] = found[j]


@_kept
def _candidates(sizes, k, peaks, few, found):
    """Write to `found`, ascending, where sizes may be among the k largest; their number."""
    width = min(_WIDEST, len(sizes) // (2 * k))
    if width < _NARROWEST:
        n = _above_a_guess(sizes, k, few, found)
        if n >= k:
            return n
        for i in range(len(sizes)):
            found[i] = i
        return len(sizes)
    groups, high, n = len(sizes) // width, 0, 0
    for g in range(groups):
        peaks[g] = _peak(sizes[g * width : g * width + width])
    least = sizes.dtype.type(_kth_largest(peaks[:groups], k))
    for g in range(groups):  # without branches, which nobody could predict
        peak, peaks[high] = peaks[g], g
        high += peak >= least
    peaks[high] = groups  # the rest, narrower than a group
    for h in range(high + 1):
        first = peaks[h] * width
        n = _take_reached(sizes, first, min(width, len(sizes) - first), least, found, n)
    return n


@_kept
def _above_a_guess(sizes, k, sample, found):
    """The same for what reaches a bound guessed from a sample; fewer than k if it was too high."""
    m = len(sizes) // _EVERY
    share = k * m / len(sizes)
    rank = int(share + 3 * share**0.5) + 2
    if rank >= m or len(sizes) < _LEAST_SAMPLED:
        return 0
    for i in range(m):
        sample[i] = sizes[i * _EVERY]
    least, n = sizes.dtype.type(_kth_largest(sample[:m], rank)), 0
    for first in range(0, len(sizes), LANES):
        n = _take_reached(sizes, first, min(LANES, len(sizes) - first), least, found, n)
    return n


@_kept
def _take_reached(sizes, first, width, least, found, n):
    """Add which of a few sizes reach a bound to those found, n so far; returns how many are."""
    inside = ~np.uint64(0) >> np.uint64(64 - width)
    reached = reached_lanes(sizes, first, least) & inside
    while reached:
        found[n] = first + lowest_bit(reached)
        reached &= reached - np.uint64(1)
        n += 1
    return n


@_kept
def _peak(sizes):
    peak = sizes[0]
    for i in range(len(sizes)):
        peak = max(peak, sizes[i])
    return peak


@_kept
def _kth_largest(sizes, k):
    """The largest number, not always one of `sizes`, that at least k of them reach.

    It is the k-th largest, or where exactly k of them are above a gap, a number in that gap.
    """
    least, most = sizes[0], sizes[0]
    for i in range(len(sizes)):
        least, most = min(least, sizes[i]), max(most, sizes[i])
    bit = 0
    while (least ^ most) >> bit:
        bit += 1
    cut = least >> bit << bit
    while bit > 0:
        bit -= 1
        trial = cut | (1 << bit)
        reached = _reached(sizes, sizes.dtype.type(trial))
        if reached >= k:
            cut = trial
        if reached == k:
            break
    return cut


@_kept
def _reached(sizes, trial):
    count = 0
    for i in range(len(sizes)):
        count += sizes[i] >= trial
    return count


@_kept
def _add(x, at, values, index, factor):
    """False as soon as an index lies outside."""
    for r in range(len(at)):
        row = x[at[r]]
        for j in range(index.shape[1]):
            if index[r, j] < 0 or index[r, j] >= len(row):
                return False
            row[index[r, j]] += factor * values[r, j]
    return True
