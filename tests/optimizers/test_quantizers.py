"""Codecs of few bits against loops over values, their error bounds, and the kit on each."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optimizers.compression import (
    QSGD,
    Blocks,
    Chain,
    CodeBook,
    ErrorFeedback,
    Float4,
    Float8,
    Natural,
    PerTensor,
    Quantiles,
    Quantize,
    Sign,
    TernGrad,
    TopK,
)
from sim.compute.layout import Layout
from sim.payload import Context
from sim.testing import check_compressor

TWO_BITS = CodeBook(4, centred=True)
SPARSE = PerTensor(Chain(Blocks(8), TopK(3, index="packed"), TWO_BITS))
CODECS = [
    Quantize(8),
    Quantize(8, block=64),
    Sign(block=50),
    CodeBook(),
    CodeBook(2),
    CodeBook(256, centred=True),
    TWO_BITS,
    CodeBook(5, sigmas=4.0, centred=True),
    PerTensor(CodeBook(64)),
    Quantiles(),
    PerTensor(Quantiles(16)),
    Float8(),
    Float8("e5m2", block=30),
    PerTensor(Float8()),
    PerTensor(Float8(align=1)),
    Float4(),
    Float4("e3m0", block=None),
    Float4("e2m1", block=16),
    TernGrad(),
    TernGrad(clip=2.5, packing="bits"),
    PerTensor(TernGrad(block=20)),
    QSGD(),
    QSGD(1, bucket=None),
    QSGD(4, bucket=100, shrink=True),
    PerTensor(QSGD(200)),
    Natural(),
    SPARSE,
    Chain(TopK(ratio=0.1), QSGD(4)),
    Chain(TopK(ratio=0.1), Natural()),
    ErrorFeedback(SPARSE),
    ErrorFeedback(SPARSE, decay=0.95),
    ErrorFeedback(Chain(TopK(ratio=0.1), Float4())),
    ErrorFeedback(Float8()),
]


def drawn(n=3, m=1000, dtype=torch.float32):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(0), dtype=dtype)


def encoded(codec, x, recorded=None, nodes=None):
    layout = Layout({"x": tuple(x.shape[1:])})
    nodes = np.arange(len(x)) if nodes is None else nodes
    ctx = Context(layout, 0, nodes, 0, recorded or {})
    return codec.encode(x, codec.init(layout, len(x)), ctx)[0]


def decoded(codec, x, **draws):
    return encoded(codec, x, draws).decode()


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_codec_conforms(codec):
    check_compressor(codec)


@pytest.mark.parametrize(
    ("codec", "nbytes"),
    [
        (Quantize(8), 1000 + 4),
        (Quantize(8, block=256), 1000 + 4 * 4),
        (CodeBook(), 1000 + 1024),
        (CodeBook(256, centred=True), 1000 + 4 * 257),
        (TWO_BITS, 250 + 4 * 5),
        (CodeBook(64), 750 + 4 * 64),
        (CodeBook(3), 200 + 4 * 3),
        (Quantiles(), 1000 + 1024),
        (Float8(), 1000 + 4),
        (Float8(block=250), 4 * (252 + 4)),
        (Float4(), 500 + 4 * 4),
        (Float4("e2m1", block=16), 500 + 63 * 4),
        (Sign(), 125 + 4),
        (Sign(block=300), 125 + 4 * 4),
        (Sign(None), 125),
        (TernGrad(packing="bits"), 250 + 4),
        (TernGrad(), 200 + 4),
        (QSGD(1, bucket=None), math.ceil(1000 * (1 + 1) / 8) + 4),
        (QSGD(3, bucket=None), math.ceil(1000 * (1 + 2) / 8) + 4),
        (QSGD(4, bucket=None), math.ceil(1000 * (1 + 3) / 8) + 4),
        (QSGD(16), math.ceil(1000 * (1 + 5) / 8) + 4 * 2),
        (Natural(), 1125),
        (Chain(TopK(100), TWO_BITS), 100 * 2 + 25 + 4 * 5),
        (Chain(TopK(100, index="packed"), TWO_BITS), 125 + 25 + 4 * 5),
    ],
    ids=repr,
)
def test_bytes_of_a_thousand_values_follow_the_closed_form(codec, nbytes):
    assert codec.nbytes(Layout.flat(1000)) == nbytes


def test_bytes_of_sparse_loco_follow_the_closed_form():
    codec = PerTensor(Chain(Blocks(64), TopK(64, index="packed"), TWO_BITS))
    chunks = 16 * 16
    nbytes = chunks * 64 * (12 + 2) // 8 + 4 * (4 + 1)
    assert codec.nbytes(Layout({"weight": (1024, 1024)})) == nbytes


@given(data=st.data(), codec=st.sampled_from([c for c in CODECS if not isinstance(c, PerTensor)]))
@settings(max_examples=80, deadline=None)
def test_payloads_of_any_values_survive_packing(data, codec):
    shape = st.tuples(st.integers(1, 3), st.integers(1, 20))
    floats = st.floats(-1e6, 1e6, width=32)
    x = torch.from_numpy(data.draw(hnp.arrays(np.float32, shape, elements=floats)))
    payload = encoded(codec, x)
    packed = payload.pack()
    assert payload.sizes == [len(row) for row in packed]
    arrived = payload.unpack_like(packed)
    assert torch.equal(arrived.decode(), payload.decode())
    assert arrived.pack() == packed


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_a_row_of_one_value_or_of_none_but_zeros_can_be_encoded(codec):
    for x in (torch.tensor([[0.3], [-2.0], [0.0]]), torch.zeros(2, 7)):
        made = decoded(codec, x)
        assert made.isfinite().all()
        assert (made[x == 0] == 0).all()


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_a_value_that_is_not_a_number_is_not_hidden(codec):
    x = drawn(2, 200)
    x[1, 7] = math.nan
    made = decoded(codec, x)
    assert not made[1].isfinite().all()
    torch.testing.assert_close(made[0], decoded(codec, x[:1])[0])


# -- code books ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("bins", "centred"), [(256, False), (256, True), (4, True), (7, False)])
def test_a_code_book_is_that_of_a_loop(bins, centred):
    x = drawn(2, 300, torch.float64) + 0.5
    payload = encoded(CodeBook(bins, centred=centred), x)
    for row, codes, table in zip(x.numpy(), payload.body, payload["table"]):
        spread = row - row.mean() if centred else row
        width = 6 * np.sqrt((spread**2).sum() / 299) / bins
        wanted = [min(max(round(v / width + bins // 2), 0), bins - 1) for v in spread]
        assert codes.tolist() == wanted
        members = [spread[codes.numpy() == code] for code in range(bins)]
        means = [inside.mean() if len(inside) else 0.0 for inside in members]
        np.testing.assert_allclose(table, means, atol=1e-6)


@pytest.mark.parametrize("codec", [CodeBook(), TWO_BITS, Quantiles(8)], ids=repr)
def test_what_a_code_book_decodes_has_the_mean_of_what_it_encoded(codec):
    x = drawn() * 3 + 1
    torch.testing.assert_close(decoded(codec, x).mean(1), x.mean(1), rtol=1e-5, atol=1e-6)


ROWS = hnp.arrays(
    np.float32, st.tuples(st.just(2), st.integers(1, 40)), elements=st.floats(-1e3, 1e3, width=32)
)


def squared(x):
    return x.double().square().sum(1)


@given(rows=ROWS, codec=st.sampled_from([CodeBook(), CodeBook(4), TWO_BITS, Quantiles(4)]))
@settings(max_examples=80, deadline=None)
def test_a_code_book_projects_so_it_is_a_contraction(rows, codec):
    x = torch.from_numpy(rows)
    made = decoded(codec, x)
    lost = squared(made.double() - x.double())
    torch.testing.assert_close(squared(made) + lost, squared(x), rtol=1e-4, atol=1e-6)


def test_values_beyond_the_bins_become_the_mean_of_the_outer_one():
    x = torch.zeros(1, 10_000)
    x[0, :2] = torch.tensor([100.0, 50.0])
    assert decoded(CodeBook(4), x)[0, :2].tolist() == [75.0, 75.0]


@pytest.mark.parametrize("bins", [2, 16, 256])
def test_quantiles_are_those_of_numpy(bins):
    x = drawn(2, 999)
    payload = encoded(Quantiles(bins), x)
    for row, codes in zip(x.numpy(), payload.body):
        borders = np.quantile(row, np.linspace(0, 1, bins + 1))[1:-1]
        assert codes.tolist() == np.searchsorted(borders, row).tolist()


# -- floats -------------------------------------------------------------------------------------


def nearest(x, values, key=lambda v: v):
    """The nearest of the magnitudes, with the sign."""
    return [math.copysign(min(values, key=lambda v: abs(key(v) - key(abs(a)))), a) for a in x]


def test_powers_of_two_are_the_nearest_in_logarithm():
    x = drawn(1, 256)
    unit = float(x.abs().max()) / 16
    powers = [2.0**e for e in range(-2, 5)]
    scaled = (x[0] / unit).tolist()
    wanted = [
        0.0 if abs(a) < 2**-2.5 else b for a, b in zip(scaled, nearest(scaled, powers, math.log2))
    ]
    np.testing.assert_allclose(decoded(Float4(), x)[0] / unit, wanted, rtol=1e-6)


@given(rows=ROWS)
@settings(max_examples=40, deadline=None)
def test_powers_of_two_are_off_by_their_ratio_or_too_small_to_be_sent(rows):
    x = torch.from_numpy(rows)
    off = (decoded(Float4(), x) - x).abs()
    smallest = 2**-2.5 / 16 * x.abs().amax(1, keepdim=True)
    assert (off <= torch.maximum(0.41422 * x.abs(), 1.0001 * smallest)).all()


def test_floats_of_two_exponent_bits_are_the_nearest():
    x = drawn(1, 256)
    unit = float(x.abs().max()) / 6
    scaled = (x[0] / unit).tolist()
    wanted = nearest(scaled, [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    np.testing.assert_allclose(decoded(Float4("e2m1"), x)[0] / unit, wanted, rtol=1e-6)


def test_ties_of_four_bits_go_to_the_even_code():
    x = torch.tensor([[6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.75]])
    wanted = [6.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, -1.0]
    assert decoded(Float4("e2m1"), x)[0].tolist() == wanted


@pytest.mark.parametrize(
    ("kind", "mantissa", "least", "top"), [("e4m3", 3, -6, 448.0), ("e5m2", 2, -14, 57344.0)]
)
def test_floats_of_eight_bits_are_the_nearest(kind, mantissa, least, top):
    x = drawn(1, 300, torch.float64)
    scale = float(np.float32(top / x.abs().max()))
    wanted = []
    for value in (x[0] * scale).tolist():
        step = 2.0 ** (max(math.frexp(value)[1] - 1, least) - mantissa)
        wanted.append(min(round(abs(value) / step) * step, top) * math.copysign(1, value))
    np.testing.assert_allclose(decoded(Float8(kind), x)[0] * scale, wanted, rtol=1e-12)


def test_each_row_of_a_matrix_has_its_own_scale_and_padding():
    x = torch.tensor([[[448.0, -224.0, 56.0], [4.48, 2.24, -0.56]]])
    payload = encoded(Float8(), x)
    assert payload["scale"].flatten().tolist() == pytest.approx([1.0, 100.0])
    torch.testing.assert_close(payload.decode(), x)
    assert payload.nbytes == 2 * (4 + 4)
    assert encoded(Float8(align=1), x).nbytes == 2 * (4 + 3)
    assert payload.kept == 1


@pytest.mark.parametrize("codec", [Float8(), Float8("e5m2"), Float4(), Float4("e2m1")], ids=repr)
def test_encoding_what_was_decoded_changes_nothing(codec):
    once = decoded(codec, drawn())
    torch.testing.assert_close(decoded(codec, once), once, rtol=1e-6, atol=0)


# -- signs --------------------------------------------------------------------------------------


def test_signs_of_a_block_have_the_mean_magnitude_of_its_values():
    x = torch.tensor([[1.0, -3.0, 0.0, 5.0, -7.0]])
    assert decoded(Sign(block=2), x).tolist() == [[2.0, -2.0, 2.5, 2.5, -7.0]]


@given(rows=ROWS)
@settings(max_examples=40, deadline=None)
def test_signs_lose_all_but_the_square_of_the_mean_magnitude(rows):
    x = torch.from_numpy(rows)
    lost = squared(decoded(Sign(), x).double() - x.double())
    wanted = squared(x) - x.double().abs().sum(1) ** 2 / x.shape[1]
    torch.testing.assert_close(lost, wanted, rtol=1e-4, atol=1e-3)


# -- rounding at random -------------------------------------------------------------------------


def test_trits_are_drawn_with_the_share_of_the_largest():
    x = torch.tensor([[4.0, -1.0, 1.0, 0.0]])
    for draw, wanted in ((0.2, [4.0, -4.0, 4.0, 0.0]), (0.25, [4.0, 0.0, 0.0, 0.0])):
        assert decoded(TernGrad(), x, terngrad=torch.full((1, 4), draw)).tolist() == [wanted]


def test_what_stands_out_is_clipped_before_trits_are_drawn():
    x = drawn(1, 1000)
    x[0, 0] = 50.0
    scale = encoded(TernGrad(clip=2.5), x)["scale"].item()
    assert scale == pytest.approx(2.5 * x.numpy().std(), rel=1e-5)


def test_levels_are_those_of_a_loop():
    x, s = drawn(1, 100, torch.float64), 3
    draws = torch.rand(1, 100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    norm = math.sqrt(sum(v**2 for v in x[0].tolist()))
    wanted = []
    for value, draw in zip(x[0].tolist(), draws[0].tolist()):
        level = s * abs(value) / norm
        up = draw < level - math.floor(level)
        wanted.append(math.copysign(norm * (math.floor(level) + up) / s, value))
    codec = QSGD(s, bucket=None, norm_dtype="native")
    np.testing.assert_allclose(decoded(codec, x, qsgd=draws)[0], wanted, rtol=1e-12)


def mean_square_error(codec, x, draws=400):
    """Relative to the square of x, over draws."""
    many = x.expand(draws, -1)
    made = encoded(codec, many, nodes=np.arange(draws)).decode()
    return float((made - many).square().sum(1).mean() / x.square().sum())


@pytest.mark.parametrize(("s", "d"), [(1, 64), (4, 64), (4, 512), (16, 512)])
def test_the_variance_of_levels_keeps_its_bound_and_shrinking_makes_a_contraction(s, d):
    x = drawn(1, d)
    bound = min(d / s**2, math.sqrt(d) / s)
    assert mean_square_error(QSGD(s, bucket=None), x) <= bound
    shrunk = mean_square_error(QSGD(s, bucket=None, shrink=True), x)
    assert shrunk <= 1 - 1 / (1 + bound) + 0.01
    assert shrunk < 1


def test_natural_compression_takes_one_of_the_two_powers_around():
    x = torch.tensor([[1.5, -3.0, 8.0, 0.0, 1e-40, 3e38]])
    low, high = (decoded(Natural(), x, natural=torch.full((1, 6), u))[0] for u in (0.9999, 0.0))
    assert low.tolist() == [2.0, -4.0, 8.0, 0.0, 2.0**-126, 2.0**127]
    assert high.tolist() == [1.0, -2.0, 8.0, 0.0, 0.0, 2.0**127]


def test_natural_compression_adds_at_most_an_eighth():
    assert mean_square_error(Natural(), torch.full((1, 50), 4 / 3)) == pytest.approx(1 / 8, rel=0.1)
    assert mean_square_error(Natural(), drawn(1, 500)) < 1 / 8


@pytest.mark.parametrize(
    ("codec", "name"), [(TernGrad(), "terngrad"), (QSGD(), "qsgd"), (Natural(), "natural")]
)
def test_draws_may_be_given_by_name(codec, name):
    x = drawn(2, 60)
    given_draws = torch.rand(2, 60, generator=torch.Generator().manual_seed(5))
    first, again = (decoded(codec, x, **{name: given_draws}) for _ in range(2))
    other = decoded(codec, x, **{name: 1 - given_draws})
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# -- selected, then quantised -------------------------------------------------------------------


def test_what_quantising_loses_of_the_selected_is_fed_back():
    codec, layout = ErrorFeedback(SPARSE), Layout({"w": (16, 8), "b": (5,)})
    x = drawn(3, layout.numel)
    state, sent = codec.init(layout, 3), torch.zeros_like(x)
    for step in range(5):
        payload, state = codec.encode(x, state, Context(layout, step, np.arange(3), 0))
        sent += payload.decode()
        torch.testing.assert_close(sent + state[0], (step + 1) * x)
    exact = payload.unquantised()
    assert not torch.allclose(exact, payload.decode())


def test_statistics_are_of_all_selected_values_of_a_tensor():
    x = drawn(1, 64).reshape(1, 8, 8)
    payload = encoded(Chain(TopK(2), TWO_BITS), x)
    selected = torch.cat([row[row.abs().topk(2).indices] for row in x[0]])
    shift = payload.content.content["shift"].item()
    assert shift == pytest.approx(selected.mean().item(), rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("runs", [1, 3])
def test_the_mean_of_more_rows_than_are_decoded_at_once_is_that_of_all(runs, weighted):
    payload = encoded(Quantize(4, block=64), drawn(240, 10_000))
    weights = torch.linspace(0, 1, 240 // runs) if weighted else None
    rows = payload.decode().unflatten(0, (runs, -1)).double()
    shares = torch.ones(240 // runs) if weights is None else weights
    wanted = torch.einsum("n,rnp->rp", shares.double(), rows) / shares.sum()
    made = payload.codec.aggregate(payload, "all", weights, runs)
    torch.testing.assert_close(made.double(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "build",
    [
        lambda: CodeBook(1),
        lambda: CodeBook(257),
        lambda: CodeBook(sigmas=0),
        lambda: Quantiles(True),
        lambda: Float8("e3m4"),
        lambda: Float8(block=0),
        lambda: Float8(align=0),
        lambda: Float4("e4m3"),
        lambda: Float4(block=1.5),
        lambda: Sign(block=0),
        lambda: TernGrad(clip=-1.0),
        lambda: TernGrad(packing="base3"),
        lambda: QSGD(0),
        lambda: QSGD(bucket=0),
    ],
)
def test_an_impossible_configuration_is_refused(build):
    with pytest.raises(ValueError, match="must"):
        build()


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_of_any_width_are_at_most_half_a_level_off(bits):
    x = drawn()
    off = (decoded(Quantize(bits, block=100), x) - x).abs().unflatten(1, (-1, 100))
    level = x.abs().unflatten(1, (-1, 100)).amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert (off <= 0.5001 * level).all()
