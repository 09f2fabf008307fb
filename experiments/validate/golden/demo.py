"""DeMo as bloc97/DeMo computes it: lr inside the momentum, mean over senders, sign at the end."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from experiments.validate.golden.case import Case
from experiments.validate.golden.problems import Forced, Listed, Regression, experiment
from experiments.validate.golden.recorders import RecordedCodec, RecordedRounds, rows_of
from experiments.validate.row import Row
from optimizers import DeMo
from optimizers.compression import DCT, Chain, PerTensor, TopK
from optimizers.compression.basis import coefficients, halves
from sim.compute.task import Task
from sim.payload import Compressor, Context

_FAINT = 1e-9
"""In float32 the sign of a mean below this is a matter of rounding."""


def rows(case: Case) -> Iterator[Row]:
    """What was sent, the means, parameters and momentum; then again with a momentum of cosines."""
    codec, faint = RecordedCodec(_codec(case)), _FAINT if case.dtype == torch.float32 else 0.0
    rounds = _run(case, codec)
    for q, tensor in enumerate(case.tensors):  # of each tensor its indices, then its values
        sent = [list(payload.wires())[2 * q : 2 * q + 2] for payload in codec.payloads]
        index, value = case[f"{tensor}_idx"].long(), case[f"{tensor}_val"]
        ours = [torch.stack([pair[k].data for pair in sent]).reshape(index.shape) for k in (0, 1)]
        length = 1 + int(max(index.max(), ours[0].max()))
        mine, theirs = _spread(ours[0].long(), ours[1], length), _spread(index, value, length)
        yield case.compare(f"{tensor}_idx", (mine != 0).double(), (theirs != 0).double())
        yield case.compare(f"{tensor}_val", mine, theirs, faint)
    means, theirs = torch.stack(codec.means), case.flat("agg")
    yield case.compare("agg", means, theirs, faint)
    certain = theirs.abs() > faint
    yield case.compare("sign of agg", means.sign()[certain], theirs.sign()[certain])
    always = certain.all(0)  # a sign that is a matter of rounding moves a parameter for good
    params = case.flat("params")
    yield case.compare("params", rounds.after_rounds[:, 0, always], params[:, always])
    turned = _run(case, _codec(case)).after_rounds
    name = "params, with coefficients in the momentum"
    yield case.compare(name, turned[:, 0, always], params[:, always])
    if f"{case.tensors[0]}_residual" in case:
        kept = case.flat("residual")
        yield case.compare("residual", rounds.after_rounds[:, 1:], kept)
        transform, _ = halves(_codec(case))
        ctx = Context(case.layout, 0, np.zeros(case.workers, np.int64), 0)
        cosines = [coefficients(transform.encode(some, None, ctx)[0]) for some in kept]
        yield case.compare("coefficients of residual", turned[:, 1:], torch.stack(cosines))


def _spread(index: Tensor, value: Tensor, length: int) -> Tensor:
    """Coefficients of whole blocks: which zeros were sent of a block of zeros does not matter."""
    whole = value.new_zeros(*value.shape[:-1], length)
    return whole.scatter(-1, index, value)


def _codec(case: Case) -> Compressor:
    top_k = TopK(case.given("compression_topk"), value_dtype="native")
    return PerTensor(Chain(DCT(case.given("compression_chunk")), top_k))


def _run(case: Case, codec: Compressor) -> RecordedRounds:
    """Notes of the parameters, then of the momentum of all, after each step."""
    strategy = DeMo(
        lr=1.0,
        schedule=Listed(case["lr"]),
        decay=case.given("compression_decay"),
        weight_decay=case.given("weight_decay"),
        compressor=codec,
        lr_in_momentum=True,
    )
    # In float32 the rounding of a gradient could turn a sign: there gradients are the file's.
    given = case.dtype == torch.float32
    task: Task = Forced.of(case) if given else Regression.of(case)
    rounds = RecordedRounds(
        lambda sim: torch.cat([sim.shared["params"][None], rows_of(sim, "momentum")])
    )
    experiment(case, task, strategy, len(case["lr"]), coordinator=rounds).run()
    return rounds
