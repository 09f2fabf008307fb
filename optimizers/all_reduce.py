"""Synchronous data parallelism, and the best node alone: the two baselines of every figure."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from optimizers.local import AdamW
from optimizers.strategy import GroupStrategy, NodeState, Program, Shared
from sim.compute.local_optimizer import LocalOptimizer
from sim.overlap import Overlap
from sim.payload import Compressor, Dense
from sim.simulation import Simulation
from sim.units import Quantity


@dataclass(frozen=True)
class AllReduce(GroupStrategy):
    """Mean of all gradients, every step; parameters stay equal, so they are one row.

    Gradients go straight into the collective. A codec that cannot be summed in flight is
    gathered instead. If nobody's gradient arrives, the step is lost.

    Args:
        optimizer: steps on the mean gradient.
        compressor: how a gradient is written on the wire.
        overlap, bucket, streams: how reductions overlap with the backward pass, see
            `sim.overlap.Overlap`. The gradient of the first layer is reduced last, so the next
            forward pass waits for all of them.
    """

    optimizer: LocalOptimizer = field(default_factory=lambda: AdamW(lr=0.01))
    compressor: Compressor = field(default_factory=Dense)
    overlap: str = "none"
    bucket: Quantity = "25MB"
    streams: int = 1

    def __post_init__(self) -> None:
        self._overlap()

    @property
    def passes(self) -> float:
        return self.optimizer.passes

    def state_rows(self, local: LocalOptimizer) -> float:
        return self.optimizer.state_rows

    @property
    def node_state(self) -> NodeState:
        if isinstance(self.compressor, Dense):  # gradients are added up as they come
            return NodeState(params=False, local=False)
        return NodeState(params=False, local=False, sends=self.compressor)

    def init(self, sim: Simulation) -> Shared:
        params = sim.initial_params()
        return {"params": params, "state": self.optimizer.init(params)}

    def run(self, sim: Simulation) -> Program:
        s = sim.shared
        parts = self._overlap().bind(sim)
        while True:
            group = yield sim.coordinator.round()
            group.params = s["params"]
            mean = yield group.average(group.grad(), self.compressor, parts=parts)
            if mean is not None:
                s["params"], s["state"] = self.optimizer.step(s["params"], mean, s["state"])

    def _overlap(self) -> Overlap:
        return Overlap(self.overlap, self.bucket, self.streams).check(self.compressor)

    def consensus(self, sim: Simulation) -> Tensor:
        """The parameters that all members hold."""
        return sim.shared["params"]


@dataclass(frozen=True)
class Single(GroupStrategy):
    """The fastest node trains alone and sends nothing: what must be beaten.

    The node is chosen once, among those online at the start, and needs no coordinator. While it is
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
        best = max(
            sorted(sim.online) or range(sim.fleet.n_nodes), key=lambda i: sim.devices.speed[i]
        )
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
