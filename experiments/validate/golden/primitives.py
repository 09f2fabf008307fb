"""The codecs of several authors, each applied once: code books, QSGD, packed indices, cosines."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from experiments.validate.golden.case import DOUBLE, SINGLE, Case
from experiments.validate.row import Row
from optimizers.compression import DCT, QSGD, CodeBook
from optimizers.compression.transform import block_sides, dct_basis, largest_divisor
from sim.compute.layout import Layout
from sim.payload import Compressor, Context, Payload, Wire


def rows(case: Case) -> Iterator[Row]:
    """All arrays of all codecs that the file has; told by the names of its arrays."""
    for name in dict.fromkeys(found[1] for found in case.named(r"(.+)_(?:u8|lookup|dequant)")):
        yield from _code_book(case, name)
    for found in case.named(r"qsgd_(\d+)_(unbiased|biased)"):
        yield _qsgd(case, found[0], int(found[1]), found[2] == "biased")
    for found in case.named(r"(idx(\d+))_packed"):
        yield _packed(case, found[1], int(found[2]))
    for found in case.named(r"(dct_.+)_coef"):
        yield from _cosines(case, found[1])
    if "split_result" in case:
        made = [
            [largest_divisor(n, chunk) for chunk in case["split_chunk"].tolist()]
            for n in case["split_n"].tolist()
        ]
        yield _compared(case, "split_result", torch.tensor(made))


def _code_book(case: Case, name: str) -> Iterator[Row]:
    """Codes of `x` as a whole; around its mean if the file has a shift."""
    x, centred = case["x"], f"{name}_shift" in case
    bins = len(case[f"{name}_lookup"]) if f"{name}_lookup" in case else _digits(name)
    codec = CodeBook(bins, case.number("range_in_sigmas", 6.0), centred)
    payload = _encoded(codec, x)
    made = {"u8": payload.body, "lookup": payload["table"], "dequant": payload.decode()}
    if centred:
        made["shift"] = payload["shift"]
    spread = x - x.mean() if centred else x
    made["scale"] = codec.width(spread.flatten()[None])
    for what, ours in made.items():
        if f"{name}_{what}" in case:
            yield _compared(case, f"{name}_{what}", ours, None if what == "scale" else x)


def _digits(name: str) -> int:
    """How many bins a code of this name has; 256 if it does not say."""
    found = re.search(r"\d+", name)
    return int(found[0]) if found else 256


def _qsgd(case: Case, name: str, levels: int, shrink: bool) -> Row:
    """A vector in one bucket, rounded by the draws of the file."""
    codec = QSGD(levels, bucket=None, shrink=shrink, norm_dtype="native")
    payload = _encoded(codec, case["qsgd_x"], qsgd=case["qsgd_u"][None])
    return _compared(case, name, payload.decode(), case["qsgd_x"])


def _packed(case: Case, name: str, bits: int) -> Row:
    packed = Wire(case[name].reshape(1, -1), bits=bits).pack()[0]
    ours = torch.from_numpy(np.frombuffer(packed, np.uint8).copy())
    return _compared(case, f"{name}_packed", ours)


def _cosines(case: Case, name: str) -> Iterator[Row]:
    """Coefficients, what they decode to, and the basis of the first axis."""
    x, chunk = case[f"{name}_x"], int(case[f"{name}_chunk"])
    payload = _encoded(DCT(chunk), x)
    yield _compared(case, f"{name}_coef", payload.body, x)
    yield _compared(case, f"{name}_x", payload.decode(), x)
    if f"{name}_basis_dim0" in case:
        side = block_sides(tuple(x.shape), chunk)[0 if x.dim() > 1 else 1]
        basis = dct_basis(side, x.dtype, x.device).T  # theirs has a frequency in each column
        yield _compared(case, f"{name}_basis_dim0", basis)


def _encoded(codec: Compressor, x: Tensor, **draws: Tensor) -> Payload:
    """What one node sends of a tensor."""
    layout = Layout({"x": tuple(x.shape)})
    return codec.encode(x[None], None, Context(layout, 0, np.zeros(1, np.int64), 0, draws))[0]


def _compared(case: Case, name: str, ours: Tensor, encoded: Tensor | None = None) -> Row:
    """An array of the file beside ours, whatever its shape.

    What is accepted goes with its size, and with that of the values that were encoded.
    """
    theirs = case[name].flatten()
    involved = [x for x in (ours, theirs, encoded) if x is not None and x.numel()]
    accepted = SINGLE if any(x.dtype == torch.float32 for x in involved) else DOUBLE
    size = max((float(x.double().abs().max()) for x in involved), default=1.0)
    return case.compare(name, ours.flatten(), theirs, accepted * size)
