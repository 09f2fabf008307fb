"""DiLoCo and Streaming DiLoCo as torchft computes them, and DiLoCo with exo-gym's late schedule.

Legend: T steps, N nodes, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.validate.golden.case import Case
from experiments.validate.golden.inner import described
from experiments.validate.golden.problems import experiment, passed, task_of
from experiments.validate.golden.recorders import (
    RecordedCodec,
    RecordedOptimizer,
    RecordedRounds,
    rows_of,
)
from experiments.validate.row import Row
from optimizers import SGD, DiLoCo, StreamingDiLoCo
from optimizers.strategy import GroupStrategy
from sim.compute.local_optimizer import LocalOptimizer
from sim.payload import Compressor, Dense


@dataclass(frozen=True)
class Outer:
    """An outer step: after which steps it was prepared and applied, and the tensors' names."""

    prepared: int
    applied: int
    names: tuple[str, ...]


def rows(case: Case) -> Iterator[Row]:
    """Parameters after every step, gradients and losses before it, and the outer steps."""
    codec, inner = RecordedCodec(Dense("native")), RecordedOptimizer(described(case))
    outer = RecordedOptimizer(_outer(case))
    strategy, n, schedule = _strategy(case, outer, codec), case.workers, _schedule(case)
    streams = isinstance(strategy, StreamingDiLoCo)
    rounds = RecordedRounds(
        lambda sim: rows_of(sim) if streams else sim.shared["theta"].repeat(n, 1)
    )
    parts: dict[str, Any] = {"local": inner, "coordinator": rounds}
    experiment(case, task_of(case), strategy, **parts).run()

    params, after = case.flat("params"), torch.stack(inner.params[: case.steps])
    applied = [step.applied for step in schedule if step.applied < case.steps]
    after[applied] = rounds.after_rounds[: len(applied)]
    yield case.compare("params", after, params)
    start = case.flat("init").expand(1, n, -1)
    yield from passed(case, torch.cat([start, after[:-1]]))
    if not _is_late(case):
        for when in ("prepare", "apply"):
            yield from _steps(case, schedule, when)
        found = {
            "pseudograd_local": codec.inputs,
            "pseudograd_mean": outer.grads,
            "global": outer.params,
            "outer_momentum": [state["momentum"] for state in outer.states if "momentum" in state],
        }
        for what, ours in found.items():
            yield from _outer_steps(case, what, ours, schedule)


def _outer(case: Case) -> LocalOptimizer:
    late = _is_late(case)  # whose defaults `meta` may leave out
    momentum = case.number("outer_m", 0.9 if late else None)
    return SGD(case.number("outer_lr"), momentum, case.flag("nesterov", momentum > 0))


def _strategy(case: Case, outer: LocalOptimizer, codec: Compressor) -> GroupStrategy:
    H = case.count("H", least=1)
    if _is_late(case):  # a gym of one never synchronises
        H = H if case.workers > 1 else case.steps
        return DiLoCo(H, outer=outer, compressor=codec, extra_first_step=True)
    tau, alpha, fragments = case.count("tau", 0), case.number("alpha", 0.0), _fragments(case)
    if tau >= H / len(fragments):
        raise ValueError(
            f"{case.name}: meta.tau={tau}: must be less than a slot, {H} steps over "
            f"{len(fragments)} fragments"
        )
    if not (tau or alpha or len(fragments) > 1):
        return DiLoCo(H, outer=outer, compressor=codec)
    return StreamingDiLoCo(
        H, fragments=fragments, overlap=tau, mixing=alpha, outer=outer, compressor=codec
    )


def _is_late(case: Case) -> bool:
    """Whether it is exo-gym's, whose first round has a step more."""
    return case.given("algorithm") == "diloco"


def _fragments(case: Case) -> list[list[str]]:
    """The names of each fragment's tensors, which together are all."""
    fragments = case.given("fragments", [case.tensors])
    lists = isinstance(fragments, list) and all(isinstance(some, list) for some in fragments)
    if not lists or sorted(name for some in fragments for name in some) != sorted(case.tensors):
        raise ValueError(
            f"{case.name}: meta.fragments={fragments}: must have each of {case.tensors} once"
        )
    return fragments


def _schedule(case: Case) -> list[Outer]:
    """All outer steps that are prepared within the file's steps, in order."""
    H, T = case.count("H", least=1), case.steps
    if _is_late(case):
        every = tuple(case.tensors)
        return [Outer(t, t, every) for t in range(H, T, H)] if case.workers > 1 else []
    fragments, tau = _fragments(case), case.count("tau", 0)
    slot = H // len(fragments)
    return [
        Outer(end - tau, end, tuple(fragments[turn % len(fragments)]))
        for turn, end in enumerate(range(slot - 1, T + tau, slot))
    ]


def _steps(case: Case, schedule: list[Outer], when: str) -> Iterator[Row]:
    """`when` the outer steps of each tensor were; one that the end cut short may be left out."""
    ours, theirs = [], []
    for name in case.tensors:
        if f"{name}_{when}_step" in case:
            mine = [step for step in schedule if name in step.names]
            file = case[f"{name}_{when}_step"].flatten()
            whole = [step for step in mine if step.applied < case.steps]
            mine = whole if len(file) <= len(whole) else mine
            ours += [step.prepared if when == "prepare" else step.applied for step in mine]
            theirs += file.tolist()
    if theirs:
        found, told = (torch.tensor(some).split(1) for some in (ours, theirs))
        yield case.compare_each(f"{when}_step", found, told, least=len(found))


def _outer_steps(case: Case, what: str, ours: Sequence[Tensor], schedule: list[Outer]) -> list[Row]:
    """`what` of the file's outer steps in the order of time, in which fragments take turns."""
    turns = [step.names for step in schedule]
    there = [
        names for names in dict.fromkeys(turns) if any(f"{name}_{what}" in case for name in names)
    ]
    if not there or not ours:
        return []
    parts = [case.flat(what, names) for names in there]
    most = max(map(len, parts))
    theirs = [part[turn] for turn in range(most) for part in parts if turn < len(part)]
    whole = [step for step in schedule if step.applied < case.steps and step.names in there]
    if not theirs and not whole:
        return []
    return [case.compare_each(what, ours, theirs, len(whole))]
