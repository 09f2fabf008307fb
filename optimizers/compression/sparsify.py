"""Codecs that send the largest coefficients and where they are: TopK, Threshold.

Legend: n rows (one per node), k coefficients kept of e in a unit, P values in a row.

They are biased, and want error feedback (or DeMo's momentum, which is that).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from optimizers.compression.amounts import amount, check_amount, check_choice
from optimizers.compression.scattered import scattered_mean
from optimizers.compression.selection import add, largest, takes
from optimizers.compression.transform import Shapes
from sim.compute.placed import Placed
from sim.packing import Bitmap, Bits, Format, number
from sim.payload import Compressor, Context, Payload, State, Wire

_HOLDS = {
    "uint8": 1 << 8,
    "12bit": 1 << 12,
    "uint16": 1 << 16,
    "uint32": 1 << 32,
    "int64": 1 << 63,
}
"""How many values a unit may have for its indices to fit a format."""
INDEXES = ("bytes", "packed", "bitmap", "auto", *_HOLDS)
"""How a `TopK` may write its indices."""


@dataclass(frozen=True)
class TopK(Compressor):
    """The k coefficients of largest magnitude in each unit; the lowest index wins ties.

    Bytes per unit: k (value + index). k is clamped to the unit; indices are sent in order.

    | selection among | codec |
    | --- | --- |
    | all values of a node | `TopK(...)` on the flat row |
    | a tensor | `PerTensor(TopK(..., unit="row"))` |
    | a row of a matrix | `PerTensor(TopK(...))` |
    | a block of a matrix | `PerTensor(Chain(Blocks(64), TopK(...)))` |
    | so many consecutive values | `Chain(Chunks(4096), TopK(...))` |

    Args:
        k: coefficients kept per unit.
        ratio: instead of k, a fraction of the unit: k = max(1, round(ratio e)).
        unit: `"last"` selects along the last axis (a block of a DCT, a row of a matrix, the
            whole of a flat row); `"row"` among all that a node encodes.
        value_dtype: number type of the values sent; `"native"` for that of the input.
        index: `"bytes"`, the fewest of 1, 2, 4 or 8 that hold e values; `"packed"`, ceil(log2 e)
            bits; `"bitmap"`, e bits for all indices of a unit; `"auto"`, the shorter of these two,
            for the tensor; or always `"uint8"`, `"12bit"`, `"uint16"`, `"uint32"`, `"int64"`.

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
        check_amount(self.k, self.ratio)
        check_choice("unit", self.unit, ("last", "row"))
        check_choice("index", self.index, INDEXES)

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        units = x.flatten(1) if self.unit == "row" else x
        index = largest(units, self.amount(units.shape[-1]))
        return self.payload(x.shape[1:], units.gather(-1, index), index), state

    def payload(self, shape: tuple[int, ...], values: Tensor, index: Tensor) -> Payload:
        """What is sent of tensors of a shape: `values` and `index`, [n, units, k] each."""
        e, k, m = self.units(shape)[-1], index.shape[-1], math.prod(index.shape[1:])
        indices = Wire(index, format=_index_format(self.index, e, k, m))
        return Payload(self, shape, Wire(values, dtype=self.value_dtype), indices=indices)

    def amount(self, e: int) -> int:
        """Coefficients kept of a unit of e."""
        return amount(self.k, self.ratio, e)

    def decode(self, payload: Payload) -> Tensor:
        values, index = payload.body, payload["indices"]
        lead = (values.shape[0], *self.units(payload.shape))
        units = torch.zeros(lead, dtype=values.dtype, device=values.device)
        return units.scatter_(-1, index, values).reshape(payload.n, *payload.shape)

    def add(self, payload: Payload, rows: Placed, scale: float) -> None:
        if not takes(rows.memory):
            super().add(payload, rows, scale)
            return
        index = payload["indices"].flatten(1) + starts_of(self, (payload.shape,))
        add(rows, payload.body.flatten(1), index, scale)

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
            indices=Wire(index, dtype=_narrowest(flat.shape[1]), counts=sizes),
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


@lru_cache(maxsize=1024)
def _index_format(form: str, e: int, k: int, m: int) -> Format:
    """How m indices below e are written, of units that have k of them."""
    packed, bitmap = Bits(max(1, (e - 1).bit_length())), Bitmap(k, e)
    if form == "bytes":
        return number(_narrowest(e))
    if form == "auto":
        return min((packed, bitmap), key=lambda format: format.nbytes(m))
    if form in ("packed", "bitmap"):
        return packed if form == "packed" else bitmap
    if e > _HOLDS[form]:
        raise ValueError(
            f"index={form!r}: holds indices below {_HOLDS[form]}, and a unit has {e} values; "
            f"choose {_narrowest(e)!r}, or 'auto' for the shortest"
        )
    return Bits(12) if form == "12bit" else number(form)


@lru_cache(maxsize=256)
def _narrowest(e: int) -> str:
    """The number type of the fewest bytes that holds indices below e."""
    return next(name for name, top in _HOLDS.items() if name != "12bit" and e <= top)
