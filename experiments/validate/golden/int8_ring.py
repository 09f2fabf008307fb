"""The int8 ring all-reduce of PRIME, and its code book on whole rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from experiments.validate.golden.case import Case
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
    op = case.given("op", "SUM")
    if op not in _DIVIDE:
        raise ValueError(f"{case.name}: meta.op={op!r}: must be one of {', '.join(_DIVIDE)}")
    codec = CodeBook(bins=case["quant_lookup"].shape[-1])
    optimizer, ring = RecordedOptimizer(SGD(lr=1.0)), CodedRing(codec, divide=_DIVIDE[op])
    layout = Layout.flat(x.shape[1])
    task = Forced(x[None], layout, torch.zeros_like(x[0]))
    experiment(case, task, AllReduce(optimizer, reduction=ring), steps=1).run()
    mean = theirs / n if op == "SUM" else theirs
    yield case.compare("output", optimizer.grads[0].expand_as(mean), mean)
    payload, _ = codec.encode(x, None, Context(layout, 0, np.arange(n), 0))
    yield case.compare("quant_u8", payload.body, case["quant_u8"])
    yield case.compare("quant_lookup", payload["table"], case["quant_lookup"])
