"""SPARTA: a few parameters are averaged at every step (Beton et al., OpenReview stFPf3gzq1)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch
from simpy import Event
from torch import Tensor

from optimizers.aggregation import check_forgets
from optimizers.compression import RandomBlocks, RandomK, SharedMask
from optimizers.diloco import nesterov
from optimizers.strategy import GroupStrategy, NodeState, Program, Shared
from sim.aggregation import Aggregation, Mean
from sim.compute.local_optimizer import LocalOptimizer
from sim.group import Group
from sim.payload import Compressor, Dense, Payload
from sim.rows import Lazy, mean_params, spread
from sim.simulation import Simulation


def one_in_200() -> Compressor:
    """0.5 % of the parameters at each step, so that each has its turn once in 200 steps."""
    return SharedMask(0.005, "shuffled")


@dataclass(frozen=True)
class Exchange:
    """A sparse average under way, and what its members had sent."""

    group: Group
    own: Payload
    mean: Event


@dataclass(frozen=True)
class SPARTA(GroupStrategy):
    """Sparse parameter averaging: after each local step, of a few entries M that all nodes share,

        params_i[M] <- mean_j params_j[M]

    and the others stay as they are. Nodes never agree, so the mean model is evaluated. Inner
    optimizer state stays on its node; a joiner has the parameters of its donor.

    With a delay, training goes on while entries travel, and what they have become meanwhile is
    kept: params_i[M] <- params_i[M] + (mean_j old_j[M] - old_i[M]).

    Args:
        compressor: which entries: a codec that all nodes draw alike and a ring can add up, not
            scaled, such as `SharedMask` or `RandomK`. A shared seed replaces the mask of a byte
            per parameter that exo-explore/gym broadcasts.
        delay: steps between sending entries and writing their mean; up to about 10 in the paper.
        aggregation: the rule by which the entries of all become one, see
            `optimizers.aggregation`.
    """

    compressor: Compressor = field(default_factory=one_in_200)
    delay: int = 0
    aggregation: Aggregation = field(default_factory=Mean)

    def __post_init__(self) -> None:
        check_forgets(self.aggregation, "entries are others each time")
        codec = self.compressor
        if not (codec.summable and codec.shared_support):
            raise ValueError(
                f"strategy.compressor={codec!r}: all nodes must send the same entries, which a "
                "ring adds up; choose SharedMask or RandomK"
            )
        if isinstance(codec, RandomK | RandomBlocks) and codec.scaled:
            raise ValueError(
                f"strategy.compressor={codec!r}: parameters are averaged as they are; choose "
                "compressor.scaled=false"
            )
        if self.delay < 0:
            raise ValueError(f"strategy.delay={self.delay}: must be >= 0")

    @property
    def passes(self) -> float:
        return 3.0  # parameters and mean read, parameters written

    @property
    def node_state(self) -> NodeState:
        return NodeState(sends=self.compressor, gathers=not self.aggregation.summable)

    def init(self, sim: Simulation) -> Shared:
        return {"params": sim.initial_params()}

    def run(self, sim: Simulation) -> Program:
        sent = deque[Exchange]()
        while True:
            group = yield sim.coordinator.round()
            yield group.train(1)
            yield from self.share(group.online, sent)

    def share(self, group: Group, sent: deque[Exchange]) -> Program:
        """Send the entries of this step; write the mean of those that are due."""
        if len(group):
            own = group.encode(self.compressor, group["params"])
            mean = group.average(own, self.compressor, rule=self.aggregation)
            sent.append(Exchange(group, own, mean))
        while len(sent) > self.delay:
            old = sent.popleft()
            mean = yield old.mean
            if mean is not None:
                old.group.online.update(
                    lambda params, own, mean=mean: mean + (params - own),
                    *("params", decoded(old.group, old.own)),
                )

    def consensus(self, sim: Simulation) -> Tensor:
        """The mean of the parameters of those online."""
        return mean_params(sim)

    def metrics(self, sim: Simulation) -> dict[str, float]:
        """How far nodes are from that mean."""
        return {"spread": spread(sim)}


@dataclass(frozen=True)
class SPARTADiLoCo(GroupStrategy):
    """DiLoCo whose nodes also average a few parameters at each step: the sparse average first.

    Nodes drift apart less in a round, so that it may be longer. Everything else is as in `DiLoCo`.

    Args:
        inner_steps: H, local steps between two outer steps.
        outer: steps on the mean of the outer gradients.
        compressor: how an outer gradient is written on the wire.
        aggregation: the rule by which outer gradients become one, see `DiLoCo`.
        sparta: what is averaged at each step. With a delay, what is on its way at an outer step
            is dropped.
    """

    inner_steps: int = 100
    outer: LocalOptimizer = field(default_factory=nesterov)
    compressor: Compressor = field(default_factory=Dense)
    aggregation: Aggregation = field(default_factory=Mean)
    sparta: SPARTA = field(default_factory=SPARTA)

    def __post_init__(self) -> None:
        if self.inner_steps < 1:
            raise ValueError(f"strategy.inner_steps={self.inner_steps}: must be >= 1")

    @property
    def passes(self) -> float:
        # Per write of parameters, of which H + 1 belong to one outer step.
        once = self.outer.passes + 3.0
        return (self.inner_steps * self.sparta.passes + once) / (self.inner_steps + 1)

    @property
    def node_state(self) -> NodeState:
        gathers = not self.aggregation.summable
        summed = isinstance(self.compressor, Dense) and not gathers
        sends = self.sparta.compressor if summed else self.compressor
        return NodeState(sends=sends, gathers=gathers)

    def init(self, sim: Simulation) -> Shared:
        theta = sim.initial_params()
        outer = self.outer.init(theta)
        return {"theta": theta, "outer": outer, "step": torch.zeros(1, dtype=torch.int64)}

    def run(self, sim: Simulation) -> Program:
        s, sent = sim.shared, deque[Exchange]()
        while True:
            group = yield sim.coordinator.round()
            yield group.train(1)
            yield from self.sparta.share(group.online, sent)
            s["step"] = s["step"] + 1
            if int(s["step"]) % self.inner_steps == 0:
                sent.clear()
                here, theta = group.online, s["theta"]
                delta = here.rows(lambda params, theta=theta: theta - params, "params").lasting()
                mean = yield here.average(delta, self.compressor, rule=self.aggregation)
                if mean is not None:
                    s["theta"], s["outer"] = self.outer.step(theta, mean, s["outer"])
                here.online.params = s["theta"]

    def consensus(self, sim: Simulation) -> Tensor:
        """The outer parameters, as they were after the last outer step."""
        return sim.shared["theta"]

    def metrics(self, sim: Simulation) -> dict[str, float]:
        """How far nodes are from their mean."""
        return {"spread": spread(sim)}


def decoded(group: Group, payload: Payload) -> Lazy:
    """What the members of a group had encoded, decoded block by block, rows [n, P]."""

    def rows(ids: np.ndarray) -> Tensor:
        return payload.rows(group.positions(ids.tolist())).decode()

    return Lazy(group.sim.fleet, group.index, rows)
