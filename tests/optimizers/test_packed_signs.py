"""Signs packed into bits, against numpy's; and codecs that change rows and states in place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optimizers.compression import (
    DCT,
    Blocks,
    Chain,
    Chunks,
    ErrorFeedback,
    LowRank,
    PerTensor,
    Quantize,
    RandomK,
    Sign,
    Threshold,
    TopK,
    packed_signs,
)
from sim.compute.layout import Layout
from sim.compute.placed import Placed
from sim.payload import Context, Dense, map_state

LAYOUT = Layout({"weight": (24, 10), "conv": (4, 3, 3), "bias": (7,), "gain": ()})
LENGTHS = [1, 7, 8, 31, 32, 33, 100, 4133]
SIZES = [3, 8, 50, 256]


def _rows(n, m, dtype=torch.float32):
    rng = np.random.Generator(np.random.PCG64(m))
    x = torch.from_numpy(rng.standard_normal((n, m))).to(dtype)
    x[0, 0], x[-1, -1] = 0.0, -0.0
    return x


def _by_numpy(x):
    return torch.from_numpy(np.packbits((x < 0).numpy(), axis=1, bitorder="little"))


def _scaled(x, scale, size):
    """Plus or minus the scale of its group, value by value."""
    signs = torch.where(x < 0, -1.0, 1.0).to(scale.dtype)
    return signs * scale.repeat_interleave(size, 1)[:, : x.shape[1]]


@pytest.mark.parametrize("m", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bits_are_those_of_numpy(m, dtype):
    x = _rows(3, m, dtype)
    assert torch.equal(packed_signs.pack(x), _by_numpy(x.float()))


def test_what_is_not_a_number_counts_as_positive():
    x = torch.tensor([[torch.nan, -torch.nan, -torch.inf, torch.inf] * 10])
    assert packed_signs.pack(x).tolist() == [[0b01000100] * 5]


@pytest.mark.parametrize("m", LENGTHS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_signs_times_scales_are_added_where_rows_lie(m, size, dtype):
    x, size = _rows(3, m, dtype), min(size, m)
    scale = torch.arange(1.0, 1 + 3 * -(-m // size)).reshape(3, -1).to(dtype)
    memory, at = torch.ones(5, m, dtype=dtype), np.array([4, 0, 3])
    packed_signs.add(_by_numpy(x.float()), scale, size, Placed(memory, at), 0.5)
    assert torch.equal(memory[at], 1 + 0.5 * _scaled(x, scale, size))
    assert torch.equal(memory[[1, 2]], torch.ones(2, m, dtype=dtype))


@pytest.mark.parametrize("m", LENGTHS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_of_each_run_are_those_of_its_rows(m, size, dtype):
    x, size = _rows(6, m, dtype), min(size, m)
    scale = torch.arange(1.0, 1 + 6 * -(-m // size)).reshape(6, -1).to(dtype)
    total = packed_signs.total(_by_numpy(x.float()), scale, size, m, runs=2)
    rows = _scaled(x, scale, size)
    wanted = torch.stack([rows[:3].double().sum(0), rows[3:].double().sum(0)])
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(total.double(), wanted, rtol=tolerance, atol=1e-3)


@pytest.mark.parametrize("m", LENGTHS)
@pytest.mark.parametrize("size", SIZES)
def test_magnitudes_are_averaged_group_by_group(m, size):
    x, size = _rows(3, m), min(size, m)
    wanted = torch.stack([g.double().abs().mean(1) for g in x.split(size, dim=1)], 1)
    torch.testing.assert_close(packed_signs.mean_magnitudes(x, size).double(), wanted)
    by_torch = packed_signs.mean_magnitudes(x.bfloat16(), size)
    torch.testing.assert_close(by_torch.double(), wanted, rtol=0.02, atol=0.02)


def test_the_mean_of_many_magnitudes_is_not_lost_in_rounding():
    x = torch.full((1, 3_000_001), -0.1)
    assert packed_signs.mean_magnitudes(x, x.shape[1]).item() == pytest.approx(0.1, rel=1e-6)


def test_bits_take_a_thirty_second_of_the_memory():
    x = torch.randn(4, LAYOUT.numel)
    payload, _ = Sign(None).encode(x, None, _context(4))
    assert sum(wire.data.nbytes for wire in payload.wires()) == 4 * -(-LAYOUT.numel // 8)
    assert payload.kept == 1


@pytest.mark.parametrize("codec", [Sign(), Sign(block=50), Sign(None)], ids=repr)
def test_ties_and_weights_of_a_vote(codec):
    x = _rows(4, LAYOUT.numel)
    x[1] = -x[0]
    payload, _ = codec.encode(x, None, _context(4))
    weights = torch.tensor([1.0, 1.0, 0.0, 0.0])
    mean = payload.combine(weights=weights)
    different = x[0] != 0
    assert torch.equal(mean[different], torch.zeros(int(different.sum())))


def test_no_codec_follows_packed_bits():
    with pytest.raises(ValueError, match="last of a Chain"):
        Chain(Sign(), TopK(k=1))


# -- in place --------------------------------------------------------------------------------------

CODECS = [
    Dense("native"),
    Dense("bfloat16"),
    Sign(),
    Sign(block=50),
    TopK(5),
    TopK(5, value_dtype="float16"),
    TopK(5, unit="row"),
    Threshold(1.0),
    Quantize(8),
    RandomK(ratio=0.1, scaled=False),
    Chain(Chunks(50), TopK(5)),
    PerTensor(TopK(3)),
    PerTensor(Sign(), vectors=Dense()),
    PerTensor(Chain(Blocks(8), TopK(3), Quantize(8))),
    PerTensor(Chain(DCT(8), TopK(3), Sign(None))),
    PerTensor(LowRank(1), vectors=Dense()),
    ErrorFeedback(TopK(4), decay=0.9),
]


def _context(n, step=0):
    return Context(LAYOUT, step, np.arange(n), 0)


@pytest.mark.parametrize("at", [[1, 2, 3], [3, 0, 5]], ids=["together", "apart"])
@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_what_is_decoded_is_added_where_rows_lie(codec, at):
    x, memory = torch.randn(3, LAYOUT.numel), torch.randn(6, LAYOUT.numel)
    payload, _ = codec.encode(x, codec.init(LAYOUT, 3), _context(3))
    wanted = memory.clone()
    wanted[at] += -0.5 * payload.decode()
    payload.add_to(Placed(memory, np.array(at)), -0.5)
    torch.testing.assert_close(memory, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("at", [[1, 2, 3], [3, 0, 5]], ids=["together", "apart"])
@pytest.mark.parametrize("codec", CODECS[:-1], ids=repr)
def test_an_error_is_what_was_wanted_less_what_is_decoded(codec, at):
    """Two steps of the formula, of some of six nodes, whose rows lie among those of the others."""
    feedback, error = ErrorFeedback(codec, decay=0.9, scale=0.5), torch.zeros(3, LAYOUT.numel)
    kept = feedback.init(LAYOUT, 6)
    placed = map_state(lambda rows: Placed(rows, np.array(at)), kept)
    inner = codec.init(LAYOUT, 3)
    for step in range(2):
        x = torch.randn(3, LAYOUT.numel)
        before = x.clone()
        payload = feedback.encode_(x, placed, _context(3, step))
        corrected = 0.5 * x + 0.9 * error
        wanted, inner = codec.encode(corrected, inner, _context(3, step))
        torch.testing.assert_close(payload.decode(), wanted.decode(), rtol=1e-5, atol=1e-5)
        error = corrected - wanted.decode()
        torch.testing.assert_close(kept[0][at], error, rtol=1e-5, atol=1e-5)
        assert torch.equal(x, before)
    others = [i for i in range(6) if i not in at]
    assert not kept[0][others].any()
