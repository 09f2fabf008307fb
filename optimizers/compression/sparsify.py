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

from optimizers.compression.scattered import scattered_mean
from optimizers.compression.selection import largest
from optimizers.compression.transform import Shapes
from sim.packing import number
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
        index = largest(units, self.amount(units.shape[-1]))
        return self.payload(x.shape[1:], units.gather(-1, index), index), state

    def payload(self, shape: tuple[int, ...], values: Tensor, index: Tensor) -> Payload:
        """What is sent of tensors of a shape: `values` and `index`, [n, units, k] each."""
        indices = _index_wire(index, self.units(shape)[-1], self.index)
        return Payload(self, shape, Wire(values, dtype=self.value_dtype), indices=indices)

    def amount(self, e: int) -> int:
        """Coefficients kept of a unit of e."""
        return _amount(self.k, self.ratio, e)

    def decode(self, payload: Payload) -> Tensor:
        values, index = payload.body, payload["indices"]
        lead = (values.shape[0], *self.units(payload.shape))
        units = torch.zeros(lead, dtype=values.dtype, device=values.device)
        return units.scatter_(-1, index, values).reshape(payload.n, *payload.shape)

    def aggregate(
        self, payload: Payload, over: str, weights: Tensor | None, runs: int = 1
    ) -> Tensor:
        index = payload["indices"].flatten(1)
        if index.is_meta:  # nothing of the size of a model is made there
            return payload.body.new_empty(runs, *payload.shape)
        index = index + starts_of(self, (payload.shape,)).to(index.device)
        values, size = payload.body.flatten(1), math.prod(payload.shape)
        mean = scattered_mean(values, index, size, over, weights, runs)
        return mean.reshape(runs, *payload.shape)

    def sends_exactly(self, dtype: torch.dtype) -> bool:
        """Whether values of a type are sent as they are."""
        return self.value_dtype == "native" or number(self.value_dtype).dtype == dtype

    def units(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A tensor's shape as that of its units, whose length is the last."""
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
        size = math.prod(payload.shape)
        index = self._support(payload["seed"], size)
        mean = scattered_mean(payload.body, index, size, over, weights, runs)
        return mean.reshape(runs, *payload.shape)

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
        sizes = counts.tolist()
        row, index_in_row = keep.nonzero(as_tuple=True)
        column = torch.arange(len(row), device=x.device) - (counts.cumsum(0) - counts)[row]
        # What pads a row to the width of the longest points at its first value, and adds zero.
        index = row.new_zeros(len(x), max(sizes, default=0))
        index[row, column] = index_in_row
        values = flat.new_zeros(index.shape)
        values[row, column] = flat[row, index_in_row]
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
        values, index, counts = payload.body, payload["indices"], payload["count"][:, 0]
        size = math.prod(payload.shape)
        mean = scattered_mean(values, index, size, over, weights, runs, counts)
        return mean.reshape(runs, *payload.shape)


def payloads_of_each(
    codec: TopK, values: Tensor, index: Tensor, shapes: Shapes
) -> tuple[Payload, ...]:
    """What the codec sends of each of the tensors that lie in a row, by one selection of all.

    Args:
        values: selected among the `units_of` the tensors, [b, K].
        index: of the values in their units, [b, K].
    """
    kept, b = _kept_of(codec, shapes), len(values)
    sizes = [math.prod(shape) for shape in kept]
    pieces = zip(shapes, kept, values.split(sizes, dim=1), index.split(sizes, dim=1))
    return tuple(
        codec.payload(shape, some.view(b, *to), at.view(b, *to)) for shape, to, some, at in pieces
    )


@lru_cache(maxsize=256)
def units_of(codec: TopK, shapes: Shapes) -> np.ndarray:
    """The units of tensors that lie one after the other in a row, as `selection.select` wants."""
    parts, start = [], 0
    for shape in shapes:
        *lead, e = codec.units(shape)
        parts.append((start, math.prod(lead), e, codec.amount(e)))
        start += math.prod(shape)
    return np.array(parts, dtype=np.int64).reshape(-1, 4)


@lru_cache(maxsize=256)
def _kept_of(codec: TopK, shapes: Shapes) -> Shapes:
    """The shapes of the values that are sent of each tensor: units, and k of each."""
    units = [codec.units(shape) for shape in shapes]
    return tuple((*lead, codec.amount(e)) for *lead, e in units)


@lru_cache(maxsize=256)
def starts_of(codec: TopK, shapes: Shapes) -> Tensor:
    """Where in a row of such tensors the unit begins that a value is sent of, int64 [K]."""
    begins = [
        np.repeat(np.arange(start, start + units * e, e), k)
        for start, units, e, k in units_of(codec, shapes)
    ]
    return torch.from_numpy(np.concatenate(begins))


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
    return Wire(index, dtype=_narrowest(e), counts=counts)


@lru_cache(maxsize=256)
def _narrowest(e: int) -> str:
    """The number type of the fewest bytes that holds indices below e."""
    widths = (("uint8", 1 << 8), ("uint16", 1 << 16), ("uint32", 1 << 32), ("int64", 1 << 63))
    return next(name for name, top in widths if e <= top)


@lru_cache(maxsize=128)
def _draw(seed: int, size: int, k: int) -> Tensor:
    """k distinct indices below `size`, in order; a function of the 64-bit seed."""
    rng = Streams(seed % (1 << 64)).rng("random_k")
    return torch.from_numpy(rng.choice(size, k, replace=False, shuffle=False)).sort().values
