"""NoLoCo as gensyn-ai/noloco computes it: heavy ball, beta and gamma the outer learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.validate.golden.case import Case
from experiments.validate.golden.inner import described
from experiments.validate.golden.problems import Forced, Regression, experiment
from experiments.validate.golden.recorders import RecordedOptimizer, RecordedRounds, rows_of
from experiments.validate.row import Row
from optimizers import NoLoCo, Pairing
from sim.compute.task import Task
from sim.payload import Dense


@dataclass(frozen=True, eq=False)
class StoredGroups(Pairing):
    """The groups of a file, int64 [R, groups, members]."""

    each: Tensor

    def groups(
        self, members: Sequence[int], step: int, rng: np.random.Generator
    ) -> list[list[int]]:
        return self.each[step].tolist() if step < len(self.each) else []


def rows(case: Case) -> Iterator[Row]:
    """Gradients, parameters after every step, slow weights and momentum after the outer ones."""
    inner = RecordedOptimizer(described(case))
    rounds = RecordedRounds(lambda sim: torch.stack([rows_of(sim), rows_of(sim, "delta")]))
    strategy = NoLoCo(
        case.given("H"),
        alpha=case.given("outer_m"),
        beta=case.given("outer_lr"),
        gamma=case.given("gamma", case.given("outer_lr")),
        pairing=StoredGroups(case["groups"]),
        compressor=Dense("native"),
    )
    parts: dict[str, Any] = {"local": inner, "coordinator": rounds}
    experiment(case, _task(case), strategy, **parts).run()

    T, outer = case.steps, slice(case.given("H") - 1, case.steps, case.given("H"))
    slow, momentum = rounds.after_rounds[: len(range(T)[outer])].unbind(1)
    params = torch.stack(inner.params[:T])
    params[outer] = slow
    yield case.compare("grad", torch.stack(inner.grads[:T]), case.flat("grad"))
    yield case.compare("params", params, case.flat("params"))
    yield case.compare("slow", slow, case.flat("slow")[outer])
    yield case.compare("outer_momentum", momentum, case.flat("outer_momentum")[outer])


def _task(case: Case) -> Task:
    """The problem; for float32 in float64 with the file's gradients, as Adam magnifies rounding."""
    if case.dtype != torch.float32:
        return Regression.of(case)
    grads, more = case.flat("grad").double(), -case.steps % case.given("H")  # to fill a round
    return Forced(torch.cat([grads, grads[:more]]), case.layout, case.flat("init").double())
