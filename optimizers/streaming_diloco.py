"""Streaming DiLoCo: fragments in turn, overlapped with training (Douillard et al., 2501.18512)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from optimizers.diloco import nesterov
from optimizers.strategy import GroupStrategy, Program, Shared
from sim.compute.layout import Fragment, Layout
from sim.compute.local_optimizer import LocalOptimizer
from sim.payload import Compressor, Dense
from sim.simulation import Simulation


def layer_groups(layout: Layout, n: int, pattern: str = "strided") -> list[list[str]]:
    """Split a model's tensors into n fragments of whole layers.

    Tensors whose names hold the same layer number belong together; what has none (embeddings,
    head) counts as a layer of its own, in the order of the layout.

    Args:
        n: fragments; 1 to the number of layers.
        pattern: `"strided"` (fragment f holds layers f, f + n, ...) or `"consecutive"`.
    """
    layers: dict[str, list[str]] = {}
    for name in layout.shapes:
        number = re.search(r"\d+", name)
        layers.setdefault(number[0] if number else name, []).append(name)
    if not 1 <= n <= len(layers):
        raise ValueError(f"strategy.fragments={n}: must be between 1 and {len(layers)} layers")
    if pattern not in ("strided", "consecutive"):
        raise ValueError(f"strategy.pattern={pattern!r}: must be 'strided' or 'consecutive'")
    ordered = list(layers.values())
    cuts = [f * len(ordered) // n for f in range(n + 1)]
    parts = [
        ordered[f::n] if pattern == "strided" else ordered[cuts[f] : cuts[f + 1]] for f in range(n)
    ]
    return [[name for layer in part for name in layer] for part in parts]


@dataclass(frozen=True)
class StreamingDiLoCo(GroupStrategy):
    """Algorithm 2 of arXiv 2501.18512, with the schedule of pytorch/torchft.

    A period of `inner_steps` has one slot per fragment. In a slot, the outer gradient of one
    fragment is taken `overlap` steps before the end and averaged while training goes on; at the
    end the outer step is applied and mixed into the local parameters. With one fragment, no
    overlap and no mixing it is DiLoCo.

    Args:
        inner_steps: H, divisible by the number of fragments.
        fragments: their number, or the names of each one's tensors (then the workload must be
            the trained model itself).
        pattern: how layers are dealt to fragments, `"strided"` or `"consecutive"`.
        overlap: tau, steps that the communication may take; less than a slot.
        mixing: alpha, the share of the local value that is kept; 0 overwrites it.
        outer: one state per fragment.
        compressor: how an outer gradient is written on the wire.
    """

    inner_steps: int = 100
    fragments: int | Sequence[Sequence[str]] = 2
    pattern: str = "strided"
    overlap: int = 1
    mixing: float = 0.5
    outer: LocalOptimizer = field(default_factory=nesterov)
    compressor: Compressor = field(default_factory=Dense)

    def __post_init__(self) -> None:
        n = self.fragments if isinstance(self.fragments, int) else len(self.fragments)
        if n < 1 or self.inner_steps < n or self.inner_steps % n:
            raise ValueError(
                f"strategy.inner_steps={self.inner_steps}: must be a multiple of the {n} "
                f"fragments; the nearest is {max(1, round(self.inner_steps / max(1, n))) * n}"
            )
        if not 0 <= self.overlap < self.inner_steps // n:
            raise ValueError(
                f"strategy.overlap={self.overlap}: must be between 0 and "
                f"{self.inner_steps // n - 1}, less than the slot of a fragment"
            )
        if not 0 <= self.mixing <= 1:
            raise ValueError(f"strategy.mixing={self.mixing}: must be between 0 and 1")

    @property
    def passes(self) -> float:
        return self.outer.passes + 5.0  # the outer step, theta - params, and the mixing

    def init(self, sim: Simulation) -> Shared:
        theta = sim.initial_params()
        parts = self._split(sim)
        states = {f"outer.{k}": self.outer.init(f.take(theta)) for k, f in enumerate(parts)}
        return {"theta": theta, **states}

    def run(self, sim: Simulation) -> Program:
        s, parts, before, k = sim.shared, self._split(sim), sim.group([]), 0
        slot = self.inner_steps // len(parts)
        while True:
            group = yield sim.coordinator.round()  # membership changes between synchronisations
            joiners = sim.group(set(group.ids) - set(before.online.ids))
            joiners.params, before = s["theta"], group
            yield group.train(slot - self.overlap)
            here, f, theta = group.online, parts[k], parts[k].take(s["theta"])
            delta = here.part(f).rows(lambda params, theta=theta: theta - params, "params")
            in_flight = here.part(f).average(delta, self.compressor)
            if self.overlap:
                yield here.train(self.overlap)
            mean = yield in_flight  # waits only if the network is late
            if mean is not None:
                new, s[f"outer.{k}"] = self.outer.step(theta, mean, s[f"outer.{k}"])
                s["theta"] = f.replaced(s["theta"], new)
                here.online.part(f).update(
                    lambda params, new=new: torch.lerp(new.expand_as(params), params, self.mixing),
                    "params",
                )
                k = (k + 1) % len(parts)

    def consensus(self, sim: Simulation) -> Tensor:
        """The outer parameters."""
        return sim.shared["theta"]

    def _split(self, sim: Simulation) -> list[Fragment]:
        """The fragments of the trained model, each with what the clock charges for it."""
        layout, charged = sim.fleet.layout, sim.workload.layout
        if not isinstance(self.fragments, int):
            if charged != layout:
                raise ValueError("strategy.fragments: names need workload=proxy; give a number")
            return [Fragment(layout, tuple(names)) for names in self.fragments]
        small = layer_groups(layout, self.fragments, self.pattern)
        large = layer_groups(charged, self.fragments, self.pattern)
        return [
            Fragment(layout, tuple(a), charged.select(b)) for a, b in zip(small, large, strict=True)
        ]
