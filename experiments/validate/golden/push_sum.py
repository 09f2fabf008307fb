"""Push-sum mixing as facebookresearch/stochastic_gradient_push computes it, without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

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
    x, w, peers = case["x_init"], case["w_init"], case["out_peers"]
    steps, n, _ = peers.shape
    direction = _GRAPHS.get(case.given("graph", "stored"))
    if direction:
        ours = ExponentialPeers(case.given("peers", peers.shape[2]), direction)
        found = np.stack([ours.receivers(n, t) for t in range(steps)])
        yield case.compare("out_peers", torch.from_numpy(found).double(), peers.double())

    strategy = SGP(graph=Listed(peers.numpy()), weights=w.tolist())
    rounds = RecordedRounds(
        lambda sim: torch.cat([rows_of(sim), torch.from_numpy(strategy.w(sim))[:, None]], 1)
    )
    layout = Layout({"x": x.shape[1:]})
    task = Forced(torch.zeros(steps, *x.shape, dtype=x.dtype), layout, torch.zeros_like(x[0]))
    sim = experiment(case, task, strategy, steps, coordinator=rounds).build()
    sim.group().params = x / w[:, None]
    sim.start()
    sim.run(until=sim.done)
    z, weights = rounds.after_rounds[..., :-1], rounds.after_rounds[..., -1]
    yield case.compare("x", z * weights[..., None], case["x"])
    yield case.compare("w", weights, case["w"])
    yield case.compare("sum x / sum w", strategy.consensus(sim), x.sum(0) / w.sum())
