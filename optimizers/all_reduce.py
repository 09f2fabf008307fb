"""Synchronous data parallelism, and the best node alone: the two baselines of every figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from optimizers.local import AdamW
from optimizers.strategy import GroupStrategy, NodeState, Program, Shared
from optimizers.subset import Rounds, Subset, by_speed
from sim.aggregation import Aggregation, Mean, check_weights
from sim.compute.local_optimizer import LocalOptimizer
from sim.overlap import Overlap
from sim.payload import Compressor, Dense
from sim.reduction import Reduction, averaged, coder
from sim.simulation import Simulation
from sim.units import Quantity


@dataclass(frozen=True)
class AllReduce(GroupStrategy):
    """Mean of all gradients, every step; parameters stay equal, so they are one row.

    Gradients go straight into the collective. A codec that cannot be summed in flight is
    gathered instead. If nobody's gradient arrives, the step is lost.

    Args:
        optimizer: steps on the mean gradient; it clips after the reduction, as all must clip alike.
        compressor: how a gradient is written on the wire.
        aggregation: the rule by which gradients become one; `optimizers.aggregation` has those
            that members who lie cannot decide.
        accumulate: batches whose gradients a node averages before it sends them.
        samples: of each node's batch, where batches differ: gradients weigh so; equal if None.
        reduction: how the mean is made: `sim.reduction.Hierarchical`, inside of sites and then
            across, or `CodedRing`, which encodes at every hop; None leaves it to the codec.
        nodes: only these take part; all if None.
        overlap, bucket, streams: how reductions overlap with the backward pass, see
            `sim.overlap.Overlap`. The gradient of the first layer is reduced last, so the next
            forward pass waits for all of them.
    """

    optimizer: LocalOptimizer = field(default_factory=lambda: AdamW(lr=0.01))
    compressor: Compressor = field(default_factory=Dense)
    aggregation: Aggregation = field(default_factory=Mean)
    accumulate: int = 1
    samples: Sequence[float] | None = None
    reduction: Reduction | None = None
    nodes: Subset | None = None
    overlap: str = "none"
    bucket: Quantity = "25MB"
    streams: int = 1

    def __post_init__(self) -> None:
        self._overlap()
        if self.accumulate < 1:
            raise ValueError(f"strategy.accumulate={self.accumulate}: must be an integer >= 1")
        if self.samples is not None:
            object.__setattr__(self, "samples", tuple(float(n) for n in self.samples))
            if not all(0 < n < float("inf") for n in self.samples):
                raise ValueError(f"strategy.samples={list(self.samples)}: must be numbers > 0")
            check_weights(self.aggregation, torch.tensor(self.samples))
        if self.reduction is not None:
            self.reduction.check(self.compressor, self.aggregation)

    @property
    def passes(self) -> float:
        return self.optimizer.passes

    def state_rows(self, local: LocalOptimizer) -> float:
        return self.optimizer.state_rows

    @property
    def node_state(self) -> NodeState:
        return averaged(self.compressor, self.aggregation, self.reduction, own=False)

    def init(self, sim: Simulation) -> Shared:
        params = sim.initial_params()
        return {"params": params, "state": self.optimizer.init(params)}

    def run(self, sim: Simulation) -> Program:
        s, samples = sim.shared, self._samples(sim)
        rounds, parts = Rounds(sim, self.nodes), self._overlap().bind(sim)
        while True:
            group = yield from rounds.next()
            group.params = s["params"]
            mean = yield group.average(
                group.grad(self.accumulate),
                self.compressor,
                None if samples is None else samples[group.ids],
                rule=self.aggregation,
                by=self.reduction,
                parts=parts,
            )
            if mean is not None:
                s["params"], s["state"] = self.optimizer.step(s["params"], mean, s["state"])

    def _samples(self, sim: Simulation) -> Tensor | None:
        if self.samples is None:
            return None
        if len(self.samples) != sim.fleet.n_nodes:
            raise ValueError(
                f"strategy.samples has {len(self.samples)} numbers: must be one for each of the "
                f"{sim.fleet.n_nodes} nodes"
            )
        return torch.tensor(self.samples)

    def _overlap(self) -> Overlap:
        overlap = Overlap(self.overlap, self.bucket, self.streams)
        return overlap.check(coder(self.compressor, self.reduction))

    def consensus(self, sim: Simulation) -> Tensor:
        """The parameters that all members hold."""
        return sim.shared["params"]


@dataclass(frozen=True)
class Single(GroupStrategy):
    """The fastest node trains alone and sends nothing: what must be beaten.

    The node is chosen once, among those online at the start: the device with the most FLOP/s, for
    links do not matter to who sends nothing. It needs no coordinator. While it is
    away nothing happens; it goes on from its own disk when it returns.

    Args:
        optimizer: steps on the node's own gradient.
    """

    optimizer: LocalOptimizer = field(default_factory=lambda: AdamW(lr=0.01))

    @property
    def passes(self) -> float:
        return self.optimizer.passes

    def state_rows(self, local: LocalOptimizer) -> float:
        return self.optimizer.state_rows

    @property
    def node_state(self) -> NodeState:
        return NodeState(params=False, local=False)

    def init(self, sim: Simulation) -> Shared:
        params = sim.initial_params()
        return {"params": params, "state": self.optimizer.init(params)}

    def run(self, sim: Simulation) -> Program:
        s = sim.shared
        best = by_speed(sim, sim.online or range(sim.fleet.n_nodes))[0]
        params, state = s["params"], s["state"]
        while True:
            while best not in sim.online:
                yield sim.membership_changed
            s["params"], s["state"] = params, state
            sim.group([best]).params = params  # one vector, not a row in a table of all nodes
            grad = yield sim.node(best).grad()
            if grad is not None:
                params, state = self.optimizer.step(params, grad, state)

    def consensus(self, sim: Simulation) -> Tensor:
        """The parameters of the node."""
        return sim.shared["params"]
