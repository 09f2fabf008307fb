"""DiLoCo and Streaming DiLoCo as torchft computes them, and DiLoCo with exo-gym's late schedule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.validate.golden.case import Case
from experiments.validate.golden.problems import Forced, Regression, experiment
from experiments.validate.golden.recorders import (
    RecordedCodec,
    RecordedOptimizer,
    RecordedRounds,
    rows_of,
)
from experiments.validate.row import Row
from optimizers import SGD, AdamW, DiLoCo, StreamingDiLoCo
from optimizers.strategy import GroupStrategy
from sim.compute.local_optimizer import LocalOptimizer
from sim.compute.task import Task
from sim.payload import Compressor, Dense


def rows(case: Case) -> Iterator[Row]:
    """Gradients, parameters after every step, and the outer steps where the file has them."""
    codec, inner = RecordedCodec(Dense("native")), RecordedOptimizer(_inner(case))
    momentum = case.given("outer_m", 0.9)
    outer = RecordedOptimizer(
        SGD(case.given("outer_lr"), momentum, case.given("nesterov", True) and momentum > 0)
    )
    strategy, n = _strategy(case, outer, codec), case.workers
    streams = isinstance(strategy, StreamingDiLoCo)
    rounds = RecordedRounds(
        lambda sim: rows_of(sim) if streams else sim.shared["theta"].repeat(n, 1)
    )
    parts: dict[str, Any] = {"local": inner, "coordinator": rounds}
    # In float32 Adam makes much of the rounding of a small gradient: there they are the file's.
    given = case.dtype == torch.float32
    task: Task = Forced.of(case) if given else Regression.of(case)
    experiment(case, task, strategy, **parts).run()

    grads, params = case.flat("grad"), case.flat("params")
    if not given:
        yield case.compare("grad", torch.stack(inner.grads[: len(grads)]), grads)
    after = torch.stack(inner.params[: len(params)])
    applied = _applied(case)
    after[applied] = rounds.after_rounds[: len(applied)]
    yield case.compare("params", after, params)
    if not _is_late(case):
        found = {
            "pseudograd_local": codec.inputs,
            "pseudograd_mean": outer.grads,
            "global": outer.params,
            "outer_momentum": [state["momentum"] for state in outer.states] if momentum else [],
        }
        for what, ours in found.items():
            if ours:
                yield case.compare_each(what, ours, _in_order(case, what))


def _inner(case: Case) -> LocalOptimizer:
    adamw = case.given("inner_adamw", {})
    return AdamW(case.given("inner_lr"), **adamw) if adamw else SGD(case.given("inner_lr"))


def _strategy(case: Case, outer: LocalOptimizer, codec: Compressor) -> GroupStrategy:
    H, tau, alpha = case.given("H"), case.given("tau", 0), case.given("alpha", 0.0)
    if _is_late(case) or not (tau or alpha or len(case.given("fragments")) > 1):
        return DiLoCo(H, outer=outer, compressor=codec, extra_first_step=_is_late(case))
    return StreamingDiLoCo(
        H,
        fragments=case.given("fragments"),
        overlap=tau,
        mixing=alpha,
        outer=outer,
        compressor=codec,
    )


def _is_late(case: Case) -> bool:
    """Whether it is exo-gym's, whose first round has a step more."""
    return case.given("algorithm") == "diloco"


def _applied(case: Case) -> list[int]:
    """The steps after which the file applied an outer step, in order."""
    if _is_late(case):
        return list(range(case.given("H"), case.steps, case.given("H")))
    steps = [case[f"{names[0]}_apply_step"] for names in case.given("fragments")]
    return torch.cat(steps).sort().values.tolist()


def _in_order(case: Case, what: str) -> Sequence[Tensor]:
    """`what` of the file's outer steps, in the order of time: fragments take turns."""
    parts = [case.flat(what, names) for names in case.given("fragments")]
    most = max(len(part) for part in parts)
    return [part[turn] for turn in range(most) for part in parts if turn < len(part)]
