"""ErrorFeedback: what a codec lost is added to what it gets next.

Source: Seide et al., "1-bit stochastic gradient descent" (2014); Karimireddy et al.,
"Error feedback fixes SignSGD" (arXiv:1901.09847).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from optimizers.compression.flags import of_all, of_sum
from sim.compute.layout import Layout
from sim.payload import Compressor, Context, Payload, State


@dataclass(frozen=True)
class ErrorFeedback(Compressor):
    """Encode scale * x + decay * residual, and keep what the codec lost as the next residual.

    With decay and scale 1, all that was decoded plus the residual is the sum of all inputs. The
    residual is a row per node; it is lost with the node. Bytes: those of the codec.

    Args:
        codec: must not scale its reconstruction up (a scaled RandomK diverges).
        decay: factor on the residual, 0 to 1; SparseLoCo uses 0.95 as its momentum.
        scale: factor on the input, above 0: EF-SGD feeds learning rate times gradient.
    """

    codec: Compressor
    decay: float = 1.0
    scale: float = 1.0

    summable = of_all("summable")
    shared_support = of_all("shared_support")
    deterministic = of_all("deterministic")
    linear = of_all("linear")
    zero_preserving = of_all("zero_preserving")
    sized_by_data = of_all("sized_by_data")
    quantises = of_all("quantises")
    separable = of_all("separable")
    passes = of_sum("passes", extra=4.0)

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay={self.decay!r}: must be from 0 to 1")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale={self.scale!r}: must be above 0; 1 leaves the input as it is")

    @property
    def codecs(self) -> tuple[Compressor, ...]:
        """The codec that is wrapped."""
        return (self.codec,)

    @property
    def telescopes(self) -> bool:  # type: ignore[override]
        """Unless the residual decays, or the input is scaled."""
        return self.decay == self.scale == 1

    def init(self, layout: Layout, n: int) -> State:
        return torch.zeros(n, layout.numel), self.codec.init(layout, n)

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        residual, inner_state = state
        scaled = x if self.scale == 1 else self.scale * x
        corrected = torch.add(scaled, residual.reshape(x.shape), alpha=self.decay)
        inner, inner_state = self.codec.encode(corrected, inner_state, ctx)
        residual = (corrected - inner.decode()).reshape(residual.shape)
        return Payload(self, x.shape[1:], inner), (residual, inner_state)

    def decode(self, payload: Payload) -> Tensor:
        return payload.body

    def aggregate(
        self, payload: Payload, over: str, weights: Tensor | None, runs: int = 1
    ) -> Tensor:
        inner = payload.content
        return inner.codec.aggregate(inner, over, weights, runs)
