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


def rows(case: Case) -> Iterator[Row]:
    """What was sent of every tensor, the means, parameters, and error buffers after sending."""
    codec, lr = RecordedCodec(_codec(case)), case.given("outer_lr")
    rounds = RecordedRounds(
        lambda sim: torch.cat([sim.shared["theta"][None], rows_of(sim, "error")])
    )
    _run(case, codec, rounds)
    notes = torch.stack(rounds.notes)  # [T + 1, theta and error buffers, P]
    before = case.given("decay") * notes[:-1, 1:]
    added = torch.stack(codec.inputs) - before
    near = SINGLE if case.given("quant", False) else 0.0  # code books are of float32
    yield case.compare("pseudograd", added, lr * case.flat("pseudograd"), near)
    for q, tensor in enumerate(case.tensors):
        yield from _sent(case, tensor, [payload.content[q] for payload in codec.payloads])
    yield case.compare("agg", torch.stack(codec.means), case.flat("agg"), near)
    yield case.compare("params", notes[1:, 0], case.flat("params"), near)
    yield case.compare("residual", notes[1:, 1:], case.flat("residual"), near)


def _sent(case: Case, tensor: str, payloads: list[Payload]) -> Iterator[Row]:
    """Indices and values of a tensor; where values are codes, what they stand for."""
    selected = [payload.content.content for payload in payloads]  # inside of chain and transform
    index, value, near = case[f"{tensor}_idx"].long(), case[f"{tensor}_val"], 0.0
    if case.given("quant", False):
        near, shift, table = SINGLE, case[f"{tensor}_shift"], case[f"{tensor}_lookup"]
        books = [payload.content for payload in selected]
        shifts = torch.stack([book["shift"][:, 0] for book in books])
        yield case.compare(f"{tensor}_shift", shifts, shift, near)
        tables = torch.stack([book["table"] for book in books])
        yield case.compare(f"{tensor}_lookup", tables, table, near)
        value = table.gather(-1, value.long().flatten(2)) + shift[..., None]
    at = torch.stack([payload["indices"] for payload in selected]).long().reshape(index.shape)
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
    chunk, top_k = case.given("chunk"), TopK(case.given("k"), value_dtype="native")
    transform = DCT(chunk) if case.given("use_dct", False) else Blocks(chunk, unit="row")
    if not case.given("quant", False):
        return PerTensor(Chain(transform, top_k))
    return PerTensor(
        Chain(transform, top_k, CodeBook(case.given("bins"), case.given("range"), centred=True))
    )


def _run(case: Case, codec: Compressor, rounds: RecordedRounds) -> None:
    T, H = case.steps, case.given("H")
    task: Task = Regression.of(case)
    local, steps = described(case), T * H
    if case.dtype == torch.float32 or case.given("quant", False):
        # Rounding could turn a selection or a code: there the outer gradients are the file's, as
        # the gradients of one step of plain SGD, in float64.
        forced = case.flat("pseudograd").double()
        task = Forced(forced, case.layout, case.flat("init").double())
        local, H, steps = SGD(1.0), 1, T
    strategy = SparseLoCo(
        H,
        lr=case.given("outer_lr"),
        decay=case.given("decay"),
        compressor=codec,
        lr_in_buffer=True,
        aggregate="senders",
    )
    experiment(case, task, strategy, steps, local=local, coordinator=rounds).run()
