"""SparseLoCo as tplr-ai/CCLoco computes it: lr in the buffer, mean over senders, unit a row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from experiments.validate.golden.case import SINGLE, Case
from experiments.validate.golden.inner import described
from experiments.validate.golden.problems import Forced, Regression, experiment
from experiments.validate.golden.recorders import RecordedCodec, RecordedRounds, rows_of
from experiments.validate.row import Row
from optimizers import SGD, SparseLoCo
from optimizers.compression import DCT, Blocks, Chain, CodeBook, PerTensor, TopK
from sim.compute.task import Task
from sim.payload import Compressor, Payload

_TURNED = 1e-3
"""Accepted in float32, of the largest: Adam goes as far by a small gradient as by a large one, and
of that rounding is a larger part."""


def rows(case: Case) -> Iterator[Row]:
    """What was sent of every tensor, the means, parameters, and error buffers after sending."""
    codec, lr = RecordedCodec(_codec(case)), case.number("outer_lr")
    rounds = RecordedRounds(
        lambda sim: torch.cat([sim.shared["theta"][None], rows_of(sim, "error")])
    )
    _run(case, codec, rounds)
    notes = torch.stack(rounds.notes)  # [T + 1, theta and error buffers, P]
    near = SINGLE if case.flag("quant", False) else 0.0  # code books are of float32
    added = torch.stack(codec.inputs) - case.number("decay") * notes[:-1, 1:]
    if case.has("pseudograd"):
        deltas = case.flat("pseudograd")
        yield case.compare("pseudograd in the buffer", added, lr * deltas, near)
    if Regression.fits(case):
        yield from _local_steps(case)
    for q, tensor in enumerate(case.tensors):
        if f"{tensor}_val" in case:
            yield from _sent(case, tensor, [payload.content[q] for payload in codec.payloads])
    yield case.compare("params", notes[1:, 0], case.flat("params"), near)
    for what, ours in {"agg": torch.stack(codec.means), "residual": notes[1:, 1:]}.items():
        if case.has(what):
            yield case.compare(what, ours, case.flat(what), near)


def _local_steps(case: Case) -> Iterator[Row]:
    """Losses and outer gradients of local steps from the parameters of each round of the file."""
    H, optimizer, losses, deltas = case.count("H"), described(case).bind(case.layout), [], []
    if case["X"].shape[:2] != (case.steps * H, case.workers):
        raise ValueError(
            f"{case.name}: X is of {tuple(case['X'].shape[:2])} steps and workers, `meta` of "
            f"{case.steps} rounds of {H} and {case.workers}: they do not belong together"
        )
    slopes = torch.func.vmap(torch.func.grad_and_value(Regression.of(case).loss))
    starts = torch.cat([case.flat("init")[None], case.flat("params")[:-1]]).double()
    state = optimizer.init(starts[0].expand(case.workers, -1))  # goes on from round to round
    for number, start in enumerate(starts):
        params = start.repeat(case.workers, 1)
        for step in range(number * H, number * H + H):
            grad, loss = slopes(params, (case["X"][step].double(), case["Y"][step].double()))
            optimizer.step_(params, grad, state)
            losses.append(loss)
        deltas.append(start - params)
    ours = torch.stack(deltas)
    near = 0.0 if case.dtype == torch.float64 else _TURNED * float(ours.abs().max())
    if case.has("pseudograd"):
        yield case.compare("pseudograd", ours, case.flat("pseudograd"), near)
    if "loss" in case:
        yield case.compare("loss", torch.stack(losses), case["loss"], near)


def _sent(case: Case, tensor: str, payloads: list[Payload]) -> Iterator[Row]:
    """Indices and values of a tensor; where values are codes, what they stand for."""
    selected = [payload.content.content for payload in payloads]  # inside of chain and transform
    index, value, near = case[f"{tensor}_idx"].long(), case[f"{tensor}_val"], 0.0
    if case.flag("quant", False):
        near, shift, table = SINGLE, case[f"{tensor}_shift"], case[f"{tensor}_lookup"]
        books = [payload.content for payload in selected]
        shifts = torch.stack([book["shift"][:, 0] for book in books])
        yield case.compare(f"{tensor}_shift", shifts, shift, near)
        tables = torch.stack([book["table"] for book in books])
        yield case.compare(f"{tensor}_lookup", tables, table, near)
        value = table.gather(-1, value.long().flatten(2)) + shift[..., None]
    at = torch.stack([payload["indices"] for payload in selected]).long()
    if at.numel() != index.numel():
        raise ValueError(
            f"{case.name}: {tensor}_idx is of {tuple(index.shape)}, ours of {at.numel()} values: "
            "`meta` and arrays do not belong together"
        )
    at = at.reshape(index.shape)
    values = torch.stack([payload.body for payload in selected]).reshape(index.shape)
    length = 1 + int(max(index.max(), at.max()))
    mine = _spread(at, torch.ones(at.shape), length)
    theirs = _spread(index, torch.ones(index.shape), length)
    yield case.compare(f"{tensor}_idx", mine, theirs)
    mine = _spread(at, values, length)
    theirs = _spread(index, value.reshape(index.shape), length)
    yield case.compare(f"{tensor}_val", mine, theirs, near)


def _spread(index: Tensor, value: Tensor, length: int) -> Tensor:
    """Values at their places in whole units: in which order they were sent does not matter."""
    whole = value.new_zeros(*value.shape[:-1], length)
    return whole.scatter(-1, index, value)


def _codec(case: Case) -> Compressor:
    chunk, top_k = case.count("chunk"), TopK(case.count("k"), value_dtype="native")
    transform = DCT(chunk) if case.flag("use_dct", False) else Blocks(chunk, unit="row")
    if not case.flag("quant", False):
        return PerTensor(Chain(transform, top_k))
    return PerTensor(
        Chain(transform, top_k, CodeBook(case.count("bins"), case.number("range"), centred=True))
    )


def _run(case: Case, codec: Compressor, rounds: RecordedRounds) -> None:
    T, H, local = case.steps, case.count("H"), described(case)
    task: Task
    if case.dtype == torch.float64 and not case.flag("quant", False) and Regression.fits(case):
        task = Regression.of(case)
    else:
        # Rounding could turn a selection or a code: there the outer gradients are the file's, as
        # the gradients of one step of plain SGD, in float64.
        forced = case.flat("pseudograd").double()
        task = Forced(forced, case.layout, case.flat("init").double())
        local, H = SGD(1.0), 1
    strategy = SparseLoCo(
        H,
        lr=case.number("outer_lr"),
        decay=case.number("decay"),
        compressor=codec,
        weight_decay=case.number("weight_decay", 0.0),
        lr_in_buffer=True,
        aggregate="senders",
    )
    experiment(case, task, strategy, T * H, local=local, coordinator=rounds).run()
