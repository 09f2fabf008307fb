"""Chunks: pieces of a row one after the other, for a codec that follows.

Legend: b rows of a block, P values of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from optimizers.compression.groups import check_group, grouped, ungrouped
from sim.payload import Compressor, Context, Payload, State, Wire


@dataclass(frozen=True)
class Chunks(Compressor):
    """Regroup what it gets, read in order, into pieces of so many values: `[b, pieces, size]`.

    `Chain(Chunks(4096), TopK(64))` keeps 64 of every 4096 values of the flat row, wherever tensors
    begin. The last piece is padded with zeros, which a codec that follows may send. `Blocks`
    cuts a matrix along both of its axes instead.

    Args:
        size: values of a piece; a shorter row is one piece.
    """

    size: int = 4096

    summable = True
    shared_support = True
    unbiased = True
    linear = True
    passes = 2.0

    def __post_init__(self) -> None:
        check_group("size", self.size)

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        return Payload(self, x.shape[1:], Wire(grouped(x, self.size))), state

    def decode(self, payload: Payload) -> Tensor:
        return ungrouped(payload.body, payload.shape)
