"""Sign: one bit per value, and perhaps their mean magnitude.

Legend: n rows (one per node), m values in a row, G blocks of B values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from optimizers.compression import packed_signs
from optimizers.compression.groups import check_group
from optimizers.compression.packed_signs import PackedSigns
from sim.compute.placed import Placed
from sim.payload import Compressor, Context, Payload, State, Wire


@dataclass(frozen=True)
class Sign(Compressor):
    """One bit per value, with sign(0) = +1.

    Bytes: ceil(m / 8), and 4 for each scale if there are any. Biased: wants error feedback, except
    where only the sign of the combination is used. The body is packed, so no codec can follow.

    Args:
        scale: `"mean"` sends the mean magnitude of each block with the signs; None sends bare
            signs, decoded as -1 and +1.
        block: values that share a scale, of the flattened row; None for the whole row.
    """

    scale: str | None = "mean"
    block: int | None = None

    shared_support = True
    quantises = True
    passes = 4.0

    def __post_init__(self) -> None:
        if self.scale not in ("mean", None):
            raise ValueError(f"scale={self.scale!r}: must be 'mean' or None (null in YAML)")
        check_group("block", self.block)

    @property
    def zero_preserving(self) -> bool:  # type: ignore[override]
        """A bare sign cannot say zero."""
        return self.scale is not None

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        rows = x.flatten(1)
        form = PackedSigns(rows.shape[1], x.dtype)
        signs, shape = Wire(packed_signs.pack(rows), format=form), x.shape[1:]
        if self.scale is None:
            return Payload(self, shape, signs), state
        scale = packed_signs.mean_magnitudes(rows, self._size(shape))
        return Payload(self, shape, signs, scale=Wire(scale, bits=32)), state

    def decode(self, payload: Payload) -> Tensor:
        scale = self._scale(payload)
        rows = scale.new_zeros(payload.n, math.prod(payload.shape))
        packed_signs.add(payload.body, scale, self._size(payload.shape), Placed.of(rows), 1.0)
        return rows.reshape(payload.n, *payload.shape)

    def add(self, payload: Payload, rows: Placed, scale: float) -> None:
        size = self._size(payload.shape)
        packed_signs.add(payload.body, self._scale(payload), size, rows, scale)

    def aggregate(
        self, payload: Payload, over: str, weights: Tensor | None, runs: int = 1
    ) -> Tensor:
        scale, n = self._scale(payload), payload.n // runs
        weight = scale.new_ones(n) if weights is None else torch.as_tensor(weights).to(scale)
        size, m = self._size(payload.shape), math.prod(payload.shape)
        total = packed_signs.total(
            payload.body, scale * weight.repeat(runs)[:, None], size, m, runs
        )
        return (total / weight.sum()).reshape(runs, *payload.shape)

    def _size(self, shape: tuple[int, ...]) -> int:
        """B, of tensors of a shape."""
        m = max(1, math.prod(shape))
        return m if self.scale is None else min(self.block or m, m)

    def _scale(self, payload: Payload) -> Tensor:
        """What the signs of each block are multiplied by, [n, G]."""
        if self.scale is not None:
            return payload["scale"]
        return torch.ones(
            payload.n, 1, dtype=payload.content.format.dtype, device=payload.body.device
        )
