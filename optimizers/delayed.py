"""Outer steps that do not wait: DiLoCo with delayed outer gradients, and with eager ones.

Legend: b nodes of a block, n members of a round, P parameters.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from simpy import Event
from torch import Tensor

from optimizers.diloco import nesterov
from optimizers.local import SGD
from optimizers.strategy import GroupStrategy, NodeState, Program, Shared
from sim.aggregation import Aggregation, Mean
from sim.compute.block import Block
from sim.compute.local_optimizer import LocalOptimizer
from sim.payload import Compressor, Dense
from sim.rows import mean_params, spread
from sim.simulation import Simulation


def cautious_nesterov() -> SGD:
    """Lower rates than DiLoCo's, which blow up with a delay (2502.12996); the numbers are ours."""
    return SGD(lr=0.4, momentum=0.6, nesterov=True)


@dataclass(frozen=True)
class DelayedDiLoCo(GroupStrategy):
    """DiLoCo whose reductions travel while the next rounds train: one-step delay (2506.21263).

        theta(t+1) = outer(theta(t), mean_j Delta_j(t - delay))

    Everybody holds the same theta, and begins each round at it. The first `delay` rounds have
    nothing to apply. A joiner downloads the means that are under way, too. When the budget is
    spent, what is under way is awaited (and paid), not applied.

    DiLoCoX sends these outer gradients as low-rank factors in int4 with error feedback, which is
    a matter of the `compressor`.

    Args:
        inner_steps: H, local steps of a round.
        delay: rounds between an outer gradient and its application; 0 is DiLoCo.
        outer: steps on the mean of the outer gradients (theta minus the local parameters).
        compressor: how an outer gradient is written on the wire.
        aggregation: the rule by which outer gradients become one, see `DiLoCo`.
    """

    inner_steps: int = 100
    delay: int = 1
    outer: LocalOptimizer = field(default_factory=cautious_nesterov)
    compressor: Compressor = field(default_factory=Dense)
    aggregation: Aggregation = field(default_factory=Mean)

    def __post_init__(self) -> None:
        _check(self.inner_steps)
        if self.delay < 0:
            raise ValueError(f"strategy.delay={self.delay}: must be >= 0; the paper has 1")

    @property
    def passes(self) -> float:
        return self.outer.passes + 3.0  # the outer step, and theta - params

    @property
    def node_state(self) -> NodeState:
        gathers = not self.aggregation.summable
        return NodeState(sends=self.compressor, results=self.delay, gathers=gathers)

    def init(self, sim: Simulation) -> Shared:
        theta = sim.initial_params()
        under_way = theta.expand(self.delay, -1)  # only its size matters: what a joiner downloads
        return {"theta": theta, "outer": self.outer.init(theta), "under way": under_way}

    def run(self, sim: Simulation) -> Program:
        s, sent, lives = sim.shared, deque[Event](), sim.restarts
        while True:
            group = yield sim.coordinator.round()
            if sim.restarts > lives:
                sent, lives = deque[Event](), sim.restarts
            theta = group.params = s["theta"]
            steps = group.train(self.inner_steps)
            delta = group.rows(lambda params, theta=theta: theta - params, "params")
            send, rule = self.compressor, self.aggregation
            sent.append(group.average(delta, send, rule=rule, after=steps))
            yield steps
            if len(sent) > self.delay:
                mean = yield sent.popleft()  # waits only if the network is late
                if mean is not None:
                    s["theta"], s["outer"] = self.outer.step(s["theta"], mean, s["outer"])
            if sim.spent:
                yield sim.all_of(list(sent))

    def consensus(self, sim: Simulation) -> Tensor:
        """The outer parameters, as they were after the last outer step."""
        return sim.shared["theta"]


@dataclass(frozen=True)
class EagerDiLoCo(GroupStrategy):
    """DiLoCo that takes its own fresh outer gradient and the others' of the round before.

        theta_i(t+1) = outer_i(theta_i(t), mean_j Delta_j(t-1) + (Delta_i(t) - Delta_i(t-1)) / n)

    as in arXiv 2502.12996; before the first mean, that and Delta_i(t-1) are 0. Each node has its
    own theta and outer state, and they differ. A joiner gets the parameters of a node, and the
    last mean, and starts with an outer state and outer gradient of 0. When the budget is spent,
    what is under way is awaited (and paid), not applied.

    Args:
        inner_steps: H, local steps of a round.
        outer: steps on the eager outer gradient of each node.
        compressor: how an outer gradient is written on the wire; a node uses its own as it is.
        aggregation: the rule that stands for mean_j, see `DiLoCo`; what is of a node itself, its
            share 1/n, stays as it is.
    """

    inner_steps: int = 100
    outer: LocalOptimizer = field(default_factory=nesterov)
    compressor: Compressor = field(default_factory=Dense)
    aggregation: Aggregation = field(default_factory=Mean)

    def __post_init__(self) -> None:
        _check(self.inner_steps)

    @property
    def passes(self) -> float:
        return self.outer.passes / 2 + 5.0  # per write of parameters: there are two in a round

    @property
    def node_state(self) -> NodeState:
        moments = [f"outer.{k}" for k in range(math.ceil(self.outer.state_rows))]
        named = ("theta", "fresh", "delta", *moments)
        gathers = not self.aggregation.summable
        return NodeState(named=named, sends=self.compressor, gathers=gathers)

    def init(self, sim: Simulation) -> Shared:
        theta = sim.initial_params()
        odd = [x for x in self.outer.init(theta).values() if x.shape[-1] not in (1, len(theta))]
        if odd:
            raise ValueError(
                f"strategy.outer={type(self.outer).__name__}: keeps moments of a part of the "
                "columns, which is not possible node by node; use SGD, AdamW or Lion"
            )
        return {"params": theta, "under way": theta}

    def run(self, sim: Simulation) -> Program:
        ages, sent, n, lives = sim.numbers("eager.age"), None, 0, sim.restarts
        while True:
            group = yield sim.coordinator.round()
            if sim.restarts > lives:
                sent, n, lives = None, 0, sim.restarts
            group["theta"] = group.params
            steps = group.train(self.inner_steps)
            delta = group.rows(torch.sub, "theta", "params")
            rule = self.aggregation
            mean_of_these = group.average(delta, self.compressor, rule=rule, after=steps)
            yield steps
            here = group.online
            senders = len(here)
            here["fresh"] = here.rows(torch.sub, "theta", "params")
            here.params = here["theta"]  # a joiner may get them while these wait
            mean = None if sent is None else (yield sent)  # waits only if the network is late
            here = group.online
            here.apply(partial(self._step, mean, n or senders, ages))
            here.params = here["theta"]
            ages[here.index] += 1
            sent, n = mean_of_these, senders
            if sim.spent:
                yield sent

    def _step(self, mean: Tensor | None, n: int, ages: np.ndarray, rows: Block) -> None:
        """The outer step of a block's nodes; none of their own is in a mean that did not arrive.

        Args:
            n: of those who sent what became the mean.
            ages: outer steps that nodes have taken, [N].
        """
        theta, fresh = rows["theta"], rows["fresh"]
        eager = fresh / n if mean is None else mean + (fresh - rows["delta"]) / n
        moments = [name for name in self.outer.init(theta[:0]) if name != "age"]
        state = {name: rows[f"outer.{name}"] for name in moments}
        age = torch.from_numpy(ages[rows.ids].astype(np.int64))[:, None].to(theta.device)
        rows["theta"], state = self.outer.step(theta, eager, state | {"age": age})
        rows["delta"] = fresh
        for name in moments:
            rows[f"outer.{name}"] = state[name]

    def consensus(self, sim: Simulation) -> Tensor:
        """The mean of the parameters of those online."""
        return mean_params(sim)

    def metrics(self, sim: Simulation) -> dict[str, float]:
        """How far the nodes' parameters are from their mean."""
        return {"spread": spread(sim)}


def _check(inner_steps: int) -> None:
    if inner_steps < 1:
        raise ValueError(f"strategy.inner_steps={inner_steps}: must be >= 1")
