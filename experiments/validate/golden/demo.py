"""DeMo as bloc97/DeMo computes it: lr inside the momentum, mean over senders, sign at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from experiments.validate.golden.case import Case
from experiments.validate.golden.problems import (
    Listed,
    Regression,
    experiment,
    passed,
    roles,
    task_of,
)
from experiments.validate.golden.recorders import RecordedCodec, RecordedRounds, rows_of
from experiments.validate.row import Row
from optimizers import DeMo
from optimizers.compression import DCT, Chain, PerTensor, TopK
from optimizers.compression.basis import coefficients, halves
from optimizers.compression.transform import largest_divisor
from sim.payload import Compressor, Context

_EXACT = 0.5
"""Accepted of a number of bytes."""
_FAINT = {torch.float32: 3e-6, torch.float64: 1e-12}
"""Share of the largest value that is sent; the sign of a mean below is a matter of rounding."""


def rows(case: Case) -> Iterator[Row]:
    """What was sent, the means, parameters and momentum; then again with a momentum of cosines.

    In between, gradients and losses at the file's parameters.
    """
    codec, faint = RecordedCodec(_codec(case)), _faint(case)
    rounds = _run(case, codec)
    near = faint if case.dtype == torch.float32 else 0.0
    yield from _sent(case, codec, faint, near)
    means, theirs = torch.stack(codec.means), case.flat("agg")
    yield case.compare("agg", means, theirs, near)
    certain = theirs.abs() > faint
    yield case.compare("sign of agg", means.sign()[certain], theirs.sign()[certain])
    certain |= (theirs == 0) & (means == 0)
    always = certain.all(0)  # a sign that is a matter of rounding moves a parameter for good
    params, start = case.flat("params"), case.flat("init")
    yield case.compare("params", rounds.after_rounds[:, 0, always], params[:, always])
    before = torch.cat([start[None], params[:-1]])[:, None].expand(-1, case.workers, -1)
    yield from passed(case, before, _dead(case))
    turned = _run(case, _codec(case)).after_rounds
    name = "params, with coefficients in the momentum"
    yield case.compare(name, turned[:, 0, always], params[:, always])
    if any(f"{name}_residual" in case for name in case.tensors):
        kept = case.flat("residual")
        yield case.compare("residual", rounds.after_rounds[:, 1:], kept, near)
        transform, _ = halves(_codec(case))
        ctx = Context(case.layout, 0, np.zeros(case.workers, np.int64), 0)
        cosines = torch.stack([coefficients(transform.encode(x, None, ctx)[0]) for x in kept])
        yield case.compare("coefficients of residual", turned[:, 1:], cosines, near)


def _faint(case: Case) -> float:
    sent = [case[f"{name}_val"] for name in case.tensors]
    if not sent or not all(values.numel() for values in sent):
        raise ValueError(f"{case.name}: has no values that were sent")
    largest = max(float(values.abs().max()) for values in sent)
    return _FAINT[case.dtype] * largest


def _sent(case: Case, codec: RecordedCodec, faint: float, near: float) -> Iterator[Row]:
    """Places and values of what was sent; which of faint ones were says nothing."""
    wires = [list(payload.wires()) for payload in codec.payloads]
    for q, (tensor, shape) in enumerate(case.layout.shapes.items()):
        index, value = case[f"{tensor}_idx"].long(), case[f"{tensor}_val"]
        length = math.prod(shape) // max(1, math.prod(index.shape[2:-1]))  # of a block
        beyond = index.shape != value.shape or not 0 <= index.min() <= index.max() < length
        if beyond:
            raise ValueError(f"{case.name}: {tensor}_idx: must be places in blocks of {length}")
        # Of each tensor its indices travel, then its values.
        ours, mine = (torch.stack([wire[2 * q + k].data for wire in wires]) for k in (0, 1))
        if ours.numel() != index.numel():
            counts = torch.tensor(ours.numel()), torch.tensor(index.numel())
            yield case.compare(f"number of {tensor}_idx", *counts)
            continue
        theirs = _spread(index, value, length)
        mine = _spread(ours.long().reshape(index.shape), mine.reshape(index.shape), length)
        clear = torch.maximum(mine.abs(), theirs.abs()) > faint
        yield case.compare(f"{tensor}_idx", (clear & (mine != 0)) * 1, (clear & (theirs != 0)) * 1)
        yield case.compare(f"{tensor}_val", mine, theirs, near)
    yield from _sizes(case, codec)


def _sizes(case: Case, codec: RecordedCodec) -> Iterator[Row]:
    """What `meta` says of the blocks, and of bytes with the reference's indices of 8 bytes."""
    values = [wire.data for wire in codec.payloads[0].wires()][1::2]
    nbytes = sum(each[0].numel() * (8 + each.element_size()) for each in values)
    said = {"sent_per_step_int64_index": nbytes}
    said["gathered_per_step_incl_own"] = case.workers * nbytes
    for name, ours in said.items():
        if (key := f"ref_bytes_{name}") in case.meta:
            theirs = torch.tensor(case.number(key))
            yield case.compare(f"meta.{key}", torch.tensor(ours), theirs, _EXACT)
    sides, chunk = case.given("chunk_of_dim", {}), case.count("compression_chunk")
    if not isinstance(sides, dict) or not all(map(str.isdecimal, sides)):
        raise ValueError(f"{case.name}: meta.chunk_of_dim={sides!r}: must be chunks by length")
    if sides:
        blocks = torch.tensor([largest_divisor(int(n), chunk) for n in sides])
        yield case.compare("meta.chunk_of_dim", blocks, torch.tensor([*sides.values()]))


def _spread(index: Tensor, value: Tensor, length: int) -> Tensor:
    """Coefficients of whole blocks: which zeros were sent of a block of zeros does not matter."""
    whole = value.new_zeros(*value.shape[:-1], length)
    return whole.scatter(-1, index, value)


def _dead(case: Case) -> Tensor | None:
    """Where gradients are zero by decree, bool [P]: what goes into and out of some hidden units."""
    units = case.given("dead_hidden_units", [])
    if not isinstance(units, list) or not all(type(unit) is int for unit in units):
        raise ValueError(f"{case.name}: meta.dead_hidden_units={units!r}: must be a list of units")
    if not units or not Regression.fits(case):
        return None
    dead = {
        name: torch.zeros(shape, dtype=torch.bool) for name, shape in case.layout.shapes.items()
    }
    W1, b1, W2, _ = roles(case.layout, case["X"].shape[-1], case["Y"].shape[-1])
    if not 0 <= min(units) <= max(units) < len(dead[b1]):
        raise ValueError(f"{case.name}: meta.dead_hidden_units={units}: has {len(dead[b1])} units")
    dead[W1][units], dead[b1][units], dead[W2][:, units] = True, True, True
    return case.layout.flatten(dead)


def _codec(case: Case) -> Compressor:
    top_k = TopK(case.count("compression_topk"), value_dtype="native")
    return PerTensor(Chain(DCT(case.count("compression_chunk")), top_k))


def _run(case: Case, codec: Compressor) -> RecordedRounds:
    """Notes of the parameters, then of the momentum of all, after each step."""
    if len(case["lr"]) != case.steps:
        raise ValueError(f"{case.name}: lr of {len(case['lr'])} steps, `meta` has {case.steps}")
    strategy = DeMo(
        lr=1.0,
        schedule=Listed(case["lr"]),
        decay=case.number("compression_decay"),
        weight_decay=case.number("weight_decay"),
        compressor=codec,
        lr_in_momentum=True,
    )
    rounds = RecordedRounds(
        lambda sim: torch.cat([sim.shared["params"][None], rows_of(sim, "momentum")])
    )
    experiment(case, task_of(case), strategy, coordinator=rounds).run()
    return rounds
