"""Rings that encode at every hop, beside loops over owners and hops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from optimizers.compression import CodeBook, Quantize
from sim import hops
from sim.compute.layout import Layout
from sim.compute.workers import Workers
from sim.payload import Context
from sim.reduction import CodedRing

DIVIDED = ["before", "owner", "after"]


def drawn(m, P, dtype=torch.float32):
    return torch.randn(m, P, generator=torch.Generator().manual_seed(P), dtype=dtype)


def recoded(codec, chunk):
    ctx = Context(Layout.flat(len(chunk)), 0, np.zeros(1, np.int64), 0)
    payload, _ = codec.encode(chunk[None], None, ctx)
    return payload.decode()[0]


def looped(ring, rows, weights=None):
    """Chunk by chunk and hop by hop."""
    m, P = rows.shape
    k = ring.chunks
    if weights is not None:
        rows = rows * (weights * (m / weights.sum())).to(rows)[:, None]
    rows = rows / m if ring.divide == "before" else rows
    padded = torch.cat([rows, rows.new_zeros(m, -P % (k * m))], dim=1)
    made = []
    for number, chunk in enumerate(padded.view(m, k * m, -1).unbind(1)):
        owner = number // k
        total = chunk[(owner + 1) % m]
        for hop in range(2, m + 1):
            total = recoded(ring.codec, total) + chunk[(owner + hop) % m]
        made.append(recoded(ring.codec, total / m if ring.divide == "owner" else total))
    mean = torch.cat(made)[:P]
    return mean / m if ring.divide == "after" else mean


@pytest.mark.parametrize("divide", DIVIDED)
@pytest.mark.parametrize("codec", [CodeBook(), CodeBook(9, centred=True), Quantize(4)], ids=repr)
@pytest.mark.parametrize(
    ("m", "P", "k"), [(1, 1, 1), (1, 7, 2), (2, 3, 2), (5, 4, 3), (13, 500, 2)]
)
def test_a_ring_is_that_of_a_loop_over_chunks_and_hops(m, P, k, codec, divide):
    rows, ring = drawn(m, P), CodedRing(codec, k, divide)
    assert torch.equal(ring.around(rows), looped(ring, rows))


@pytest.mark.parametrize("divide", DIVIDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_members_of_a_ring_may_weigh_differently(divide, dtype):
    rows, weights, ring = (
        drawn(7, 90, dtype),
        torch.arange(1.0, 8.0),
        CodedRing(CodeBook(), 2, divide),
    )
    assert torch.equal(ring.around(rows, weights), looped(ring, rows, weights))


@pytest.mark.parametrize(("at_once", "added"), [(1, 1), (16, 16), (64, 200), (2**20, 2**20)])
def test_neither_workers_nor_how_much_they_take_at_once_change_a_bit(at_once, added, monkeypatch):
    rows, weights = drawn(30, 777), torch.arange(1.0, 31.0)
    for ring in (CodedRing(CodeBook()), CodedRing(Quantize(4), chunks=3)):
        wanted = ring.around(rows, weights)
        with monkeypatch.context() as patch:
            patch.setattr(hops, "_AT_ONCE", at_once)
            patch.setattr(hops, "_ADDED", added)
            for n in (1, 3):
                assert torch.equal(ring.around(rows, weights, Workers(n)), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("m", "P"), [(3, 1000), (40, 999), (100, 50)])
def test_hops_of_a_code_book_are_those_of_its_payloads(m, P, dtype, monkeypatch):
    rows, ring = drawn(m, P, dtype), CodedRing(CodeBook())
    relayed = ring.around(rows)
    monkeypatch.setattr(CodeBook, "relays", lambda self, chunks: False)
    assert torch.equal(ring.around(rows), relayed)


def test_what_is_no_number_stays_in_its_chunk():
    rows, ring = drawn(4, 80), CodedRing(CodeBook())
    whole = ring.around(rows)
    rows[2, 35] = math.nan  # the fourth of eight chunks of ten
    made = ring.around(rows)
    assert made[35].isnan()
    here = slice(30, 40)
    made[here] = whole[here]
    assert torch.equal(made, whole)


def test_rows_may_be_views():
    rows, ring = drawn(6, 200), CodedRing(CodeBook())
    wanted = ring.around(rows[:, 50:170].contiguous())
    assert torch.equal(ring.around(rows[:, 50:170]), wanted)
    assert torch.equal(ring.around(rows.T.contiguous().T[:, 50:170]), wanted)
    same = rows[:1].expand(6, -1)
    assert torch.equal(ring.around(same), ring.around(same.contiguous()))
