"""D-PSGD as the convex code of epfml/ChocoSGD computes it: adapt, then combine."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from experiments.experiment import Experiment
from experiments.validate.golden.case import Case
from experiments.validate.golden.problems import Logistic
from experiments.validate.golden.recorders import RecordedRounds, rows_of
from experiments.validate.row import Row
from optimizers import DPSGD
from sim.budget import Budget
from topologies import ring
from topologies.weights import metropolis_weights


def rows(case: Case) -> Iterator[Row]:
    """The mixing matrix, and all nodes' parameters after every step."""
    if case.given("topology") != "ring":
        raise ValueError(f"{case.name}: meta.topology={case.given('topology')!r}: must be 'ring'")
    graph = ring(case.workers)
    yield case.compare("W", torch.from_numpy(metropolis_weights(graph).toarray()), case["W"])
    strategy = DPSGD(case.given("lr"), order="adapt_then_combine")
    rounds, budget = RecordedRounds(rows_of), Budget(steps=case.steps)
    run = Experiment(Logistic(case), graph, strategy, coordinator=rounds, budget=budget)
    sim = run.build()
    sim.group().params = case["x_init"]  # each node starts elsewhere
    sim.start()
    sim.run(until=sim.done)
    yield case.compare("x", rounds.after_rounds, case["x"])
