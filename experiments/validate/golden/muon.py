"""Muon as KellerJordan/Muon computes it: the inner optimizer of MuLoCo, with the file's gradients.

Legend: T steps, N nodes, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from experiments.experiment import Experiment
from experiments.validate.golden.case import Case
from experiments.validate.golden.problems import Forced
from experiments.validate.golden.recorders import RecordedOptimizer
from experiments.validate.row import Row
from optimizers import DiLoCo
from optimizers.muon import Muon, orthogonalised
from sim.budget import Budget
from sim.compute.options import ComputeOptions
from topologies import complete

_ORTHOGONAL = 0.04
"""Accepted of an entry of an orthogonalised matrix: what rounding to bfloat16 makes of it."""
_PARAMS = 1e-4
"""Accepted of a parameter, given the orthogonalised matrices: a factor is in bfloat16, too."""


def rows(case: Case) -> Iterator[Row]:
    """Momentum; orthogonalised matrices; parameters, as they would be with those of the file."""
    if not case.tensors or any(len(shape) != 2 for shape in case.layout.shapes.values()):
        raise ValueError(f"{case.name}: must have matrices only; has {case.layout.shapes}")
    inner, grads = _run(case)
    optimizer = inner.inner
    assert isinstance(optimizer, Muon)
    bound, decay = optimizer.bind(case.layout), 1 - optimizer.lr * optimizer.weight_decay
    for name, shape in case.layout.shapes.items():
        momenta = torch.stack([bound.momenta(state)[name] for state in inner.states])
        theirs = {what: _by_node(case, f"{name}_{what}") for what in ("momentum", "orth", "params")}
        yield case.compare(f"{name}_momentum", momenta, theirs["momentum"])
        gradient = case.layout.views(grads)[name]
        update = torch.lerp(gradient, momenta, bound.momentum) if bound.nesterov else momenta
        orth = orthogonalised(update, bound.ns_steps)
        yield case.compare(f"{name}_orth", orth, theirs["orth"], _ORTHOGONAL)
        # What rounding made of the matrices is undone, in the type that they are scaled in.
        steps = [bound.scale(shape) * each.to(orth.dtype) for each in (orth, theirs["orth"])]
        params = case.layout.views(torch.stack(inner.params))[name]
        moved, behind = [], torch.zeros_like(params[0])
        for ours, off in zip(params, bound.lr * (steps[0].to(params) - steps[1].to(params))):
            behind = decay * behind + off
            moved.append(ours + behind)
        yield case.compare(f"{name}_params", torch.stack(moved), theirs["params"], _PARAMS)


def _by_node(case: Case, key: str) -> Tensor:
    """An array [T, N, ...], of which a file of one worker leaves out N."""
    array = case[key]
    tensor = key.rpartition("_")[0]
    return array if array.dim() > 1 + case[f"{tensor}_init"].dim() else array[:, None]


def _run(case: Case) -> tuple[RecordedOptimizer, Tensor]:
    """A run with the file's gradients [T, N, P]."""
    grads = torch.cat([_by_node(case, f"{name}_grad").flatten(2) for name in case.tensors], dim=-1)
    steps, n = grads.shape[:2]
    muon = Muon(
        case.number("lr"),
        case.number("momentum"),
        case.flag("nesterov", True),
        case.number("weight_decay", 0.0),
        case.count("ns_steps", 5),
        excluded="(?!)",
    )
    inner = RecordedOptimizer(muon)
    task = Forced(grads, case.layout, case.flat("init"))
    strategy, budget = DiLoCo(steps), Budget(steps=steps)
    alone = ComputeOptions(workers=1)  # the recorder sees all nodes of a step in one call
    Experiment(task, complete(n), strategy, local=inner, budget=budget, compute=alone).run()
    return inner, grads
