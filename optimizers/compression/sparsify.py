"""Codecs that send some of the coefficients: TopK, RandomK, Threshold.

Legend: n rows (one per node), k coefficients kept of e in a unit, P values in a row.

None of them is scaled or corrected for what it leaves out unless it says so: TopK and Threshold
are biased and want error feedback (or DeMo's momentum, which is that).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sim.payload import Compressor, Context, Payload, State, Wire
from sim.streams import Streams


@dataclass(frozen=True)
class TopK(Compressor):
    """The k coefficients of largest magnitude in each unit; the lowest index wins ties.

    Bytes per unit: k (value + index). An index takes 1, 2, 4 or 8 bytes, the fewest that hold e
    values; or, packed, ceil(log2 e) bits. k is clamped to the unit; indices are sent in order.

    Args:
        k: coefficients kept per unit.
        ratio: instead of k, a fraction of the unit: k = max(1, round(ratio e)).
        unit: `"last"` selects along the last axis (a block of a DCT, a row of a matrix, the
            whole of a flat row); `"row"` among all that a node encodes.
        value_dtype: number type of the values sent; `"native"` for that of the input.
        index: `"bytes"` or `"packed"`.

    >>> from sim.compute.layout import Layout
    >>> TopK(k=10).nbytes(Layout.flat(1000))
    60
    """

    k: int | None = None
    ratio: float | None = None
    unit: str = "last"
    value_dtype: str = "float32"
    index: str = "bytes"

    def __post_init__(self) -> None:
        _check_amount(self.k, self.ratio)
        _check_choice("unit", self.unit, ("last", "row"))
        _check_choice("index", self.index, ("bytes", "packed"))

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        units = x.flatten(1) if self.unit == "row" else x
        e = units.shape[-1]
        index = _largest(units, _amount(self.k, self.ratio, e))
        values = Wire(units.gather(-1, index), dtype=self.value_dtype)
        indices = _index_wire(index, e, self.index)
        return Payload(self, x.shape[1:], values, indices=indices), state

    def decode(self, payload: Payload) -> Tensor:
        values, index = payload.body, payload["indices"]
        lead = (values.shape[0], *self._units(payload.shape))
        units = torch.zeros(lead, dtype=values.dtype, device=values.device)
        return units.scatter_(-1, index, values).reshape(payload.n, *payload.shape)

    def aggregate(
        self, payload: Payload, over: str, weights: Tensor | None, runs: int = 1
    ) -> Tensor:
        values, index = payload.body.flatten(1), payload["indices"]
        *lead, e = self._units(payload.shape)
        starts = torch.arange(0, math.prod(lead) * e, e, device=index.device).reshape(*lead, 1)
        index = (index + starts).flatten(1)
        return _scattered_mean(values, index, payload.shape, over, weights, runs)

    def _units(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(shape),) if self.unit == "row" else shape


@dataclass(frozen=True)
class RandomK(Compressor):
    """k coefficients of a row, drawn anew each step and alike by all nodes: they can be summed.

    Bytes: 4 k, and 8 for the seed of the draw. Never scale where an error is fed back.

    Args:
        k: coefficients kept.
        ratio: instead of k, a fraction of the row: k = max(1, round(ratio P)).
        scaled: multiply the values by P / k, which makes the codec unbiased.
        value_dtype: number type of the values sent; `"native"` for that of the input.
    """

    k: int | None = None
    ratio: float | None = None
    scaled: bool = False
    value_dtype: str = "float32"

    summable = True
    shared_support = True
    deterministic = False
    linear = True

    def __post_init__(self) -> None:
        _check_amount(self.k, self.ratio)

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """Only if scaled."""
        return self.scaled

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        flat = x.flatten(1)
        seed = ctx.shared_seeds("random_k").to(x.device)
        index = self._support(seed, flat.shape[1])
        values = flat.gather(1, index)
        if self.scaled:
            values = values * (flat.shape[1] / max(1, index.shape[1]))
        body = Wire(values, dtype=self.value_dtype)
        return Payload(self, x.shape[1:], body, seed=Wire(seed)), state

    def decode(self, payload: Payload) -> Tensor:
        values, size = payload.body, math.prod(payload.shape)
        flat = torch.zeros(values.shape[0], size, dtype=values.dtype, device=values.device)
        flat.scatter_(1, self._support(payload["seed"], size), values)
        return flat.reshape(payload.n, *payload.shape)

    def aggregate(
        self, payload: Payload, over: str, weights: Tensor | None, runs: int = 1
    ) -> Tensor:
        index = self._support(payload["seed"], math.prod(payload.shape))
        return _scattered_mean(payload.body, index, payload.shape, over, weights, runs)

    def _support(self, seed: Tensor, size: int) -> Tensor:
        """The indices that belong to `seed [n]`: int64 [n, k], in order."""
        k = _amount(self.k, self.ratio, size)
        index = torch.empty(len(seed), k, dtype=torch.int64, device=seed.device)
        if not seed.is_meta:
            for row, s in zip(index, seed.tolist()):
                row.copy_(_draw(s, size, k))
        return index


@dataclass(frozen=True)
class Threshold(Compressor):
    """The coefficients of at least `t` times the root mean square of their row.

    Bytes depend on the values: 4 for the number sent, and value + index for each; so this is for
    runs on real values, and as the last stage of a Chain.

    Args:
        t: threshold in units of the root mean square; 0 keeps all that are not zero.
        value_dtype: number type of the values sent; `"native"` for that of the input.
    """

    t: float = 2.0
    value_dtype: str = "float32"

    sized_by_data = True

    def __post_init__(self) -> None:
        if not self.t >= 0:
            raise ValueError(f"t={self.t!r}: must be >= 0, for example 2.0")

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        flat = x.flatten(1)
        magnitude = flat.abs()
        rms = flat.square().mean(1, keepdim=True).sqrt()
        keep = (magnitude >= self.t * rms) & (magnitude > 0)
        counts = keep.sum(1)
        width = int(counts.max()) if len(counts) else 0
        # A stable sort brings the kept ones to the front, in order; padding points at zero values.
        front = keep.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width]
        sent = keep.gather(1, front)
        index = front.where(sent, 0)
        values = flat.gather(1, front).where(sent, 0)
        sizes = counts.tolist()
        payload = Payload(
            self,
            x.shape[1:],
            Wire(values, dtype=self.value_dtype, counts=sizes),
            count=Wire(counts[:, None], dtype="int32"),
            indices=_index_wire(index, flat.shape[1], "bytes", sizes),
        )
        return payload, state

    def decode(self, payload: Payload) -> Tensor:
        values = payload.body
        size = math.prod(payload.shape)
        flat = torch.zeros(values.shape[0], size, dtype=values.dtype, device=values.device)
        return flat.scatter_add_(1, payload["indices"], values).reshape(payload.n, *payload.shape)

    def aggregate(
        self, payload: Payload, over: str, weights: Tensor | None, runs: int = 1
    ) -> Tensor:
        index = payload["indices"]
        sent = torch.arange(index.shape[1], device=index.device) < payload["count"]
        return _scattered_mean(payload.body, index, payload.shape, over, weights, runs, sent)


def _check_amount(k: int | None, ratio: float | None) -> None:
    if (k is None) == (ratio is None):
        raise ValueError(f"k={k!r}, ratio={ratio!r}: give exactly one of them")
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise ValueError(f"k={k!r}: must be an integer >= 1")
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"ratio={ratio!r}: must be above 0 and at most 1, for example 0.01")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(choices)}")


def _amount(k: int | None, ratio: float | None, e: int) -> int:
    """Coefficients kept of a unit of e."""
    return min(k if k is not None else max(1, round((ratio or 0) * e)), e)


def _index_wire(index: Tensor, e: int, form: str, counts: list[int] | None = None) -> Wire:
    """Indices below e, in as few bytes each as hold them, or in as few bits."""
    if form == "packed":
        return Wire(index, bits=max(1, (e - 1).bit_length()), counts=counts)
    widths = (("uint8", 1 << 8), ("uint16", 1 << 16), ("uint32", 1 << 32), ("int64", 1 << 63))
    return Wire(index, dtype=next(name for name, top in widths if e <= top), counts=counts)


def _largest(units: Tensor, k: int) -> Tensor:
    """Indices of the k largest magnitudes along the last axis, lowest first, int64 [..., k]."""
    magnitude = units.abs()
    e = magnitude.shape[-1]
    if k == e:
        return torch.arange(e, device=units.device).expand(units.shape)
    if magnitude.device.type == "cpu":
        partitioned = _partitioned(magnitude.reshape(-1, e).numpy(), k)
        if partitioned is not None:
            return torch.from_numpy(partitioned).reshape(*units.shape[:-1], k)
    top, index = magnitude.topk(k + 1, dim=-1)
    index = index[..., :k].sort(-1).values
    # topk promises no order among equals, which matters only where the cut runs between them.
    tied = top[..., k - 1] == top[..., k]
    if not tied.is_meta and bool(tied.any()):
        index[tied] = _first_of_ties(magnitude[tied], top[..., k - 1 : k][tied], k)
    return index


def _partitioned(magnitude: np.ndarray, k: int) -> np.ndarray | None:
    """The indices [r, k] by partitioning, 2 to 4 times as fast as topk; None if ties or NaN bar it.

    They bar it where they leave more or fewer than k at or above the k-th largest of a row.
    """
    r, e = magnitude.shape
    kept = np.flatnonzero(magnitude >= np.partition(magnitude, e - k, axis=-1)[:, e - k, None])
    if len(kept) != r * k:
        return None
    index = kept.reshape(r, k) - np.arange(0, r * e, e)[:, None]  # in order, as flatnonzero lists
    return index if ((index >= 0) & (index < e)).all() else None


def _first_of_ties(magnitude: Tensor, cut: Tensor, k: int) -> Tensor:
    """Indices of all above the cut, and of the first that equal it until there are k: [r, k]."""
    above = ~(magnitude <= cut)  # NaN counts as above, as in topk
    equal = magnitude == cut
    room = k - above.sum(-1, keepdim=True)
    keep = above | (equal & (equal.cumsum(-1) <= room))
    return keep.nonzero()[:, 1].reshape(-1, k)


def _scattered_mean(
    values: Tensor,
    index: Tensor,
    shape: tuple[int, ...],
    over: str,
    weights: Tensor | None,
    runs: int,
    sent: Tensor | None = None,
) -> Tensor:
    """The mean over the rows of each run of `values [runs n, m]` at `index` of a tensor of `shape`.

    Sums run in the order of the rows, so the result is reproducible. `sent` masks padding.
    """
    n, size = len(values) // runs, math.prod(shape)
    starts = torch.arange(0, runs * size, size, device=index.device).repeat_interleave(n)
    index = index + starts[:, None]
    weight = values.new_ones(n) if weights is None else torch.as_tensor(weights).to(values)
    per_value = weight.repeat(runs)[:, None].expand(values.shape)
    per_value = per_value if sent is None else per_value * sent
    total = _accumulated(values * per_value, index, runs * size)
    if over == "all":
        return (total / weight.sum()).reshape(runs, *shape)
    share = _accumulated(per_value, index, runs * size)
    return torch.where(share > 0, total / share, 0).reshape(runs, *shape)


def _accumulated(values: Tensor, index: Tensor, size: int) -> Tensor:
    """The sums of `values` by `index`, [size]."""
    dense = torch.zeros(size, dtype=values.dtype, device=values.device)
    if values.is_cuda:  # index_add_ adds in any order there; this sorts first
        return dense.index_put_((index.flatten(),), values.flatten(), accumulate=True)
    return dense.index_add_(0, index.flatten(), values.flatten())


@lru_cache(maxsize=128)
def _draw(seed: int, size: int, k: int) -> Tensor:
    """k distinct indices below `size`, in order; a function of the 64-bit seed."""
    rng = Streams(seed % (1 << 64)).rng("random_k")
    return torch.from_numpy(rng.choice(size, k, replace=False, shuffle=False)).sort().values
