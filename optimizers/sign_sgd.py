"""signSGD with majority vote: a bit per value up, a bit down (Bernstein et al., 1802.04434)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from optimizers.compression import Sign
from optimizers.schedule import Constant, Schedule
from optimizers.strategy import GroupStrategy, NodeState, Program, Shared
from sim.compute.local_optimizer import LocalOptimizer
from sim.reduction import Reducers
from sim.simulation import Simulation

BITS = Sign(scale=None)
"""One bit per value; the sign of 0 is +1."""


@dataclass(frozen=True)
class SignSGD(GroupStrategy):
    """Algorithm 3 of arXiv 1802.04434, and Signum with a momentum; all parameters stay equal.

        m_i <- momentum m_i + (1 - momentum) grad_i
        x <- x - lr (sign(sum_i sign(m_i)) + weight_decay x)          where votes tie: sign 0

    Workers send signs and the majority comes back, in as many bytes. A node's momentum starts at
    zero and is lost with it. Votes of members that were lost do not count.

    Args:
        lr: of a step of one in every coordinate, >= 0.
        momentum: in [0, 1); 0 keeps none, as signSGD.
        weight_decay: scaled by the learning rate.
        exchange: `"server"`: a member counts, and sends the majority to the others;
            `"gather"`: all bits go around a ring, and everybody counts.
        schedule: factor of `lr` by step.
    """

    lr: float = 1e-3
    momentum: float = 0.0
    weight_decay: float = 0.0
    exchange: str = "server"
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"strategy.{name}={getattr(self, name)}: must be >= 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"strategy.momentum={self.momentum}: must be in [0, 1)")
        if self.exchange not in ("server", "gather"):
            raise ValueError(f"strategy.exchange={self.exchange!r}: must be 'server' or 'gather'")

    @property
    def passes(self) -> float:
        return 6.0 if self.momentum else 3.0  # parameters; the momentum

    def state_rows(self, local: LocalOptimizer) -> float:
        return 1.0 if self.momentum else 0.0

    @property
    def node_state(self) -> NodeState:
        named = ("momentum",) if self.momentum else ()
        return NodeState(params=False, local=False, named=named, sends=BITS)

    def init(self, sim: Simulation) -> Shared:
        return {"params": sim.initial_params(), "step": torch.zeros(1, dtype=torch.int64)}

    def run(self, sim: Simulation) -> Program:
        s, server = sim.shared, Reducers() if self.exchange == "server" else None
        while True:
            group = yield sim.coordinator.round()
            group.params = s["params"]
            ballot = group.grad().then(Smooth(self.momentum)) if self.momentum else group.grad()
            votes = yield group.average(ballot, BITS, by=server)
            if votes is not None:
                lr = self.lr * float(self.schedule.factor(s["step"]))
                s["params"] = s["params"] - lr * (votes.sign() + self.weight_decay * s["params"])
            s["step"] = s["step"] + 1

    def consensus(self, sim: Simulation) -> Tensor:
        """The parameters that all members hold."""
        return sim.shared["params"]


@dataclass(frozen=True)
class Smooth:
    """Mix gradients into the momentum of their nodes; on blocks, inside the flush."""

    momentum: float

    def __call__(self, rows: Any, grad: Tensor) -> Tensor:
        with rows.in_place("momentum") as momentum:
            momentum.add(grad, 1 - self.momentum, keep=self.momentum)
            return momentum.read()
