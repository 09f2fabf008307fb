"""Push-sum mixing as facebookresearch/stochastic_gradient_push computes it, without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from experiments.validate.golden.case import Case
from experiments.validate.golden.problems import Forced, experiment
from experiments.validate.golden.recorders import RecordedRounds, rows_of
from experiments.validate.row import Row
from optimizers import SGP
from sim.compute.layout import Layout
from topologies import ExponentialPeers
from topologies.peers import Peers

_GRAPHS = {
    "NPeerDynamicDirectedExponentialGraph": "forward",
    "DynamicDirectedExponentialGraph": "both",
}


@dataclass(frozen=True, eq=False)
class Listed(Peers):
    """The receivers of a file, [T, N, p]."""

    table: np.ndarray

    def receivers(self, n: int, number: int) -> np.ndarray:
        return self.table[number % len(self.table)]


def rows(case: Case) -> Iterator[Row]:
    """The graph, where it is one of ours; x and w after each round; and what all z tend to."""
    x, peers, steps = case["x_init"].double(), case["out_peers"], case.steps
    w = case["w_init"].double() if "w_init" in case else x.new_ones(len(x))
    if direction := _GRAPHS.get(case.given("graph", "of the file")):
        ours = ExponentialPeers(case.count("peers", peers.shape[-1]), direction)
        found = np.stack([ours.receivers(len(x), t) for t in range(steps)])
        yield case.compare("out_peers", torch.from_numpy(found), peers)
    else:
        yield case.not_compared("out_peers")
    if peers.shape[:2] != (steps, len(x)) or peers.dim() != 3:
        raise ValueError(
            f"{case.name}: out_peers is of {tuple(peers.shape)}, `meta` of {steps} rounds and "
            f"x_init of {len(x)} nodes: they do not belong together"
        )
    z, weights, towards = _mixed(case, x, w, Listed(peers.numpy()))
    yield case.compare("x", z * weights[..., None], case["x"])
    if "w" in case:
        yield case.compare("w", weights, case["w"])
    yield case.compare("sum x / sum w", towards, x.sum(0) / w.sum())


def _mixed(case: Case, x: Tensor, w: Tensor, graph: Peers) -> tuple[Tensor, Tensor, Tensor]:
    """z [T, N, d] and w [T, N] after each round, and what all z tend to, in float64."""
    strategy = SGP(graph=graph, weights=w.tolist())
    rounds = RecordedRounds(
        lambda sim: torch.cat([rows_of(sim), torch.from_numpy(strategy.w(sim))[:, None]], 1)
    )
    still = torch.zeros(case.steps, *x.shape, dtype=x.dtype)
    task = Forced(still, Layout({"x": x.shape[1:]}), still[0, 0])
    sim = experiment(case, task, strategy, coordinator=rounds).build()
    sim.group().params = x / w[:, None]
    sim.start()
    sim.run(until=sim.done)
    notes = rounds.after_rounds
    return notes[..., :-1], notes[..., -1], strategy.consensus(sim)
