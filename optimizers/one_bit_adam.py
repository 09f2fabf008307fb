"""1-bit Adam: Adam's variance is frozen, its momentum travels in bits (Tang et al., 2102.02888)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optimizers.compression import ErrorFeedback, Sign
from optimizers.compression.feedback import check_fed_back
from optimizers.local import AdamW
from optimizers.strategy import GroupStrategy, NodeState, Program, Shared
from sim.aggregation import Mean
from sim.compute.layout import Layout
from sim.compute.local_optimizer import LocalOptimizer
from sim.group import Group
from sim.payload import Compressor, Context
from sim.reduction import Reducers
from sim.simulation import Simulation


@dataclass(frozen=True)
class OneBitAdam(GroupStrategy):
    """Algorithm 1 of arXiv 2102.02888; all parameters stay equal.

    For `warmup` steps Adam on the mean of the gradients, all-reduced. Then v stays as it is, and

        m_i = b1 m + (1 - b1) grad_i;   c_i = C(m_i + e_i);   e_i <- m_i + e_i - c_i
        m = C(mean_i c_i + e);   e <- mean_i c_i + e - m;   x <- x - lr m / (sqrt(v) + eps)

    Each member is the server of a shard of the columns: codes go to their servers, and what these
    encode comes back, `2 (N - 1) / N` of a payload for everybody. m is encoded with one scale, as
    in the paper's algorithm. Bias corrections are those of Adam, that of v frozen with it.

    A joiner downloads m, v and the age, and starts with e_i = 0. A node that leaves takes along
    e_i, and e of its shard.

    Args:
        optimizer: Adam; its `clip` bounds gradients during the warm-up only.
        warmup: steps, 15 to 20 % of the run in the paper.
        compressor: C, without state.
    """

    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=0.01))
    warmup: int = 20
    compressor: Compressor = field(default_factory=Sign)

    def __post_init__(self) -> None:
        if not isinstance(self.optimizer, AdamW):
            raise ValueError(f"strategy.optimizer={self.optimizer!r}: must be AdamW")
        if self.warmup < 1:
            raise ValueError(f"strategy.warmup={self.warmup}: must be >= 1, for v to freeze")
        if self.compressor.init(Layout.flat(1), 1) is not None:
            raise ValueError(
                f"strategy.compressor={self.compressor!r}: must be without state, for errors are "
                "fed back here; choose for example Sign"
            )
        check_fed_back(self.compressor)
        Reducers("butterfly").check(self.compressor, Mean())

    @property
    def passes(self) -> float:
        return self.optimizer.passes

    def state_rows(self, local: LocalOptimizer) -> float:
        return self.optimizer.state_rows + 1.0  # and the error

    @property
    def node_state(self) -> NodeState:
        return NodeState(params=False, local=False, sends=ErrorFeedback(self.compressor))

    def init(self, sim: Simulation) -> Shared:
        params = sim.initial_params()
        state, step = self.optimizer.init(params), torch.zeros(1, dtype=torch.int64)
        return {"params": params, "state": state, "step": step}

    def run(self, sim: Simulation) -> Program:
        s, codec, server = sim.shared, ErrorFeedback(self.compressor), Reducers("butterfly")
        while True:
            group = yield sim.coordinator.round()
            group.params = s["params"]
            if s["step"] < self.warmup:
                error, before = torch.zeros_like(s["params"]), group
                mean = yield group.average(group.grad(), sim.dense)
                if mean is not None:
                    s["params"], s["state"] = self.optimizer.step(s["params"], mean, s["state"])
                    s["step"] = s["step"] + 1
                continue
            error, before = self._kept(error, before), group
            momentum = group.grad().then(Momentum(self.optimizer.betas[0], s["state"]["mean"]))
            mean = yield group.average(momentum, codec, by=server)
            if mean is not None:
                error = self._step(sim, mean, error)

    def _step(self, sim: Simulation, mean: Tensor, error: Tensor) -> Tensor:
        """The servers' encoding, and Adam's step with v as it is; returns their new error."""
        s, adam = sim.shared, self.optimizer
        ctx = Context(sim.fleet.layout, int(s["step"]), np.zeros(1, np.int64), sim.fleet.seed)
        codec, state = ErrorFeedback(self.compressor), (error[None], None)
        payload, (error, _) = codec.encode(mean[None], state, ctx)
        momentum, (b1, b2) = payload.decode()[0], adam.betas
        lr = adam.lr * float(adam.schedule.factor(s["step"]))
        s["step"] = s["step"] + 1
        root = (s["state"]["square"] / (1 - b2**self.warmup)).sqrt() + adam.eps
        update = momentum / (1 - b1 ** int(s["step"])) / root
        s["params"] = (1 - lr * adam.weight_decay) * s["params"] - lr * update
        s["state"] = s["state"] | {"mean": momentum}
        return error[0]

    @staticmethod
    def _kept(error: Tensor, before: Group) -> Tensor:
        """The servers' error, without that of members of the last round that have left."""
        stayed = set(before.online.ids)
        gone = [place for place, node in enumerate(before.ids) if node not in stayed]
        if not gone or error.is_meta:
            return error
        shards = np.array_split(np.arange(len(error)), len(before))
        lost = np.concatenate([shards[place] for place in gone])
        return error.index_fill(0, torch.from_numpy(lost), 0)

    def consensus(self, sim: Simulation) -> Tensor:
        """The parameters that all members hold."""
        return sim.shared["params"]


@dataclass(frozen=True, eq=False)
class Momentum:
    """What a node's gradient makes of the momentum that all share; on blocks, inside the flush."""

    decay: float
    momentum: Tensor

    def __call__(self, rows: Any, grad: Tensor) -> Tensor:
        return grad.lerp_(self.momentum.expand_as(grad), self.decay)
