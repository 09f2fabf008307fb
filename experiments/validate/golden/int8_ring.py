"""The int8 ring all-reduce of PRIME, and its code book on whole rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from experiments.validate.golden.case import SINGLE, Case
from experiments.validate.golden.problems import Forced, experiment
from experiments.validate.golden.recorders import RecordedOptimizer
from experiments.validate.row import Row
from optimizers import SGD, AllReduce
from optimizers.compression import CodeBook
from sim.compute.layout import Layout
from sim.payload import Context
from sim.reduction import CodedRing

_DIVIDE = {"SUM": "after", "AVG": "owner"}
"""By the reference's operation, where the sum is divided to be the mean that we have."""


def rows(case: Case) -> Iterator[Row]:
    """What every rank has in the end, as a mean; then codes and table of each rank's input."""
    x, theirs, n = case["input"], case["output"], case.workers
    if theirs.shape != x.shape or case.count("n", x.shape[1]) != x.shape[1]:
        raise ValueError(
            f"{case.name}: input is of {tuple(x.shape)} and output of {tuple(theirs.shape)}: "
            "both must be of meta.workers times meta.n values"
        )
    op = case.given("op", "SUM")
    if op not in _DIVIDE:
        raise ValueError(f"{case.name}: meta.op={op!r}: must be one of {', '.join(_DIVIDE)}")
    bins = case["quant_lookup"].shape[-1] if "quant_lookup" in case else 256
    codec, layout = CodeBook(bins), Layout.flat(x.shape[1])
    optimizer, ring = RecordedOptimizer(SGD(lr=1.0)), CodedRing(codec, divide=_DIVIDE[op])
    task = Forced(x[None], layout, torch.zeros_like(x[0]))
    experiment(case, task, AllReduce(optimizer, reduction=ring), steps=1).run()
    mean = theirs / n if op == "SUM" else theirs
    near = SINGLE * float(x.abs().max())  # inputs may be small, and codes are a hundredth of them
    yield case.compare("output", optimizer.grads[0].expand_as(mean), mean, near)
    payload, _ = codec.encode(x, None, Context(layout, 0, np.arange(n), 0))
    if "quant_u8" in case:
        yield case.compare("quant_u8", payload.body, case["quant_u8"])
    if "quant_lookup" in case:
        yield case.compare("quant_lookup", payload["table"], case["quant_lookup"], near)
