"""Streaming DiLoCo: fragments in turn, overlapped with training (Douillard et al., 2501.18512)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from simpy import Event
from torch import Tensor

from optimizers.local import SGD
from optimizers.strategy import GroupStrategy, NodeState, Program, Shared
from sim.aggregation import Aggregation, Mean
from sim.compute.layers import by_layer
from sim.compute.layout import Fragment, Layout
from sim.compute.local_optimizer import LocalOptimizer
from sim.group import Group
from sim.overlap import Overlap
from sim.payload import Compressor, Dense
from sim.simulation import Simulation
from sim.units import Quantity


def slower_nesterov() -> SGD:
    """The paper's outer optimizer: DiLoCo's with lr 0.4."""
    return SGD(lr=0.4, momentum=0.9, nesterov=True)


def layer_groups(layout: Layout, n: int, pattern: str = "strided") -> list[list[str]]:
    """Split a model's tensors into n fragments of whole layers.

    Layers are those of `sim.compute.layers.by_layer`, in the order of the layout.

    Args:
        n: fragments; 1 to the number of layers.
        pattern: `"strided"` (fragment f holds layers f, f + n, ...) or `"consecutive"`.
    """
    layers = by_layer(layout)
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
    """Algorithm 2 of arXiv 2501.18512.

    Local steps pass in slots of equal length, and in each slot one fragment has its turn: its
    outer gradient is averaged while training goes on; `overlap` steps later the outer step is
    applied and mixed into the local parameters. With one fragment, no overlap and no mixing it is
    DiLoCo. If nobody's share of a fragment arrives, its members go back to the outer parameters,
    and it has the next turn again, as in pytorch/torchft.

    There are two ways to cut a model. `fragments` has the schedule of pytorch/torchft: a slot is H
    over their number, and an outer gradient is taken `overlap` steps before its end.
    `fragment_layers` has that of the paper: fragments of so many layers, a slot of H over their
    number, *rounded*, and an outer gradient taken at its end: a cycle differs a little from H.

    Args:
        inner_steps: H, steps from one synchronisation of a fragment to its next one.
        fragments: their number, which divides H; or the names of each one's tensors, every tensor
            in one of them (then the workload must be the trained model itself).
        pattern: how layers are dealt to fragments, `"strided"` or `"consecutive"`.
        overlap: tau, steps that the communication may take; less than a cycle. With a slot or
            more, several fragments are under way at the same time.
        mixing: alpha, the share of the local value that is kept; 0 overwrites it.
        outer: one state per fragment.
        compressor: how an outer gradient is written on the wire.
        aggregation: the rule by which outer gradients of a fragment become one; see
            `optimizers.aggregation`.
        fragment_layers: layers of a fragment of the workload, instead of `fragments`; the
            last fragments may have one less.
        reductions: `"none"`, a fragment is sent whole after a step, and what is late holds up the
            next step; `"bucketed"` or `"layerwise"`, it is sent while the backward pass releases
            it, and what is late holds up the forward pass at that fragment only. Values are the
            same; see `sim.overlap`.
        bucket, streams: see `sim.overlap.Overlap`.
    """

    inner_steps: int = 100
    fragments: int | Sequence[Sequence[str]] = 2
    pattern: str = "strided"
    overlap: int = 1
    mixing: float = 0.5
    outer: LocalOptimizer = field(default_factory=slower_nesterov)
    compressor: Compressor = field(default_factory=Dense)
    aggregation: Aggregation = field(default_factory=Mean)
    fragment_layers: int | None = None
    reductions: str = "none"
    bucket: Quantity = "25MB"
    streams: int = 1

    def __post_init__(self) -> None:
        self._cut()
        if not 0 <= self.mixing <= 1:
            raise ValueError(f"strategy.mixing={self.mixing}: must be between 0 and 1")
        if self.fragment_layers is not None:
            if self.fragment_layers < 1 or self.inner_steps < 1:
                raise ValueError(
                    f"strategy.fragment_layers={self.fragment_layers}, "
                    f"inner_steps={self.inner_steps}: must be >= 1"
                )
            return
        n = self.fragments if isinstance(self.fragments, int) else len(self.fragments)
        if n < 1 or self.inner_steps < n or self.inner_steps % n:
            raise ValueError(
                f"strategy.inner_steps={self.inner_steps}: must be a multiple of the {n} "
                f"fragments; the nearest is {max(1, round(self.inner_steps / max(1, n))) * n}"
            )
        self._slot(n)

    @property
    def passes(self) -> float:
        return self.outer.passes + 5.0  # the outer step, theta - params, and the mixing

    @property
    def node_state(self) -> NodeState:
        return NodeState(sends=self.compressor, gathers=not self.aggregation.summable)

    def init(self, sim: Simulation) -> Shared:
        theta = sim.initial_params()
        parts = self._split(sim)
        outer = [self.outer.bind(f.layout).init(f.take(theta)) for f in parts]
        return {"theta": theta, **{f"outer.{k}": state for k, state in enumerate(outer)}}

    def run(self, sim: Simulation) -> Program:
        s, fragments, cut = sim.shared, self._split(sim), self._cut().bind(sim)
        slot = self._slot(len(fragments))
        lag, rest = divmod(self.overlap, slot)
        lead = 0 if self.fragment_layers is None else rest  # the paper sends at the end of a slot
        sent, group, lives = _Sent(fragments), sim.group([]), sim.restarts
        while True:
            if cut is None or sim.spent:  # in the end nothing may be under way
                yield from self._apply(sent, group, keep=0 if sim.spent else lag)
            before, group = group, (yield sim.coordinator.round())
            if sim.restarts > lives:
                sent, lives = _Sent(fragments), sim.restarts
            sim.group(set(group.ids) - set(before.online.ids)).params = s["theta"]  # joiners
            gates = None if cut is None else sent.gates(keep=lag)
            steps, lead = group.train(lead + slot - rest, gates), 0
            yield from self._apply(sent, group, keep=lag)
            k, f = sent.next()
            part, theta = group.part(f), f.take(s["theta"])
            delta = part.rows(lambda params, theta=theta: theta - params, "params")
            mean = part.average(
                delta, self.compressor, rule=self.aggregation, after=steps, parts=cut
            )
            sent.add(k, mean)
            yield steps
            if rest and not sim.spent:
                yield group.online.train(rest)

    def _apply(self, sent: _Sent, group: Group, keep: int) -> Program:
        """The outer steps of all fragments under way but the `keep` youngest."""
        s = group.sim.shared
        while len(sent) > keep:
            k, f, event = sent.oldest()
            mean = yield event  # waits only if the network is late
            new, kept = f.take(s["theta"]), 0.0
            if mean is None:
                sent.repeat(k)
            else:
                outer = self.outer.bind(f.layout)
                new, s[f"outer.{k}"] = outer.step(new, mean, s[f"outer.{k}"])
                s["theta"], kept = f.replaced(s["theta"], new), self.mixing
            group.online.part(f).update(
                lambda params, new=new, kept=kept: torch.lerp(new.expand_as(params), params, kept),
                "params",
            )

    def consensus(self, sim: Simulation) -> Tensor:
        """The outer parameters."""
        return sim.shared["theta"]

    def _cut(self) -> Overlap:
        overlap = Overlap(self.reductions, self.bucket, self.streams, key="strategy.reductions")
        return overlap.check(self.compressor)

    def _slot(self, n: int) -> int:
        """Steps between the turns of two fragments, of n."""
        slot = max(1, round(self.inner_steps / n))
        if not 0 <= self.overlap < n * slot:
            raise ValueError(
                f"strategy.overlap={self.overlap}: must be between 0 and {n * slot - 1}, less "
                f"than a cycle of {n} fragments every {slot} steps"
            )
        return slot

    def _split(self, sim: Simulation) -> list[Fragment]:
        """The fragments of the trained model, each with what the clock charges for it."""
        layout, charged, n = sim.fleet.layout, sim.workload.layout, self.fragments
        if self.fragment_layers is not None:
            many, few = len(by_layer(charged)), len(by_layer(layout))
            n = math.ceil(many / self.fragment_layers)
            if n > few:
                raise ValueError(
                    f"strategy.fragment_layers={self.fragment_layers}: {n} fragments of the "
                    f"workload's {many} layers, but the trained model has {few} layers; the "
                    f"nearest is {math.ceil(many / few)}"
                )
        if not isinstance(n, int):
            if charged != layout:
                raise ValueError("strategy.fragments: names need workload=proxy; give a number")
            if sorted(name for names in n for name in names) != sorted(layout.shapes):
                raise ValueError(
                    f"strategy.fragments={[list(names) for names in n]}: must have each of the "
                    f"tensors {', '.join(layout.shapes)} once"
                )
            return [Fragment(layout, tuple(names)) for names in n]
        small, large = (layer_groups(of, n, self.pattern) for of in (layout, charged))
        return [
            Fragment(layout, tuple(a), charged.select(b)) for a, b in zip(small, large, strict=True)
        ]


class _Sent:
    """Whose turn it is, and what is under way, oldest first."""

    def __init__(self, fragments: Sequence[Fragment]) -> None:
        self._fragments = fragments
        self._turns = deque(range(len(fragments)))
        self._means: deque[tuple[int, Event]] = deque()

    def __len__(self) -> int:
        return len(self._means)

    def next(self) -> tuple[int, Fragment]:
        """The fragment whose turn it is, and its number."""
        k = self._turns[0]
        self._turns.rotate(-1)
        return k, self._fragments[k]

    def repeat(self, k: int) -> None:
        """A fragment whose mean nobody has is the next one again."""
        self._turns.remove(k)
        self._turns.appendleft(k)

    def add(self, k: int, mean: Event) -> None:
        """Fragment k is on its way."""
        self._means.append((k, mean))

    def oldest(self) -> tuple[int, Fragment, Event]:
        """Take out the fragment that was sent first."""
        k, mean = self._means.popleft()
        return k, self._fragments[k], mean

    def gates(self, keep: int) -> dict[Fragment, Event]:
        """What a step waits for that must not begin without the outer steps of these."""
        due = list(self._means)[: max(0, len(self._means) - keep)]
        return {self._fragments[k]: mean for k, mean in due}
