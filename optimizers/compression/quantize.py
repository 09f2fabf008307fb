"""Codecs that send every coefficient in a few bits: Quantize, Sign.

Legend: n rows (one per node), m values in a row, B values in a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sim.payload import Compressor, Context, Payload, State, Wire


@dataclass(frozen=True)
class Quantize(Compressor):
    """Symmetric integers: q = round(x / s) with s = max |x| / (2**(bits - 1) - 1) of the block.

    Bytes: ceil(m bits / 8) and 4 for each block's scale. Deterministic and nearly unbiased, or
    unbiased with stochastic rounding. A NaN poisons its block.

    Args:
        bits: 2 to 16; 2 bits hold -1, 0 and 1 (see `symbols` of a Wire for denser trits).
        block: values that share a scale, of the flattened row; None for the whole row.
        stochastic: round up with the probability of the remainder instead of to the nearest.

    >>> from sim.compute.layout import Layout
    >>> Quantize(bits=4, block=256).nbytes(Layout.flat(1000))
    516
    """

    bits: int = 8
    block: int | None = None
    stochastic: bool = False

    shared_support = True
    quantises = True

    def __post_init__(self) -> None:
        if self.bits not in range(2, 17):
            raise ValueError(f"bits={self.bits!r}: must be an integer from 2 to 16; Sign takes one")
        if self.block is not None and self.block < 1:
            raise ValueError(f"block={self.block!r}: must be an integer >= 1, or None for the row")

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """Only with stochastic rounding."""
        return self.stochastic

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        """Unless it draws."""
        return not self.stochastic

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        blocks = self._blocks(x.flatten(1))  # [n, blocks, B]
        limit = 2 ** (self.bits - 1) - 1
        scale = Wire(blocks.abs().amax(-1, keepdim=True) / limit, bits=32)
        codes = blocks / torch.where(scale.data == 0, 1, scale.data)
        if self.stochastic:
            codes.add_(ctx.uniforms("quantize", codes)).floor_()
        codes = codes.round_().clamp_(-limit, limit).flatten(1)[:, : math.prod(x.shape[1:])]
        body = Wire(codes.reshape(x.shape), bits=self.bits)
        return Payload(self, x.shape[1:], body, scale=scale), state

    def decode(self, payload: Payload) -> Tensor:
        values = self._blocks(payload.body.flatten(1)) * payload["scale"]
        return values.flatten(1)[:, : math.prod(payload.shape)].reshape(payload.n, *payload.shape)

    def _blocks(self, flat: Tensor) -> Tensor:
        """`[n, m]` to `[n, blocks, B]`, padded with zeros."""
        m = flat.shape[1]
        size = min(self.block or m, m)
        padded = F.pad(flat, (0, -m % size)) if m % size else flat
        return padded.unflatten(1, (-1, size))


@dataclass(frozen=True)
class Sign(Compressor):
    """One bit per value, with sign(0) = +1.

    Bytes: ceil(m / 8), and 4 for the scale if there is one. Biased: wants error feedback, except
    where only the sign of the combination is used.

    Args:
        scale: `"mean"` sends the mean magnitude of the row with the signs; None sends bare signs,
            decoded as -1 and +1.
    """

    scale: str | None = "mean"

    shared_support = True
    quantises = True

    def __post_init__(self) -> None:
        if self.scale not in ("mean", None):
            raise ValueError(f"scale={self.scale!r}: must be 'mean' or None (null in YAML)")

    @property
    def linear(self) -> bool:  # type: ignore[override]
        """Bare signs are their own reconstruction."""
        return self.scale is None

    @property
    def zero_preserving(self) -> bool:  # type: ignore[override]
        """A bare sign cannot say zero."""
        return self.scale is not None

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        signs = Wire(torch.where(x < 0, -1.0, 1.0).to(x.dtype), bits=1)
        if self.scale is None:
            return Payload(self, x.shape[1:], signs), state
        mean = x.abs().mean(tuple(range(1, x.ndim)), keepdim=True)
        return Payload(self, x.shape[1:], signs, scale=Wire(mean, bits=32)), state

    def decode(self, payload: Payload) -> Tensor:
        return payload.body if self.scale is None else payload.body * payload["scale"]
