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
from experiments.validate.golden.problems import experiment, passed, task_of
from experiments.validate.golden.recorders import RecordedOptimizer, RecordedRounds, rows_of
from experiments.validate.row import Row
from optimizers import NoLoCo, Pairing
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
    """Parameters, slow weights and momentum after every step, gradients and losses before it."""
    H, T, groups = case.count("H", least=1), case.steps, _groups(case)
    inner = RecordedOptimizer(described(case))
    rounds = RecordedRounds(lambda sim: torch.stack([rows_of(sim), rows_of(sim, "delta")]))
    strategy = NoLoCo(
        H,
        alpha=case.number("outer_m"),
        beta=case.number("outer_lr"),
        gamma=case.number("gamma", case.number("outer_lr")),
        pairing=StoredGroups(groups),
        compressor=Dense("native"),
    )
    parts: dict[str, Any] = {"local": inner, "coordinator": rounds}
    experiment(case, task_of(case), strategy, **parts).run()

    yield case.compare("number of groups", torch.tensor(T // H), torch.tensor(len(groups)))
    start = case.flat("init").expand(1, case.workers, -1)
    notes = torch.stack(rounds.notes)[[(t + 1) // H for t in range(T)]]  # the last outer step's
    slow, momentum, params = notes[:, 0], notes[:, 1], torch.stack(inner.params[:T])
    params[H - 1 :: H] = slow[H - 1 :: H]
    yield case.compare("params", params, case.flat("params"))
    yield case.compare("slow", slow, case.flat("slow"))
    yield case.compare("outer_momentum", momentum, case.flat("outer_momentum"))
    yield from passed(case, torch.cat([start, params[:-1]]))


def _groups(case: Case) -> Tensor:
    """Who meets in each outer step, int64 [R, groups, members]."""
    groups, everybody = case["groups"], {*range(case.workers)}
    whole = groups.dim() == 3 and groups.dtype == torch.int64
    steps = groups.flatten(1).tolist() if whole else []
    if not whole or any(len({*each} & everybody) < len(each) for each in steps):
        raise ValueError(
            f"{case.name}: groups {tuple(groups.shape)}: must be [R, groups, members], ids of "
            f"{case.workers} workers, each at most once in a step"
        )
    return groups
