"""SGD with biased codecs that converges: EF-SGD (1901.09847) and EF21 (2106.05203)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from optimizers.compression import ErrorFeedback, Sign, TopK
from optimizers.compression.feedback import check_fed_back
from optimizers.schedule import Constant, Schedule
from optimizers.strategy import GroupStrategy, NodeState, Program, Shared
from sim.aggregation import Aggregation, Mean
from sim.compute.local_optimizer import LocalOptimizer
from sim.group import Group
from sim.payload import Compressor, Dense, Payload
from sim.simulation import Simulation


@dataclass(frozen=True)
class EFSGD(GroupStrategy):
    """Algorithm 2 of arXiv 1901.09847, on N nodes; with `Sign()`, which is |p|_1 / P sign(p),
    Algorithm 1, EF-signSGD. All parameters stay equal.

        p_i = lr grad_i + e_i;   d_i = C(p_i);   e_i <- p_i - d_i;   x <- x - mean_i d_i

    The learning rate is inside: under a schedule an old error keeps the rate of its own step. A
    joiner starts without error, that of a node that leaves is lost, and so is what a member had
    sent when it was lost on the way.

    Args:
        lr: learning rate, > 0.
        compressor: C; in `PerTensor`, each tensor has a scale of its own.
        aggregation: the rule by which the d_i become one, see `AllReduce`.
        schedule: factor of `lr` by step.
    """

    lr: float = 0.1
    compressor: Compressor = field(default_factory=Sign)
    aggregation: Aggregation = field(default_factory=Mean)
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"strategy.lr={self.lr}: must be > 0")
        check_fed_back(self.compressor)

    @property
    def passes(self) -> float:
        return 3.0

    def state_rows(self, local: LocalOptimizer) -> float:
        return 1.0  # the error

    @property
    def node_state(self) -> NodeState:
        codec, gathers = ErrorFeedback(self.compressor), not self.aggregation.summable
        return NodeState(params=False, local=False, sends=codec, gathers=gathers)

    def init(self, sim: Simulation) -> Shared:
        return {"params": sim.initial_params(), "step": torch.zeros(1, dtype=torch.int64)}

    def run(self, sim: Simulation) -> Program:
        s, codec = sim.shared, ErrorFeedback(self.compressor)
        while True:
            group = yield sim.coordinator.round()
            group.params = s["params"]
            lr = self.lr * float(self.schedule.factor(s["step"]))
            scaled = group.grad().then(Scale(lr))
            mean = yield group.average(scaled, codec, rule=self.aggregation)
            if mean is not None:
                s["params"] = s["params"] - mean
            s["step"] = s["step"] + 1

    def consensus(self, sim: Simulation) -> Tensor:
        """The parameters that all members hold."""
        return sim.shared["params"]


@dataclass(frozen=True)
class EF21(GroupStrategy):
    """Algorithm 2 of arXiv 2106.05203; all parameters stay equal.

        c_i = C(grad_i - h_i);   h_i <- h_i + c_i;   x <- x - lr mean_i h_i

    Everybody gathers the c_i and keeps what they add up to, so h_i is known at both ends; here it
    is one row of the node. A joiner downloads the mean, and starts at h_i = 0; a leaver's h_i is in
    no mean any more. What came too late for a round is in h_i at the next one.

    Args:
        lr: learning rate, > 0.
        compressor: C, a contraction such as TopK.
        aggregation: the rule by which the h_i become one, see `AllReduce`.
        schedule: factor of `lr` by step.
    """

    lr: float = 0.1
    compressor: Compressor = field(default_factory=lambda: TopK(ratio=0.01))
    aggregation: Aggregation = field(default_factory=Mean)
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"strategy.lr={self.lr}: must be > 0")
        check_fed_back(self.compressor)

    @property
    def passes(self) -> float:
        return 9.0  # h_i: subtracted 3, added to 3; parameters 3

    def state_rows(self, local: LocalOptimizer) -> float:
        return 2.0  # h_i, and the mean of all

    @property
    def node_state(self) -> NodeState:
        named, codec = ("tracked",), self.compressor
        return NodeState(params=False, local=False, named=named, sends=codec, gathers=True)

    def init(self, sim: Simulation) -> Shared:
        params, step = sim.initial_params(), torch.zeros(1, dtype=torch.int64)
        return {"params": params, "mean": torch.zeros_like(params), "step": step}

    def run(self, sim: Simulation) -> Program:
        s = sim.shared
        while True:
            group = yield sim.coordinator.round()
            group.params = s["params"]
            change = group.grad().then(Track(self.compressor))
            received = yield group.all_gather(change, self.compressor)
            heard = group.among([] if received is None else received.nodes).online
            if len(heard):
                s["mean"] = yield from self._mean(heard)
                lr = self.lr * float(self.schedule.factor(s["step"]))
                s["params"] = s["params"] - lr * s["mean"]
            s["step"] = s["step"] + 1

    def _mean(self, heard: Group) -> Program:
        if self.aggregation.summable:
            return heard.reduce(lambda h: h, "tracked") / len(heard)
        known = heard.encode(Dense("native"), heard["tracked"])
        return (yield from heard.combined(known, self.aggregation))

    def consensus(self, sim: Simulation) -> Tensor:
        """The parameters that all members hold."""
        return sim.shared["params"]


@dataclass(frozen=True)
class Scale:
    """Gradients times a learning rate; on blocks, inside the flush."""

    lr: float

    def __call__(self, rows: Any, grad: Tensor) -> Tensor:
        return grad.mul_(self.lr)


@dataclass(frozen=True)
class Track:
    """Encode how far gradients are from what was sent of them; on blocks, inside the flush."""

    compressor: Compressor

    def __call__(self, rows: Any, grad: Tensor) -> Payload:
        with rows.in_place("tracked") as tracked:
            payload = rows.encode(self.compressor, grad.sub_(tracked.read()))
            payload.add_to(tracked)
        return payload
