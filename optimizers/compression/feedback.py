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
from optimizers.compression.shared import RandomBlocks, RandomK
from sim.compute.layout import Layout
from sim.compute.placed import Placed
from sim.payload import Compressor, Context, Payload, State, map_state


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
        check_fed_back(self.codec, "codec")

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
        after = residual.to(x.dtype, copy=True), map_state(torch.clone, inner_state)
        return self.encode_(x, map_state(Placed.of, after), ctx), after

    def encode_(self, x: Tensor, state: State, ctx: Context) -> Payload:
        residual, inner_state = state
        residual.add(x.flatten(1), self.scale, keep=self.decay)
        corrected = residual.read().reshape(x.shape)
        inner = self.codec.encode_(corrected, inner_state, ctx).apart_from(residual.memory)
        inner.add_to(residual, -1.0)
        return Payload(self, x.shape[1:], inner)

    def decode(self, payload: Payload) -> Tensor:
        return payload.body

    def add(self, payload: Payload, rows: Placed, scale: float) -> None:
        payload.content.add_to(rows, scale)

    def aggregate(
        self, payload: Payload, over: str, weights: Tensor | None, runs: int = 1
    ) -> Tensor:
        inner = payload.content
        return inner.codec.aggregate(inner, over, weights, runs)


def check_fed_back(codec: Compressor, key: str = "strategy.compressor") -> None:
    """Refuse a codec where what it loses is fed back by somebody else: by a strategy, a wrapper.

    It must have no feedback of its own, and not scale up what it sends: what is left of a RandomK
    times P / k is larger than what there was.

    Args:
        key: of the option, for the message.

    Raises:
        ValueError: training would diverge.
    """
    if isinstance(codec, ErrorFeedback):
        raise ValueError(
            f"{key}={codec!r}: what it loses is fed back here already, and must not be twice; give "
            f"the codec inside, {codec.codec!r}"
        )
    if isinstance(codec, RandomK | RandomBlocks) and codec.scaled:
        raise ValueError(
            f"{key}={codec!r}: what it loses is fed back, and would grow where it is scaled up; "
            "choose scaled=false"
        )
    for part in getattr(codec, "codecs", ()):
        check_fed_back(part, key)
