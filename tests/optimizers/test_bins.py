"""The compiled code books beside torch's arithmetic, which GPUs run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from optimizers.compression import CodeBook, bins
from sim.compute.layout import Layout
from sim.payload import Context

CODECS = [CodeBook(), CodeBook(256, centred=True), CodeBook(4, centred=True), CodeBook(7)]


def drawn(n, m, dtype=torch.float32):
    rng = torch.Generator().manual_seed(m)
    return torch.randn(n, m, generator=rng, dtype=dtype) * torch.arange(1, n + 1)[:, None]


def encoded(codec, x):
    ctx = Context(Layout.flat(x.shape[1]), 0, np.arange(len(x)), 0)
    payload, _ = codec.encode(x, None, ctx)
    return payload.body, payload["table"]


@pytest.fixture
def by_torch(monkeypatch):
    """Encode with torch."""

    def encode(codec, x):
        with monkeypatch.context() as patch:
            patch.setattr(bins, "takes", lambda x: False)
            return encoded(codec, x)

    return encode


@pytest.mark.parametrize("m", [1, 2, 3, 7, 8, 15, 16, 31, 62, 247, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_compiled_code_books_are_those_of_torch(codec, dtype, m, by_torch):
    x = drawn(20, m, dtype)
    for ours, theirs in zip(encoded(codec, x), by_torch(codec, x)):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("m", [1, 5, 8, 100, 4099])
def test_the_width_of_a_bin_is_that_of_float64(m):
    x = drawn(9, m)
    sigma = x.double().square().sum(1, keepdim=True).div(max(1, m - 1)).sqrt()
    torch.testing.assert_close(CodeBook().width(x).double(), 6 * sigma / 256, rtol=1e-5, atol=0)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_rows_without_spread_or_with_what_is_no_number_are_as_with_torch(codec, by_torch):
    x = drawn(6, 40)
    x[0, 3], x[1, 4], x[2, 5] = math.nan, math.inf, -math.inf
    x[3], x[4], x[5] = 0.0, 1e-30, 1e30
    for ours, theirs in zip(encoded(codec, x), by_torch(codec, x)):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_a_row_is_coded_alike_whoever_is_beside_it(codec):
    x = drawn(50, 37)
    for whole, alone in zip(encoded(codec, x), encoded(codec, x[11:12])):
        assert torch.equal(whole[11:12], alone)


def test_rows_may_lie_anyhow_in_memory():
    x = drawn(50, 37)
    for whole, turned in zip(encoded(CodeBook(), x), encoded(CodeBook(), x.T.contiguous().T)):
        assert torch.equal(whole, turned)
