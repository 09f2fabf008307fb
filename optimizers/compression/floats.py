"""Codecs that send floats of 8 or 4 bits and a scale for some of them: Float8, Float4.

Legend: n rows (one per node), R x C a matrix of one node, G groups of B values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from optimizers.compression.groups import check_group, grouped, nonzero, ungrouped
from sim.payload import Compressor, Context, Payload, State, Wire

_EIGHT = {"e4m3": ("float8_e4m3fn", 448.0), "e5m2": ("float8_e5m2", 57344.0)}
"""Formats of 8 bits: number type and largest value."""
_FOUR = {
    "e3m0": (0.0, *(2.0**e for e in range(-2, 5))),
    "e2m1": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
}
"""Formats of 4 bits: the magnitudes that have a code; with a sign, and without a minus zero."""


@dataclass(frozen=True)
class Float8(Compressor):
    """Floats of 8 bits, scaled so that the largest of a row becomes the largest that there is.

    A row is one of the first axis of a tensor, or a vector as a whole: use it inside of
    `PerTensor`, or say how many values share a scale. Rounds to the nearest, ties to even.

    Bytes of a row: 4 for the scale and 1 for each value, padded to a multiple of `align`. With 4,
    those of pytorch/torchft for matrices (it sends 8 bytes for each value of a vector).

    Args:
        kind: `"e4m3"`, up to 448 with three bits of mantissa, or `"e5m2"`, up to 57344 with two.
        block: values of the flattened tensor that share a scale, instead of those of a row.
        align: bytes that the values of a row are padded to.

    >>> from sim.compute.layout import Layout
    >>> Float8().nbytes(Layout.flat(1001))
    1008
    """

    kind: str = "e4m3"
    block: int | None = None
    align: int = 4

    shared_support = True
    quantises = True

    def __post_init__(self) -> None:
        _check_kind(self.kind, _EIGHT)
        check_group("block", self.block, "the rows of a tensor")
        if isinstance(self.align, bool) or not isinstance(self.align, int) or self.align < 1:
            raise ValueError(f"align={self.align!r}: must be an integer >= 1; 1 pads nothing")

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        dtype, top = _EIGHT[self.kind]
        rows = self._rows(x, x.shape[1:])
        factor = top / rows.abs().amax(-1, keepdim=True)
        scale = Wire(torch.where(factor.isinf(), 1, factor), bits=32)
        body = Wire(ungrouped(rows * scale.data, x.shape[1:]), dtype=dtype)
        side = {"scale": scale}
        padding = self._padding(rows, math.prod(x.shape[1:]))
        if padding:
            side["padding"] = Wire(torch.zeros(len(x), padding, dtype=torch.uint8, device=x.device))
        return Payload(self, x.shape[1:], body, **side), state

    def decode(self, payload: Payload) -> Tensor:
        rows = self._rows(payload.body, payload.shape) / payload["scale"]
        return ungrouped(rows, payload.shape)

    def _rows(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """`[n, *shape]` as `[n, G, B]`."""
        if self.block is None and len(shape) > 1:
            return x.reshape(len(x), shape[0], -1)
        return grouped(x, self.block)

    def _padding(self, rows: Tensor, size: int) -> int:
        """Bytes that fill up the rows of a tensor of so many values."""
        _, G, B = rows.shape
        last = size - (G - 1) * B
        return (G - 1) * (-B % self.align) + -last % self.align


@dataclass(frozen=True)
class Float4(Compressor):
    """Floats of 4 bits, scaled so that the largest of a block becomes the largest that there is.

    `"e3m0"` is a sign and three bits of exponent: zero and the powers of two from 1/4 to 16, each
    the nearest in logarithm, so a value below 2^-2.5 becomes zero. Streaming DiLoCo sends it
    (arXiv:2501.18512), without feedback; block and rounding are not published. `"e2m1"` has the
    magnitudes 0, 0.5, 1, 1.5, 2, 3, 4 and 6, each the nearest, ties to the even code.

    Bytes: ceil(m / 2) and 4 for each block's scale. A NaN poisons its block.

    Args:
        kind: `"e3m0"` or `"e2m1"`.
        block: values that share a scale, of the flattened row; None for the whole row.

    >>> from sim.compute.layout import Layout
    >>> Float4().nbytes(Layout.flat(1000))
    516
    """

    kind: str = "e3m0"
    block: int | None = 256

    shared_support = True
    quantises = True
    passes = 6.0

    def __post_init__(self) -> None:
        _check_kind(self.kind, _FOUR)
        check_group("block", self.block)

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        groups = grouped(x, self.block)
        magnitudes = groups.abs()
        scale = Wire(magnitudes.amax(-1, keepdim=True) / _FOUR[self.kind][-1], bits=32)
        borders = _borders(self.kind, x.dtype).to(x.device)
        code = torch.bucketize(magnitudes.div_(nonzero(scale.data)), borders, out_int32=True)
        signed = torch.where(groups < 0, -code, code).to(torch.int8)
        body = Wire(ungrouped(signed, x.shape[1:]), bits=4)
        return Payload(self, x.shape[1:], body, scale=scale), state

    def decode(self, payload: Payload) -> Tensor:
        scale, positive = payload["scale"], _FOUR[self.kind]
        negative = [-value for value in positive[:0:-1]]
        values = torch.tensor([*negative, *positive], dtype=scale.dtype, device=scale.device)
        codes = payload.body.to(torch.int64) + len(negative)
        return ungrouped(grouped(values[codes], self.block) * scale, payload.shape)


@lru_cache(maxsize=16)
def _borders(kind: str, dtype: torch.dtype) -> Tensor:
    """Magnitudes at which the next code begins; the border itself belongs to the lower code."""
    values = torch.tensor(_FOUR[kind], dtype=dtype, device="cpu")
    if kind == "e3m0":
        return values[1:] * 2**-0.5
    middle = (values[1:] + values[:-1]) / 2
    odd = torch.arange(len(middle), device="cpu") % 2 == 1  # there the upper code is the even one
    return torch.where(odd, middle.nextafter(torch.zeros_like(middle)), middle)


def _check_kind(kind: str, kinds: dict) -> None:
    if kind not in kinds:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(kinds)}")
