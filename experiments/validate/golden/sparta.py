"""SPARTA as exo-explore/gym computes it: a local step, then the mean of the masked entries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.validate.golden.case import Case
from experiments.validate.golden.inner import described
from experiments.validate.golden.problems import experiment, passed, task_of
from experiments.validate.golden.recorders import RecordedRounds, rows_of
from experiments.validate.row import Row
from optimizers import SPARTA
from sim.payload import Compressor, Context, Payload, State, Wire


@dataclass(frozen=True, eq=False)
class StoredMasks(Compressor):
    """The entries of a file's masks, bool [T, P], in the type that they have; step by step."""

    masks: Tensor

    summable = True
    shared_support = True
    deterministic = False
    linear = True

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        step = torch.from_numpy(np.broadcast_to(np.asarray(ctx.step, np.int64), len(x)).copy())
        entries = self._entries(int(step[0]))
        side = Wire(step.to(x.device)[:, None])
        return Payload(self, x.shape[1:], Wire(x[:, entries]), step=side), state

    def decode(self, payload: Payload) -> Tensor:
        values = payload.body
        whole = values.new_zeros(len(values), *payload.shape)
        step = 0 if values.is_meta else int(payload["step"][0, 0])
        whole[:, self._entries(step)] = values
        return whole

    def _entries(self, step: int) -> Tensor:
        return self.masks[step].nonzero()[:, 0]


def rows(case: Case) -> Iterator[Row]:
    """All parameters after every step, gradients and losses before it."""
    rounds, masks = RecordedRounds(rows_of), case.flat("mask").bool()
    if len(masks) != case.steps:
        raise ValueError(f"{case.name}: masks of {len(masks)} steps, `meta` has {case.steps}")
    strategy = SPARTA(StoredMasks(masks))
    parts: dict[str, Any] = {"local": described(case), "coordinator": rounds}
    experiment(case, task_of(case), strategy, **parts).run()
    yield case.compare("params", rounds.after_rounds, case.flat("params"))
    start = case.flat("init").expand(1, case.workers, -1)
    yield from passed(case, torch.cat([start, rounds.after_rounds[:-1]]))
