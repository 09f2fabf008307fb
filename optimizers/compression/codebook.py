"""Codecs whose codes are looked up in a table that is sent with them: CodeBook, Quantiles.

The table holds, for each bin, the mean of the values that fell into it, so what is decoded has the
mean of what was encoded. Statistics are of the whole row (a tensor, inside of `PerTensor`; all
selected values, after a `TopK`).

Legend: n rows (one per node), m values of a row, L bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from optimizers.compression import bins
from sim.hops import Relay
from sim.payload import Compressor, Context, Payload, State, Wire


@dataclass(frozen=True)
class CodeBook(Compressor, Relay):
    """L bins of equal width over some standard deviations, and the mean of each bin.

    q = round(x / s + L / 2), clipped to 0 .. L - 1, with s = sigmas sigma / L and
    sigma = |x| / sqrt(m - 1). What lies beyond is decoded as the mean of the outer bin.

    Bytes: ceil(m log2(L) / 8) and 4 L for the table; 4 more for the mean, if centred. Where
    a row has no spread or has a NaN, s is 1.

    Source: hivemind's uniform 8-bit compression as PRIME uses it, without its shift
    (arXiv:2412.01152); centred, what CCLoco and Templar send of SparseLoCo (arXiv:2508.15706).

    Args:
        bins: L, 2 to 256.
        sigmas: standard deviations that the bins span together.
        centred: bins lie around the mean of the row instead of zero, and hold what is above it.

    >>> from sim.compute.layout import Layout
    >>> CodeBook().nbytes(Layout.flat(1000)), CodeBook(4, centred=True).nbytes(Layout.flat(1000))
    (2024, 270)
    """

    bins: int = 256
    sigmas: float = 6.0
    centred: bool = False

    shared_support = True
    quantises = True
    passes = 6.0

    def __post_init__(self) -> None:
        _check_bins(self.bins)
        if not 0 < self.sigmas < math.inf:
            raise ValueError(f"sigmas={self.sigmas!r}: must be a number above 0, for example 6.0")

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        flat, side = x.flatten(1), {}
        if self.centred:
            mean = flat.mean(1, keepdim=True)
            flat, side["shift"] = flat - mean, Wire(mean, bits=32)
        codes, means = self._coded(flat)
        table = Wire(means.to(x.dtype), bits=32)
        body = Wire(codes.reshape(x.shape), symbols=self.bins)
        return Payload(self, x.shape[1:], body, table=table, **side), state

    def decode(self, payload: Payload) -> Tensor:
        table = payload["table"]
        if self.centred:  # in 32 bits, as the authors' receivers add
            table = (table.float() + payload["shift"].float()).to(table.dtype)
        return _looked_up(table, payload)

    def relays(self, chunks: Tensor) -> bool:
        return bins.takes(chunks) and not self.centred

    def relay(self, chunks: Tensor, own: Tensor, spans: np.ndarray) -> None:
        bins.relay(chunks, own, spans, self.bins, self.sigmas)

    def width(self, spread: Tensor) -> Tensor:
        """s of every row of `spread [n, m]`, `[n, 1]`; a mean to be removed is removed already."""
        if bins.takes(spread):
            return bins.widths(spread, self.bins, self.sigmas)[:, None]
        sigma = spread.norm(dim=1, keepdim=True) / math.sqrt(max(1, spread.shape[1] - 1))
        width = self.sigmas * sigma / self.bins
        return torch.where((width > 0) & width.isfinite(), width, 1)

    def _coded(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """The bin of each value, uint8 [n, m], and the means of the bins [n, L]."""
        if bins.takes(flat):
            return bins.coded(flat, self.bins, self.sigmas, self.centred)
        values, width = flat.float(), self.width(flat).float()
        half = width.new_full((), self.bins // 2)
        if self.centred:  # rounded in the steps of CCLoco
            codes = values.div(width).add_(half)
        else:  # and of torch's quantised tensors
            codes = torch.addcmul(half, values, 1 / width)
        codes = codes.round_().nan_to_num_(0).clamp_(0, self.bins - 1).to(torch.uint8)
        return codes, _means_of_bins(values, codes, self.bins)


@dataclass(frozen=True)
class Quantiles(Compressor):
    """L bins with equally many values of the row in each, and the mean of each bin.

    Borders are the exact quantiles, interpolated; they are not sent. Bytes: ceil(m log2(L) / 8)
    and 4 L for the table.

    Source: hivemind's quantile 8-bit compression, which approximates the quantiles of more than
    100,000 values by quantiles of quantiles.

    Args:
        bins: L, 2 to 256.
    """

    bins: int = 256

    shared_support = True
    quantises = True
    passes = 40.0  # it sorts

    def __post_init__(self) -> None:
        _check_bins(self.bins)

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        values = x.flatten(1).float()
        borders = _inner_quantiles(values, self.bins)
        codes = torch.searchsorted(borders, values).clamp_(max=self.bins - 1).to(torch.uint8)
        table = Wire(_means_of_bins(values, codes, self.bins).to(x.dtype), bits=32)
        body = Wire(codes.reshape(x.shape), symbols=self.bins)
        return Payload(self, x.shape[1:], body, table=table), state

    def decode(self, payload: Payload) -> Tensor:
        return _looked_up(payload["table"], payload)


def _inner_quantiles(values: Tensor, bins: int) -> Tensor:
    """The borders between bins, `[n, L - 1]`: quantiles 1 / L, 2 / L, ..., interpolated."""
    ordered = values.sort(1).values
    at = torch.arange(1, bins, device=values.device) * ((values.shape[1] - 1) / bins)
    below = at.floor().to(torch.int64)
    above = at.ceil().to(torch.int64)
    low = ordered[:, below]
    return torch.lerp(low, ordered[:, above], (at - below).to(values.dtype))


def _means_of_bins(values: Tensor, codes: Tensor, bins: int) -> Tensor:
    """The mean of the values of each bin, `[n, L]`; 0 where there is none."""
    at = codes.to(torch.int64)
    counts = at.new_zeros(len(at), bins).scatter_add_(1, at, at.new_ones(1, 1).expand_as(at))
    sums = values.new_zeros(len(at), bins)
    if values.is_cuda:  # scatter_add_ adds in any order there; this sorts first
        row = torch.arange(len(at), device=at.device)[:, None].expand_as(at)
        sums.index_put_((row, at), values, accumulate=True)
    else:
        sums.scatter_add_(1, at, values)
    return sums / counts.clamp_(min=1)


def _looked_up(table: Tensor, payload: Payload) -> Tensor:
    codes = payload.body.flatten(1).to(torch.int64)
    return table.gather(1, codes).reshape(payload.n, *payload.shape)


def _check_bins(bins: int) -> None:
    if isinstance(bins, bool) or bins not in range(2, 257):
        raise ValueError(f"bins={bins!r}: must be an integer from 2 to 256")
