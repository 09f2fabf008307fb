"""Recorders: they stand around an optimizer, a codec or a coordinator and keep what passes.

So a strategy is observed through its public interfaces, without being changed.

Legend: N nodes, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from optimizers.compression.flags import of_all, of_sum
from sim.compute.layout import Layout
from sim.compute.local_optimizer import LocalOptimizer, State
from sim.coordinators import Coordinator, Static
from sim.payload import Compressor, Context, Payload
from sim.simulation import Simulation


@dataclass(frozen=True)
class RecordedOptimizer(LocalOptimizer):
    """An optimizer, and the gradients, parameters and state of each of its steps."""

    inner: LocalOptimizer
    grads: list[Tensor] = field(default_factory=list, compare=False)
    params: list[Tensor] = field(default_factory=list, compare=False)
    states: list[State] = field(default_factory=list, compare=False)

    def bind(self, layout: Layout) -> RecordedOptimizer:
        return replace(self, inner=self.inner.bind(layout))  # with the same lists

    @property
    def passes(self) -> float:
        return self.inner.passes

    @property
    def state_rows(self) -> float:
        return self.inner.state_rows

    def init(self, params: Tensor) -> State:
        return self.inner.init(params)

    def step_(self, params: Tensor, grad: Tensor, state: State) -> None:
        self.grads.append(grad.clone())
        self.inner.step_(params, grad, state)
        self.params.append(params.clone())
        self.states.append({name: value.clone() for name, value in state.items()})


@dataclass(frozen=True)
class RecordedCodec(Compressor):
    """A codec, what it was given, what it sent, and the means that were decoded."""

    inner: Compressor
    inputs: list[Tensor] = field(default_factory=list, compare=False)
    payloads: list[Payload] = field(default_factory=list, compare=False)
    means: list[Tensor] = field(default_factory=list, compare=False)

    summable = of_all("summable")
    linear = of_all("linear")
    passes = of_sum("passes")

    @property
    def codecs(self) -> tuple[Compressor, ...]:
        """The codec that is observed."""
        return (self.inner,)

    def encode(self, x: Tensor, state: Any, ctx: Context) -> tuple[Payload, Any]:
        payload, state = self.inner.encode(x, state, ctx)
        if not x.is_meta:  # the meta device only counts bytes
            self.inputs.append(x.clone())
            self.payloads.append(payload)
        return Payload(self, x.shape[1:], payload), state

    def decode(self, payload: Payload) -> Tensor:
        return payload.body

    def aggregate(
        self, payload: Payload, over: str, weights: Tensor | None, runs: int = 1
    ) -> Tensor:
        inner = payload.content
        self.means.extend(means := inner.codec.aggregate(inner, over, weights, runs))
        return means


@dataclass
class RecordedRounds(Coordinator):
    """Everybody, always; and a note of something at the start and after each round."""

    note: Callable[[Simulation], Tensor]
    notes: list[Tensor] = field(default_factory=list)
    _inner: Static = field(default_factory=Static)
    _sim: Simulation = field(init=False, repr=False)

    @property
    def ready(self) -> set[int]:  # type: ignore[override]
        """As the coordinator inside has it."""
        return self._inner.ready

    def start(self, sim: Simulation) -> None:
        self._sim = sim
        self._inner.start(sim)

    def round(self) -> Any:
        self.notes.append(self.note(self._sim).clone())
        return self._inner.round()

    def arrive(self, node: int) -> None:
        self._inner.arrive(node)

    def depart(self, node: int) -> None:
        self._inner.depart(node)

    @property
    def after_rounds(self) -> Tensor:
        """The notes after each round, `[rounds, ...]`."""
        return torch.stack(self.notes[1:])


def rows_of(sim: Simulation, name: str = "params") -> Tensor:
    """The rows of a name of all nodes, [N, P]."""
    return sim.group()[name].tensor()
