"""PowerSGD as epfml/powersgd computes it: half-steps that take turns, and a local residual.

Legend: T steps, N nodes, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from experiments.validate.golden.case import Case
from experiments.validate.golden.problems import Forced, Regression, experiment, passed
from experiments.validate.golden.recorders import RecordedOptimizer, RecordedRounds, rows_of
from experiments.validate.row import Row
from optimizers import SGD, PowerSGD
from optimizers.compression.low_rank import Matrices, as_matrix
from sim.compute.task import Task
from sim.simulation import Simulation

_READINGS = (False, "package", True)
"""Whether vectors are approximated, and how they are counted."""
_LEAST, _MOST, _TIMES = 5e-6, 1e-3, 4
"""In float32 rounding matters the more, the more the columns of a factor depend on each other.
Accepted is so many times what it changes in our own values, between these two."""


def rows(case: Case) -> Iterator[Row]:
    """Which tensors are approximated; then aggregates, residuals and parameters of every step."""
    given = case.given("compressed_mask")
    if not isinstance(given, dict) or set(given) != set(case.tensors):
        raise ValueError(
            f"{case.name}: meta.compressed_mask={given!r}: must say true or false of each of "
            f"{', '.join(case.tensors)}"
        )
    theirs = [bool(given[name]) for name in case.tensors]
    fitting = [way for way in _READINGS if _approximated(case, way) == theirs]
    ours = _approximated(case, (fitting or _READINGS)[0])
    yield case.compare("compressed_mask", torch.tensor(ours), torch.tensor(theirs))
    if not fitting:
        return  # all else would be of other tensors
    made, accepted = _replayed(case, fitting[0], torch.float64), {}
    if case.dtype == torch.float32:
        rounded = _replayed(case, fitting[0], torch.float32)
        off = {what: float((made[what] - rounded[what]).abs().max()) for what in made}
        accepted = {what: min(max(_TIMES * off[what], _LEAST), _MOST) for what in made}
    for what, values in made.items():
        if what == "params" or case.has(what):
            yield case.compare(what, values, case.flat(what), accepted.get(what, 0.0))
    before = torch.cat([case.flat("init")[None], case.flat("params")[:-1]])
    yield from passed(case, before[:, None].expand(-1, case.workers, -1))


def _approximated(case: Case, vectors: bool | str) -> list[bool]:
    """Of which tensors so much less is sent that they are."""
    rate = case.number("mcr", 2.0)
    matrices = Matrices(case.count("rank"), case.count("iters", 1), rate, vectors)
    return [matrices.rank_of(shape) > 0 for shape in case.layout.shapes.values()]


def _replayed(case: Case, vectors: bool | str, dtype: torch.dtype) -> dict[str, Tensor]:
    """`agg` and `params` of every step, [T, P], and `residual` [T, N, P].

    Gradients are the file's if it is of float32 or of another problem.
    """
    optimizer = RecordedOptimizer(_optimizer(case))
    rounds = RecordedRounds(
        lambda sim: torch.cat([sim.shared["params"][None], rows_of(sim, "residual")])
    )
    strategy = PowerSGD(
        rank=case.count("rank"),
        sides="one",
        half_steps=case.count("iters", 1),
        optimizer=optimizer,
        warmup=case.count("warm", 0),
        min_rate=case.number("mcr", 2.0),
        vectors=vectors,
        value_dtype="native",
    )
    task: Task
    if case.dtype == torch.float64 and Regression.fits(case):
        task = Regression.of(case)
    else:
        task = Forced(case.flat("grad").to(dtype), case.layout, case.flat("init").to(dtype))
    sim = experiment(case, task, strategy, coordinator=rounds).build()
    sim.start()
    sim.shared["left"] = _factors(case, sim, dtype)
    sim.run(until=sim.done)
    notes, agg = rounds.after_rounds, torch.stack(optimizer.grads)
    return {"agg": agg, "residual": notes[:, 1:], "params": notes[:, 0]}


def _optimizer(case: Case) -> SGD:
    momentum = case.number("m", 0.0)
    return SGD(case.number("lr"), momentum, case.flag("nesterov", False) and momentum > 0)


def _factors(case: Case, sim: Simulation, dtype: torch.dtype) -> dict[str, Tensor]:
    """P to begin with: the file has it by shape, in order of first appearance.

    Q is what the first half-step finds, so that Q0 is never used.
    """
    groups: dict[tuple[int, int], list[str]] = {}
    for name in sim.shared["left"]:
        groups.setdefault(as_matrix(case.layout.shapes[name]), []).append(name)
    factors: dict[str, Tensor] = {}
    for j, group in enumerate(groups.values()):
        given, ours = case[f"P0_group{j}"].to(dtype), sim.shared["left"][group[0]]
        if given.shape != (len(group), *ours.shape):
            raise ValueError(
                f"{case.name}: P0_group{j} is of {tuple(given.shape)}; ours, of "
                f"{', '.join(group)}, of {(len(group), *ours.shape)}"
            )
        factors |= dict(zip(group, given))
    return factors
