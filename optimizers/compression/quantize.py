"""Quantize: every coefficient in a few bits.

Legend: n rows (one per node), m values in a row, G blocks of B values.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from optimizers.compression.groups import check_group, grouped, nonzero, ungrouped
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
        check_group("block", self.block)

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """Only with stochastic rounding."""
        return self.stochastic

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        """Unless it draws."""
        return not self.stochastic

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        groups = grouped(x, self.block)  # [n, G, B]
        limit = 2 ** (self.bits - 1) - 1
        scale = Wire(groups.abs().amax(-1, keepdim=True) / limit, bits=32)
        codes = groups / nonzero(scale.data)
        if self.stochastic:
            codes.add_(ctx.uniforms("quantize", codes)).floor_()
        codes = ungrouped(codes.round_().clamp_(-limit, limit), x.shape[1:])
        return Payload(self, x.shape[1:], Wire(codes, bits=self.bits), scale=scale), state

    def decode(self, payload: Payload) -> Tensor:
        return ungrouped(grouped(payload.body, self.block) * payload["scale"], payload.shape)
