"""Codecs that round at random so that the mean is right: TernGrad, QSGD, Natural.

Draws depend on seed, node, step and tensor only (`Context.uniforms`).

Legend: n rows (one per node), m values in a row, G groups of B values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from optimizers.compression.groups import check_group, grouped, members, nonzero, ungrouped
from sim.payload import Compressor, Context, Payload, State, Wire


@dataclass(frozen=True)
class TernGrad(Compressor):
    """s sign(x) with probability |x| / s, else zero; s is the largest magnitude of the row.

    Bytes: ceil(m / 5) for trits, or ceil(m / 4) for two bits each, and 4 for the scale. Unbiased
    unless values are clipped. Source: Wen et al. (arXiv:1705.07878).

    Args:
        clip: first bring values to at most so many standard deviations (of the row, about its
            mean), which makes s smaller; the paper's is 2.5. None clips nothing.
        block: values that share a scale, of the flattened row; None for the whole row.
        packing: `"trits"` or `"bits"`.

    >>> from sim.compute.layout import Layout
    >>> TernGrad().nbytes(Layout.flat(1000)), TernGrad(packing="bits").nbytes(Layout.flat(1000))
    (204, 254)
    """

    clip: float | None = None
    block: int | None = None
    packing: str = "trits"

    shared_support = True
    quantises = True
    deterministic = False
    passes = 6.0

    def __post_init__(self) -> None:
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip={self.clip!r}: must be a number above 0, or None to not clip")
        check_group("block", self.block)
        if self.packing not in ("trits", "bits"):
            raise ValueError(f"packing={self.packing!r}: must be one of trits, bits")

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """Unless it clips."""
        return self.clip is None

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        draws = grouped(ctx.uniforms("terngrad", x), self.block)
        groups = grouped(self._clipped(x), self.block)
        scale = Wire(groups.abs().amax(-1, keepdim=True), bits=32)
        sent = draws < groups.abs() / nonzero(scale.data)
        codes = ungrouped(torch.where(sent, groups.sign(), 0).to(torch.int8), x.shape[1:])
        body = Wire(codes, symbols=3) if self.packing == "trits" else Wire(codes, bits=2)
        return Payload(self, x.shape[1:], body, scale=scale), state

    def decode(self, payload: Payload) -> Tensor:
        return ungrouped(grouped(payload.body, self.block) * payload["scale"], payload.shape)

    def _clipped(self, x: Tensor) -> Tensor:
        if self.clip is None:
            return x
        flat = x.flatten(1)
        bound = self.clip * flat.std(1, correction=0, keepdim=True)
        return flat.clamp(-bound, bound).reshape(x.shape)


@dataclass(frozen=True)
class QSGD(Compressor):
    """s levels of the norm: |x|_2 sign(x) l / s, where l is s |x| / |x|_2, rounded at random.

    l is rounded up with the probability of its remainder r, if a uniform draw is below r.
    Bytes: ceil(m (1 + ceil(log2(s + 1))) / 8) and 4 for each bucket's norm. Source: Alistarh et
    al. (arXiv:1610.02132).

    Args:
        levels: s.
        bucket: values that share a norm, of the flattened row; None for the whole row.
        shrink: divide by 1 + min(d / s^2, sqrt(d) / s), with d values in a bucket. Biased; but a
            contraction, as CHOCO-SGD and error feedback need.
        norm_dtype: number type of the norms sent; `"native"` for that of the input.

    >>> from sim.compute.layout import Layout
    >>> QSGD(levels=4).nbytes(Layout.flat(1000))
    508
    """

    levels: int = 16
    bucket: int | None = 512
    shrink: bool = False
    norm_dtype: str = "float32"

    shared_support = True
    quantises = True
    deterministic = False
    passes = 6.0

    def __post_init__(self) -> None:
        if isinstance(self.levels, bool) or self.levels not in range(1, 1 << 20):
            raise ValueError(f"levels={self.levels!r}: must be an integer from 1 to 2^20")
        check_group("bucket", self.bucket)

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """Unless it shrinks."""
        return not self.shrink

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        draws = grouped(ctx.uniforms("qsgd", x), self.bucket)
        groups = grouped(x, self.bucket)
        norm = Wire(groups.norm(dim=-1, keepdim=True), dtype=self.norm_dtype)
        level = groups.abs().mul_(self.levels).div_(nonzero(norm.data))
        below = level.floor()
        # A norm rounded down to the wire's type could ask for one level more than there are.
        level = below.add_(draws < level - below).clamp_(max=self.levels)
        codes = ungrouped(level.mul_(groups.sign()).to(self._held), x.shape[1:])
        return Payload(self, x.shape[1:], Wire(codes, bits=self._width), norm=norm), state

    def decode(self, payload: Payload) -> Tensor:
        codes = grouped(payload.body, self.bucket)
        values = codes * payload["norm"] / self.levels
        if self.shrink:
            d, s = members(values, payload.shape), self.levels
            values = values / (1 + torch.minimum(d / s**2, d.sqrt() / s))
        return ungrouped(values, payload.shape)

    @property
    def _width(self) -> int:
        return 1 + self.levels.bit_length()

    @property
    def _held(self) -> torch.dtype:
        return torch.int8 if self.levels < 128 else torch.int32


@dataclass(frozen=True)
class Natural(Compressor):
    """A power of two, one of the two around each value at random, so that the mean is the value.

    The sign and the 8 exponent bits of a float32 are sent, after a random number was added to
    those of the mantissa: a carry is as probable as the mantissa is large. 9 bits each; what is
    not finite becomes infinite; float64 is rounded to float32 before.

    The variance is at most 1/8 of the square. Source: Horvath et al., "Natural compression"
    (arXiv:1905.10988).

    >>> from sim.compute.layout import Layout
    >>> Natural().nbytes(Layout.flat(1000))
    1125
    """

    shared_support = True
    quantises = True
    deterministic = False
    unbiased = True

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        noise = ctx.uniforms("natural", x).mul_(1 << _MANTISSA).to(torch.int32)
        bits = x.float().view(torch.int32) & 0x7FFFFFFF
        exponent = (bits + noise >> _MANTISSA).clamp_(max=_INFINITE - 1)
        exponent = torch.where(bits < _INFINITE << _MANTISSA, exponent, _INFINITE)
        codes = torch.where(x < 0, -exponent, exponent).to(x.dtype)
        return Payload(self, x.shape[1:], Wire(codes, bits=9)), state

    def decode(self, payload: Payload) -> Tensor:
        codes = payload.body
        powers = (codes.abs().to(torch.int32) << _MANTISSA).view(torch.float32)
        return powers.to(codes.dtype) * codes.sign()


_MANTISSA, _INFINITE = 23, 255
"""Of float32: bits of the mantissa, which are the lowest, and the exponent bits of infinity."""
