"""Codecs: bytes, ties, transforms, combinations, feedback; the kit on each of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optimizers import CHOCO, EF21, EFSGD, DeMo, PsycheDeMo, SparseLoCo
from optimizers.compression import (
    DCT,
    Blocks,
    Chain,
    ErrorFeedback,
    PerTensor,
    Quantize,
    RandomBlocks,
    RandomK,
    Sign,
    Threshold,
    TopK,
)
from optimizers.compression.basis import coefficients, halves
from optimizers.compression.transform import block_sides, dct_basis
from sim.compute.layout import Layout
from sim.payload import Context, Dense, Payload
from sim.testing import check_compressor

TESTS = Path(__file__).parent.parent
SQUARE = Layout({"weight": (1024, 1024)})


def encoded(codec, x, layout=None, step=0, seed=0):
    layout = layout or Layout.flat(x[0].numel())
    ctx = Context(layout, step, np.arange(len(x)), seed)
    return codec.encode(x, codec.init(layout, len(x)), ctx)[0]


def drawn_rows(layout, n=3):
    """In float64: what the order of sums does to them, float32 on the wire does not show."""
    return torch.randn(n, layout.numel, generator=torch.Generator().manual_seed(0)).double()


def demo(*stages):
    return PerTensor(Chain(DCT(64), TopK(32), *stages))


CODECS = [
    TopK(k=5),
    TopK(ratio=0.1, index="packed"),
    TopK(k=300),
    PerTensor(TopK(k=3)),
    PerTensor(TopK(k=3, unit="row")),
    RandomK(ratio=0.2),
    RandomK(k=30, scaled=True),
    Threshold(1.0),
    PerTensor(Threshold(1.0)),
    Quantize(8),
    Quantize(4, block=16),
    Quantize(2, stochastic=True),
    PerTensor(Quantize(8, stochastic=True)),
    Sign(),
    Sign(scale=None),
    PerTensor(Sign()),
    DCT(8),
    Blocks(8),
    Chain(Dense()),
    Chain(DCT(8), RandomK(ratio=0.3, scaled=True)),
    Chain(TopK(20), Threshold(1.0)),
    Chain(Chain(DCT(8), TopK(2)), Quantize(8)),
    demo(),
    demo(Sign(scale=None)),
    PerTensor(Chain(Blocks(4), TopK(3), Quantize(8)), dense_below=8),
    ErrorFeedback(TopK(ratio=0.1)),
    ErrorFeedback(demo(Sign()), decay=0.9),
    PerTensor(ErrorFeedback(TopK(2))),
]


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_codec_conforms(codec):
    check_compressor(codec)


FED_BACK = {
    "EF-SGD": lambda codec: EFSGD(compressor=codec),
    "EF21": lambda codec: EF21(compressor=codec),
    "CHOCO": lambda codec: CHOCO(compressor=codec),
    "SparseLoCo": lambda codec: SparseLoCo(compressor=codec),
    "DeMo": lambda codec: DeMo(compressor=codec),
    "Psyche": lambda codec: PsycheDeMo(compressor=codec),
    "ErrorFeedback": ErrorFeedback,
}


@pytest.mark.parametrize("make", FED_BACK.values(), ids=FED_BACK)
def test_who_feeds_back_refuses_feedback_inside_and_codecs_that_scale_up(make):
    """Either diverges on any quadratic: an error grows by P / k - 1, or is added twice."""
    make(PerTensor(RandomK(ratio=0.1)))
    with pytest.raises(ValueError, match=r"fed back here already, .* give the codec .* TopK"):
        make(PerTensor(ErrorFeedback(TopK(3))))
    for scaled in (RandomK(3, scaled=True), RandomBlocks(0.1, scaled=True)):
        with pytest.raises(ValueError, match=r"grow where it is scaled up; choose scaled=false"):
            make(Chain(Blocks(8), scaled))


def test_a_codec_from_an_outside_package_conforms(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS / "plugins" / "ternary_lab"))
    from ternary_lab import Ternary

    check_compressor(Ternary())
    assert Ternary().nbytes(Layout.flat(1001)) == 201 + 4


@pytest.mark.parametrize(
    ("codec", "nbytes"),
    [
        (demo(), 8192 * (2 + 4)),
        (demo(Sign(scale=None)), 8192 * 2 + 8192 // 8),
        (demo(Quantize(8)), 8192 * (2 + 1) + 4),
        (PerTensor(Chain(DCT(64), TopK(32, index="packed"))), 8192 * 4 + 8192 * 12 // 8),
        (TopK(ratio=0.01), 10486 * (4 + 4)),
        (TopK(ratio=0.01, value_dtype="bfloat16"), 10486 * (2 + 4)),
        (RandomK(ratio=0.01), 10486 * 4 + 8),
        (Quantize(8), 2**20 + 4),
        (Quantize(4, block=4096), 2**19 + 256 * 4),
        (Quantize(2, block=1000), 2**18 + 1049 * 4),
        (Sign(), 2**17 + 4),
        (Dense("bfloat16"), 2**21),
    ],
)
def test_bytes_of_a_square_matrix_follow_the_closed_form(codec, nbytes):
    assert codec.nbytes(SQUARE) == nbytes


def test_the_size_of_a_model_too_large_to_hold_is_found():
    layout = Layout({f"block{i}": (16384, 53248) for i in range(126)})
    assert demo().nbytes(layout) == 126 * 256 * 832 * 32 * 6


@given(
    data=st.data(),
    codec=st.sampled_from([TopK(3), Threshold(1.0), Quantize(4, block=3), Sign(), demo()]),
)
@settings(max_examples=60, deadline=None)
def test_payloads_of_any_values_survive_packing(data, codec):
    shape = st.tuples(st.integers(1, 3), st.integers(1, 20))
    floats = st.floats(-1e6, 1e6, width=32)
    payload = encoded(
        codec, torch.from_numpy(data.draw(hnp.arrays(np.float32, shape, elements=floats)))
    )
    packed = payload.pack()
    assert payload.sizes == [len(row) for row in packed]
    arrived = payload.unpack_like(packed)
    assert torch.equal(arrived.decode(), payload.decode())
    assert arrived.pack() == packed


# -- sparse codecs ------------------------------------------------------------------------------


def first_largest(row, k):
    """The loop version: by magnitude, then by index."""
    return sorted(sorted(range(len(row)), key=lambda i: (-abs(row[i]), i))[:k])


@given(
    rows=hnp.arrays(np.int64, (3, 17), elements=st.integers(-3, 3)),
    k=st.integers(1, 17),
)
@settings(max_examples=80, deadline=None)
def test_top_k_breaks_ties_by_the_lowest_index(rows, k):
    payload = encoded(TopK(k), torch.from_numpy(rows).float())
    assert payload["indices"].tolist() == [first_largest(row, k) for row in rows.tolist()]


def test_top_k_sends_a_nan_beside_rows_with_ties():
    x = torch.tensor([[1.0, float("nan"), 3.0, 2.0], [5.0, 5.0, 5.0, 1.0]])
    assert encoded(TopK(2), x)["indices"].tolist() == [[1, 2], [0, 1]]


@pytest.mark.parametrize(("size", "width"), [(256, 1), (257, 2), (65536, 2), (65537, 4)])
def test_an_index_takes_the_fewest_bytes_that_hold_it(size, width):
    assert TopK(k=1).nbytes(Layout.flat(size)) == 4 + width


def test_top_k_selects_along_the_last_axis_or_in_the_whole_row():
    x = torch.tensor([[[5.0, 4.0], [1.0, 2.0]]])
    assert encoded(TopK(1), x).decode().tolist() == [[[5.0, 0.0], [0.0, 2.0]]]
    assert encoded(TopK(2, unit="row"), x).decode().tolist() == [[[5.0, 4.0], [0.0, 0.0]]]


def test_senders_are_counted_per_coefficient():
    x = torch.tensor([[9.0, 1.0, 0.0], [7.0, 0.0, 1.0], [0.0, 6.0, 1.0]])
    payload = encoded(TopK(1), x)
    assert payload.combine("senders").tolist() == [8.0, 6.0, 0.0]
    assert payload.combine("all").tolist() == pytest.approx([16 / 3, 2.0, 0.0])


@pytest.mark.parametrize("codec", [TopK(4), Threshold(1.2), Chain(DCT(4), TopK(2))], ids=repr)
@pytest.mark.parametrize("over", ["all", "senders"])
def test_the_weighted_mean_equals_a_loop_over_rows(codec, over):
    x = torch.randn(6, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.tensor([1.0, 2.0, 0.0, 3.0, 1.0, 0.5], dtype=torch.float64)
    payload = encoded(codec, x)
    sparse = payload.content if isinstance(codec, Chain) else payload
    sparse = sparse.content if isinstance(codec, Chain) else sparse
    dense = sparse.decode().flatten(1)
    total, share = torch.zeros(24).double(), torch.zeros(24).double()
    for row, weight in zip(dense, weights):
        total += weight * row
        share += weight * (row != 0)
    mean = total / (weights.sum() if over == "all" else share.clamp(min=1e-300))
    if isinstance(codec, Chain):
        mean = (mean.reshape(6, 4) @ dct_basis(4, torch.float64, torch.device("cpu"))).flatten()
    torch.testing.assert_close(payload.combine(over, weights), mean)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.5, 2.0])])
def test_each_run_of_rows_has_its_own_mean(codec, weights):
    layout = Layout({"a": (6, 4), "b": (4,), "c": (6, 4)})
    x = torch.randn(6, layout.numel, generator=torch.Generator().manual_seed(0))
    payload = encoded(codec, x, layout)
    runs = [payload.rows([0, 1, 2]), payload.rows([3, 4, 5])]
    for over in ("all", "senders"):
        apart = torch.stack([run.combine(over, weights) for run in runs])
        together = codec.aggregate(payload, over, weights, runs=2)
        torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)


def test_sums_run_in_the_order_of_the_rows():
    x = torch.randn(50, 400, generator=torch.Generator().manual_seed(1))
    payload = encoded(TopK(100), x)
    total = torch.zeros(400)
    for row in payload.decode():
        total += row
    assert torch.equal(payload.combine(), total / 50)


def test_random_k_draws_one_support_for_all_nodes_and_another_each_step():
    x = torch.ones(3, 100)
    first, second = (encoded(RandomK(k=10), x, step=s).decode() for s in (0, 1))
    assert (first == first[0]).all()
    assert first[0].count_nonzero() == 10
    assert not torch.equal(first, second)


def test_threshold_keeps_what_stands_out_of_each_row():
    x = torch.tensor([[3.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, -1.0]])
    payload = encoded(Threshold(1.0), x)
    assert torch.equal(payload.decode(), x)
    assert payload.sizes == [4 + 5, 4 + 4 * 5]
    assert payload.kept == (1 + 4) / 2 / 4


def test_the_size_of_threshold_is_not_known_without_values():
    with pytest.raises(ValueError, match="depends on the values"):
        Threshold().nbytes(SQUARE)


# -- codes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "limit"), [(2, 1), (4, 7), (8, 127)])
def test_quantised_values_are_at_most_half_a_level_off(bits, limit):
    x = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    error = (encoded(Quantize(bits), x).decode() - x).abs().amax(1)
    assert (error <= x.abs().amax(1) / limit * 0.5001).all()


def test_blocks_of_a_row_have_their_own_scale():
    x = torch.tensor([[100.0, 50.0, 1.0, 0.5, 0.25]])
    payload = encoded(Quantize(8, block=2), x)
    assert payload["scale"].flatten().tolist() == pytest.approx([100 / 127, 1 / 127, 0.25 / 127])
    torch.testing.assert_close(payload.decode(), x, rtol=0.01, atol=0)


def test_bare_signs_call_zero_positive():
    assert encoded(Sign(None), torch.tensor([[-2.0, 0.0, 3.0]])).decode().tolist() == [[-1, 1, 1]]


# -- transforms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_the_cosine_basis_is_that_of_scipy(n):
    fft = pytest.importorskip("scipy.fft")
    basis = dct_basis(n, torch.float64, torch.device("cpu"))
    np.testing.assert_allclose(basis.numpy(), fft.dct(np.eye(n), norm="ortho", axis=0), atol=1e-13)


def test_a_convolution_is_seen_as_a_matrix():
    assert block_sides((6, 4, 3, 3), 8) == (6, 6)
    x = torch.randn(2, 6, 4, 3, 3)
    torch.testing.assert_close(encoded(DCT(8), x).body, encoded(DCT(8), x.flatten(2)).body)


def test_a_constant_block_has_one_coefficient():
    body = encoded(DCT(4), torch.full((1, 4, 8), 2.0)).body
    assert body.shape == (1, 2, 16)
    torch.testing.assert_close(body[0, :, 0], torch.tensor([8.0, 8.0]))
    torch.testing.assert_close(body[0, :, 1:], torch.zeros(2, 15), atol=1e-6, rtol=0)


# -- combinations -------------------------------------------------------------------------------


def test_a_chain_of_one_is_that_codec():
    x = torch.randn(3, 50)
    assert encoded(Chain(Quantize(8)), x).pack() == encoded(Quantize(8), x).pack()


def test_a_chain_adds_up_its_sides_and_its_last_body():
    payload = encoded(Chain(TopK(10), Quantize(4)), torch.randn(2, 300))
    assert payload.nbytes == 10 * 2 + 4 + 5


def test_a_chain_without_quantising_stages_has_nothing_to_undo():
    payload = encoded(Chain(DCT(8), TopK(3)), torch.randn(2, 40))
    assert torch.equal(payload.unquantised(), payload.decode())


def test_the_values_before_quantising_are_known_to_the_sender_only():
    layout = Layout({"w": (8, 8), "b": (5,)})
    x = torch.randn(3, layout.numel, generator=torch.Generator().manual_seed(0))
    signs = PerTensor(Chain(DCT(8), TopK(4), Sign(None)))
    payload = encoded(signs, x, layout)
    exact = encoded(PerTensor(Chain(DCT(8), TopK(4))), x, layout).decode()
    assert torch.equal(payload.unquantised(), exact)
    assert torch.equal(payload.rows([2, 1]).unquantised(), exact[[2, 1]])
    halves = Payload.cat([payload.rows([0]), payload.rows([1, 2])])
    assert torch.equal(halves.unquantised(), exact)
    arrived = payload.unpack_like(payload.pack())
    assert torch.equal(arrived.unquantised(), payload.decode())
    assert not torch.allclose(payload.decode(), exact)


def test_a_chain_refuses_stages_in_an_impossible_order():
    for first in (PerTensor(TopK(1)), Threshold()):
        with pytest.raises(ValueError, match="last of a Chain"):
            Chain(first, Quantize(8))
    with pytest.raises(ValueError, match="first of a Chain"):
        Chain(TopK(1), ErrorFeedback(Quantize(8))).init(Layout.flat(4), 1)


def test_a_chain_has_the_flags_that_all_of_its_stages_have():
    chain = Chain(DCT(8), RandomK(k=3))
    assert (chain.summable, chain.linear, chain.deterministic) == (True, True, False)
    assert not Chain(DCT(8), TopK(3)).summable


def test_per_tensor_encodes_each_tensor_in_its_shape():
    layout = Layout({"w": (4, 6), "b": (3,)})
    x = torch.randn(2, layout.numel)
    views = layout.views(x)
    alone = [encoded(TopK(2), views[name]).decode().flatten(1) for name in layout.shapes]
    assert torch.equal(encoded(PerTensor(TopK(2)), x, layout).decode(), torch.cat(alone, 1))


@pytest.mark.parametrize("inner", [TopK(2), Sign(), Chain(DCT(8), TopK(3)), Threshold(1.0)])
def test_per_tensor_makes_of_tensors_of_one_shape_what_each_would_be_alone(inner):
    layout = Layout({"a": (6, 4), "b": (4,), "c": (6, 4), "d": (), "e": (4,)})
    x = drawn_rows(layout)
    payload = encoded(PerTensor(inner), x, layout)
    alone = [encoded(inner, v.reshape(3, *v.shape[1:] or (1,))) for v in layout.views(x).values()]
    assert payload.pack() == [b"".join(rows) for rows in zip(*(p.pack() for p in alone))]
    decoded = torch.cat([p.decode().flatten(1) for p in alone], 1)
    torch.testing.assert_close(payload.decode(), decoded)
    means = torch.cat([p.combine("senders").flatten() for p in alone])
    torch.testing.assert_close(payload.combine("senders"), means)


def test_per_tensor_sends_small_tensors_whole():
    layout = Layout({"w": (4, 6), "b": (3,)})
    assert PerTensor(TopK(1), dense_below=4).nbytes(layout) == 4 * 5 + 3 * 4


def test_per_tensor_refuses_rows_of_another_length():
    with pytest.raises(ValueError, match="27"):
        encoded(PerTensor(TopK(1)), torch.zeros(2, 24), Layout({"w": (4, 6), "b": (3,)}))


def test_tensors_of_one_shape_draw_different_supports():
    layout = Layout({"a": (100,), "b": (100,)})
    decoded = encoded(PerTensor(RandomK(k=10)), torch.ones(1, 200), layout).decode()[0]
    assert not torch.equal(decoded[:100], decoded[100:])


def test_what_a_codec_keeps_is_counted():
    layout = Layout({"w": (64, 64), "b": (64,)})
    payload = encoded(demo(Sign(None)), torch.randn(2, layout.numel), layout)
    assert payload.kept == 64 / layout.numel


# -- halves -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "codec",
    [
        demo(),
        demo(Sign(None)),
        PerTensor(Chain(Blocks(4), TopK(3))),
        PerTensor(Chain(DCT(8), RandomK(ratio=0.2))),
        PerTensor(Chain(DCT(8), Threshold(1.0))),
        PerTensor(Chain(DCT(8), TopK(3)), dense_below=8),
        ErrorFeedback(TopK(4)),
    ],
    ids=repr,
)
def test_a_codec_is_its_halves_one_after_the_other(codec):
    layout = Layout({"w": (24, 10), "b": (7,), "v": (24, 10), "gain": ()})
    x = drawn_rows(layout)
    transform, select = halves(codec)
    turned = coefficients(encoded(transform, x, layout))
    payload, whole = encoded(select, turned, layout), encoded(codec, x, layout)
    assert payload.pack() == whole.pack()
    assert torch.equal(payload.unquantised(), whole.unquantised())
    assert torch.equal(payload.combine("senders"), whole.combine("senders"))


def test_the_second_half_decodes_to_coefficients():
    layout = Layout({"w": (8, 8), "b": (5,)})
    x = torch.randn(3, layout.numel, generator=torch.Generator().manual_seed(0))
    transform, select = halves(PerTensor(Chain(DCT(8), TopK(4), Sign(None))))
    turned = coefficients(encoded(transform, x, layout))
    payload = encoded(select, turned, layout)
    exact = select.decode(payload.dequantised())
    sent = exact != 0
    assert sent.sum(1).tolist() == [4 + 4] * 3
    assert torch.equal(exact[sent], turned[sent])
    assert torch.equal(select.decode(payload)[sent], turned[sent].sign())


@pytest.mark.parametrize("codec", [TopK(3), PerTensor(Chain(Blocks(1), TopK(3)))], ids=repr)
def test_coefficients_may_be_written_to(codec):
    x = torch.ones(2, 6)
    coefficients(encoded(halves(codec)[0], x)).zero_()
    assert torch.equal(x, torch.ones(2, 6))


def test_only_a_transform_of_each_tensor_is_taken_apart():
    for codec in (TopK(3), PerTensor(TopK(3)), Chain(DCT(8), TopK(3)), PerTensor(Chain(DCT(8)))):
        assert halves(codec) == (Dense("native"), codec)


# -- error feedback -----------------------------------------------------------------------------


def test_error_feedback_sends_everything_in_the_end():
    codec, layout = ErrorFeedback(TopK(4)), Layout.flat(16)
    x = torch.randn(3, 16)
    state, sent = codec.init(layout, 3), torch.zeros(3, 16)
    for step in range(4):
        ctx = Context(layout, step, np.arange(3), 0)
        payload, state = codec.encode(x if step == 0 else torch.zeros_like(x), state, ctx)
        sent += payload.decode()
    assert torch.equal(sent, x)


def test_the_residual_decays():
    codec = ErrorFeedback(TopK(1), decay=0.5)
    ctx = Context(Layout.flat(2), 0, np.zeros(1, int), 0)
    _, state = codec.encode(torch.tensor([[4.0, 2.0]]), codec.init(ctx.layout, 1), ctx)
    payload, _ = codec.encode(torch.zeros(1, 2), state, ctx)
    assert payload.decode().tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(
    "build",
    [
        lambda: TopK(),
        lambda: TopK(k=3, ratio=0.1),
        lambda: TopK(k=0),
        lambda: RandomK(ratio=1.5),
        lambda: TopK(k=3, unit="tensor"),
        lambda: Quantize(bits=1),
        lambda: Quantize(block=0),
        lambda: Sign(scale="median"),
        lambda: Threshold(float("nan")),
        lambda: DCT(0),
        lambda: Chain(),
        lambda: Chain({"chunk": 64}),
        lambda: ErrorFeedback(Sign(), decay=1.1),
        lambda: Dense("int8"),
    ],
)
def test_an_impossible_configuration_is_refused(build):
    with pytest.raises(ValueError, match=r"must|give"):
        build()
