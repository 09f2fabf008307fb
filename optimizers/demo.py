"""DeMo: momentum stays local, its fast components travel (Peng, Quesnelle, Kingma, 2411.19870)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from optimizers.compression import DCT, Chain, PerTensor, TopK
from optimizers.compression.basis import accumulate, extract, halves
from optimizers.compression.feedback import check_fed_back
from optimizers.schedule import Constant, Schedule
from optimizers.strategy import GroupStrategy, NodeState, Program, Shared
from sim.aggregation import Aggregation, Mean
from sim.compute.layout import Layout
from sim.compute.local_optimizer import LocalOptimizer
from sim.overlap import Overlap
from sim.payload import Compressor, Payload
from sim.simulation import Simulation
from sim.units import Quantity


def dct_top_k() -> Compressor:
    """The authors' codec: 2-D DCT in blocks of at most 64 x 64, the 32 largest of each block."""
    return PerTensor(Chain(DCT(64), TopK(32)))


@dataclass(frozen=True)
class DeMo(GroupStrategy):
    """Algorithm 1 of arXiv 2411.19870; all replicas stay equal, so parameters are one row.

    A node keeps in its momentum what it did not send; the rows `momentum` are in the basis of the
    compressor (cosine coefficients), which is where the fast components are. A joiner starts with
    zero momentum; the momentum of a node that leaves is lost.

    Args:
        lr: learning rate of the signed step.
        decay: of the momentum.
        compressor: takes the fast components out of the momentum.
        weight_decay: decoupled, before the step.
        schedule: factor of `lr` by step.
        lr_in_momentum: add `lr * grad` to the momentum, as the authors' code (bloc97/DeMo) does;
            the paper adds `grad`. They differ under a schedule only: the sign removes the scale.
        aggregate: `"senders"` averages each coefficient over the nodes that sent it (their code),
            `"all"` over all.
        aggregation: the rule that stands for this mean, see `AllReduce`: of decoded rows, in which
            what a node did not send is zero.
        sign: step by the sign of the decoded mean; without, by the mean itself.
        keep_quantisation_error: with a codec that quantises values, leave the error of that in
            the momentum; without, the momentum loses the exact values, as in Psyche, which sends
            bare signs (there is no error to keep in a sign).
        overlap, bucket, streams: how gathers overlap with the backward pass, see
            `sim.overlap.Overlap`.
    """

    lr: float = 1e-3
    decay: float = 0.999
    compressor: Compressor = field(default_factory=dct_top_k)
    weight_decay: float = 0.0
    schedule: Schedule = field(default_factory=Constant)
    lr_in_momentum: bool = False
    aggregate: str = "senders"
    aggregation: Aggregation = field(default_factory=Mean)
    sign: bool = True
    keep_quantisation_error: bool = False
    overlap: str = "none"
    bucket: Quantity = "25MB"
    streams: int = 1

    def __post_init__(self) -> None:
        self._overlap()
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
        return 9.0  # momentum: decay and add 3, subtract 3; parameters: 3

    def state_rows(self, local: LocalOptimizer) -> float:
        return 1.0  # momentum

    @property
    def node_state(self) -> NodeState:
        gathers, named = not self.aggregation.summable, ("momentum",)
        codec = self.compressor
        return NodeState(params=False, local=False, named=named, sends=codec, gathers=gathers)

    def init(self, sim: Simulation) -> Shared:
        return {"params": sim.initial_params(), "step": torch.zeros(1, dtype=torch.int64)}

    def run(self, sim: Simulation) -> Program:
        s, (transform, select) = sim.shared, halves(self.compressor)
        parts = self._overlap().bind(sim)
        while True:
            group = yield sim.coordinator.round()
            group.params = s["params"]
            lr = self.lr * float(self.schedule.factor(s["step"]))
            scale = lr if self.lr_in_momentum else 1.0
            extract = Extract(self, sim.fleet.layout, transform, select, scale)
            fast = group.grad().then(extract)
            received = yield group.all_gather(fast, self.compressor, parts=parts)
            if received is not None:
                rule, over = self.aggregation, self.aggregate
                update = yield from group.combined(received, rule, over)
                kept = s["params"] * (1 - lr * self.weight_decay)
                s["params"] = kept - lr * (update.sign() if self.sign else update)
            s["step"] = s["step"] + 1

    def _overlap(self) -> Overlap:
        return Overlap(self.overlap, self.bucket, self.streams).check(self.compressor)

    def consensus(self, sim: Simulation) -> Tensor:
        """The parameters that all members hold."""
        return sim.shared["params"]


@dataclass(frozen=True)
class Extract:
    """Take the fast components out of the momentum; on blocks, inside the flush."""

    strategy: DeMo
    layout: Layout
    transform: Compressor
    select: Compressor
    scale: float

    def __call__(self, rows: Any, grad: Tensor) -> Payload:
        decay, exact = self.strategy.decay, not self.strategy.keep_quantisation_error
        with rows.in_place("momentum") as momentum:
            accumulate(self.transform, self.layout, grad, momentum, decay, self.scale)
            return extract(self.select, momentum, rows, exact)  # what is left stays here
