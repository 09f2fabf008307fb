"""PowerSGD as epfml/powersgd computes it: half-steps that take turns, and a local residual."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from experiments.validate.golden.case import Case
from experiments.validate.golden.problems import Forced, Regression, experiment
from experiments.validate.golden.recorders import RecordedOptimizer, RecordedRounds, rows_of
from experiments.validate.row import Row
from optimizers import SGD, PowerSGD
from optimizers.compression.low_rank import SIDES, as_matrix
from sim.compute.task import Task

_AMPLIFIED = 5e-6
"""Accepted in float32: nearly dependent columns of a factor make a basis of fewer digits."""


def rows(case: Case) -> Iterator[Row]:
    """Which tensors are approximated; then aggregates, residuals and parameters of every step."""
    mask, optimizer = case.given("compressed_mask"), RecordedOptimizer(_optimizer(case))
    vectors = any(mask[name] for name, shape in case.layout.shapes.items() if len(shape) < 2)
    strategy = PowerSGD(
        rank=case.given("rank"),
        sides="one",
        half_steps=case.given("iters", 1),
        optimizer=optimizer,
        warmup=case.given("warm", 0),
        min_rate=case.given("mcr", 2.0),
        vectors=vectors,
        value_dtype="native",
    )
    rounds = RecordedRounds(
        lambda sim: torch.cat([sim.shared["params"][None], rows_of(sim, "residual")])
    )
    # For the same reason gradients are then the file's.
    task: Task = Forced.of(case) if case.dtype == torch.float32 else Regression.of(case)
    sim = experiment(case, task, strategy, coordinator=rounds).build()
    sim.start()
    ours = torch.tensor([name in sim.shared["left"] for name in case.tensors])
    theirs = torch.tensor([bool(mask[name]) for name in case.tensors])
    yield case.compare("compressed_mask", ours.double(), theirs.double())
    for side, letter in zip(SIDES, "PQ"):
        sim.shared[side] = _factors(case, letter, [n for n in case.tensors if mask[n]])
    sim.run(until=sim.done)
    accepted = _AMPLIFIED if case.dtype == torch.float32 else 0.0
    yield case.compare("agg", torch.stack(optimizer.grads), case.flat("agg"), accepted)
    residual = rounds.after_rounds[:, 1:]
    yield case.compare("residual", residual, case.flat("residual"), accepted)
    yield case.compare("params", rounds.after_rounds[:, 0], case.flat("params"))


def _optimizer(case: Case) -> SGD:
    momentum = case.given("m", 0.0)
    return SGD(case.given("lr"), momentum, case.given("nesterov", False) and momentum > 0)


def _factors(case: Case, letter: str, names: list[str]) -> dict[str, Tensor]:
    """The factors to begin with: a file has them by shape, in order of first appearance."""
    groups: dict[tuple[int, int], list[str]] = {}
    for name in names:
        groups.setdefault(as_matrix(case.layout.shapes[name]), []).append(name)
    return {
        name: case[f"{letter}0_group{j}"][i]
        for j, group in enumerate(groups.values())
        for i, name in enumerate(group)
    }
