"""DeMo one round late, as Psyche runs it: what is sent in a round is applied in the next one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from optimizers.compression import DCT, Chain, PerTensor, Sign, TopK
from optimizers.compression.basis import accumulate, extract, halves, restore
from optimizers.compression.feedback import check_fed_back
from optimizers.schedule import Constant, Schedule
from optimizers.strategy import GroupStrategy, NodeState, Program, Shared
from sim.aggregation import Aggregation, Mean
from sim.compute.local_optimizer import LocalOptimizer
from sim.group import Group
from sim.payload import Compressor, Payload
from sim.simulation import Simulation

_AHEAD = "psyche.ahead"
"""Name of the learning rate of a node's step under way; 0 if its d_i is not known."""


def dct_top_k_sign() -> Compressor:
    """The codec of `optimizers.demo.dct_top_k`, of whose values only signs are sent."""
    return PerTensor(Chain(DCT(64), TopK(32), Sign(scale=None)))


@dataclass(frozen=True)
class PsycheDeMo(GroupStrategy):
    """DeMo (arXiv 2411.19870) whose gathers travel while the next round trains.

    As PsycheFoundation/psyche has it (`shared/modeling/src/distro.rs`), in round t:

        g_i   at theta - lr(t-1) sign(d_i), a guess at the step that is under way
        d_i  <- d_i - what node i sent in round t-1
        d_i  <- decay d_i + lr(t) g_i;  send its fast components
        theta <- (1 - lr(t) weight_decay) theta - lr(t-1) sign(mean of round t-1)

    All replicas hold the same theta. The row `momentum` is d_i without what was sent in this
    round, in the basis of the compressor (cosine coefficients). The row `params` is where a
    gradient is taken, and then d_i with what was sent, which the next look-ahead is made of. A
    joiner has no d_i and does not look ahead, but hears the results under way. In the end these
    are awaited (and paid), not applied.

    Args:
        lr: learning rate of the signed step.
        decay: of the momentum.
        compressor: takes the fast components out of the momentum, which loses the exact values
            of those that are sent as signs.
        weight_decay: decoupled.
        schedule: factor of `lr` by step.
        aggregate: `"senders"` averages each coefficient over the nodes that sent it, `"all"` over
            all.
        aggregation: the rule that stands for this mean, see `DeMo`.
    """

    lr: float = 1e-3
    decay: float = 0.999
    compressor: Compressor = field(default_factory=dct_top_k_sign)
    weight_decay: float = 0.0
    schedule: Schedule = field(default_factory=Constant)
    aggregate: str = "senders"
    aggregation: Aggregation = field(default_factory=Mean)

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"strategy.lr={self.lr}: must be > 0")
        if not 0 <= self.decay < 1:
            raise ValueError(f"strategy.decay={self.decay}: must be in [0, 1)")
        if not self.weight_decay >= 0:
            raise ValueError(f"strategy.weight_decay={self.weight_decay}: must be >= 0")
        if self.aggregate not in ("senders", "all"):
            raise ValueError(f"strategy.aggregate={self.aggregate!r}: must be 'senders' or 'all'")
        check_fed_back(self.compressor)

    @property
    def passes(self) -> float:
        return 15.0  # as DeMo; and the look-ahead, made and undone

    def state_rows(self, local: LocalOptimizer) -> float:
        return 1.0  # momentum

    @property
    def node_state(self) -> NodeState:
        return NodeState(local=False, named=("momentum",), sends=self.compressor, gathers=True)

    def init(self, sim: Simulation) -> Shared:
        return {"params": sim.initial_params(), "step": torch.zeros(1, dtype=torch.int64)}

    def run(self, sim: Simulation) -> Program:
        s, sent, lr, lives = sim.shared, None, 0.0, sim.restarts
        while True:
            group = yield sim.coordinator.round()
            if sim.restarts > lives:
                sent, lr, lives = None, 0.0, sim.restarts
            theta, before = s["params"], lr
            group.change(LookAhead(theta), "params", self._ahead(group))
            lr = self.lr * float(self.schedule.factor(s["step"]))
            grad = group.grad().then(Generate(self, sim, lr))
            fresh = group.all_gather(grad, self.compressor)
            yield grad
            received = None if sent is None else (yield sent)  # waits only if the network is late
            theta = theta * (1 - lr * self.weight_decay)
            if received is not None:
                rule, over = self.aggregation, self.aggregate
                update = yield from group.combined(received, rule, over)
                theta = theta - before * update.sign()
            s["params"], s["step"], sent = theta, s["step"] + 1, fresh
            if sim.spent:
                yield sent

    def _ahead(self, group: Group) -> Tensor:
        """How far each node looks ahead, [n, 1]; whose d_i is not made in this round will not."""
        lrs = group.sim.numbers(_AHEAD)
        mine = torch.from_numpy(lrs[group.index]).to(group.sim.fleet.initial)
        lrs[group.index] = 0.0
        return mine[:, None]

    def consensus(self, sim: Simulation) -> Tensor:
        """The parameters that all members hold, without the results under way."""
        return sim.shared["params"]


@dataclass(frozen=True, eq=False)
class LookAhead:
    """Where gradients are computed: past a step that is under way. Rows are d_i before."""

    theta: Tensor

    def __call__(self, rows: Tensor, lr: Tensor) -> None:
        torch.addcmul(self.theta, rows.sign_(), lr, value=-1, out=rows)


@dataclass(frozen=True)
class Generate:
    """Take the fast components out of the momentum; on blocks, inside the flush."""

    strategy: PsycheDeMo
    sim: Simulation
    lr: float

    def __call__(self, rows: Any, grad: Tensor) -> Payload:
        layout, (transform, select) = self.sim.fleet.layout, halves(self.strategy.compressor)
        with rows.in_place("momentum") as momentum, rows.in_place("params") as d:
            accumulate(transform, layout, grad, momentum, self.strategy.decay, self.lr)
            restore(transform, layout, momentum, d)
            self.sim.numbers(_AHEAD)[rows.ids] = self.lr
            return extract(select, momentum, rows, exact=True)  # what is left stays here
