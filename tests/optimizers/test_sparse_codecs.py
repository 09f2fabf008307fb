"""Sparse codecs: how indices are written, shared draws, rules per tensor, feedback, low rank."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optimizers.compression import (
    DCT,
    Blocks,
    Chain,
    Chunks,
    ErrorFeedback,
    LowRank,
    PerTensor,
    Quantize,
    RandomBlocks,
    RandomK,
    SharedMask,
    Sign,
    TopK,
)
from optimizers.compression.shared import permuted
from optimizers.compression.sparsify import INDEXES
from sim.compute.layout import Layout
from sim.packing import Bitmap
from sim.payload import Context, Dense
from sim.testing import check_compressor

FORMATS = {"uint8": 8, "12bit": 12, "uint16": 16, "uint32": 32, "int64": 64}
SHARED = [
    RandomK(ratio=0.2),
    RandomBlocks(0.2, block=8),
    SharedMask(0.2),
    SharedMask(0.2, "shuffled"),
    SharedMask(0.2, "partition"),
]
CODECS = [
    *(TopK(5, index=index) for index in INDEXES if index != "uint8"),
    PerTensor(TopK(3, index="uint8")),
    PerTensor(TopK(ratio=0.3, unit="row", index="bitmap")),
    TopK(ratio=0.3, index="auto"),
    TopK(300, index="bitmap"),
    Chunks(7),
    Chain(Chunks(50), TopK(5, index="auto")),
    Chain(Chunks(50), TopK(5), Quantize(8)),
    *SHARED,
    RandomBlocks(0.2, block=16, scaled=True),
    RandomBlocks(1.0, block=1000),
    SharedMask(0.1, faithful=True),
    SharedMask(0.1, "partition", faithful=True),
    PerTensor(SharedMask(0.2)),
    PerTensor(SharedMask(0.2, "shuffled", value_dtype="bfloat16")),
    Chain(DCT(8), SharedMask(0.3)),
    ErrorFeedback(SharedMask(0.3, "shuffled")),
    ErrorFeedback(TopK(3), decay=0.9, scale=0.5),
    PerTensor(TopK(3), vectors=Dense()),
    PerTensor(ErrorFeedback(TopK(3)), vectors=Dense("bfloat16")),
    PerTensor(TopK(3), 3, Sign(), {"we*": SharedMask(0.3, "shuffled"), "c*": RandomK(ratio=0.5)}),
    PerTensor(LowRank(2)),
    PerTensor(LowRank(2, iterations=2, warm=False)),
    PerTensor(LowRank(100)),
    PerTensor(Chain(LowRank(3), Quantize(8))),
    PerTensor(ErrorFeedback(LowRank(2)), vectors=Dense()),
    ErrorFeedback(PerTensor(LowRank(1))),
]


def encoded(codec, x, layout=None, step=0, seed=0):
    layout = layout or Layout.flat(x[0].numel())
    ctx = Context(layout, step, np.arange(len(x)), seed)
    return codec.encode(x, codec.init(layout, len(x)), ctx)[0]


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_codec_conforms(codec):
    check_compressor(codec)


# -- how indices are written --------------------------------------------------------------------

shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 40))


@given(st.data(), shapes, st.integers(1, 45), st.sampled_from(INDEXES), st.booleans())
@settings(max_examples=150, deadline=None)
def test_what_is_packed_has_the_bytes_that_were_told_and_comes_back(data, shape, k, index, row):
    x = torch.from_numpy(
        data.draw(hnp.arrays(np.float32, shape, elements=st.floats(-9, 9, width=32)))
    )
    codec = TopK(k, unit="row" if row else "last", index=index)
    payload = encoded(codec, x, Layout({"x": shape[1:]}))
    packed = payload.pack()
    assert payload.sizes == [len(one) for one in packed]
    units, e = (1, shape[1] * shape[2]) if row else shape[1:]
    k = min(k, e)
    bits = FORMATS.get(index) or 8 * next(w for w in (1, 2, 4) if e <= 256**w)
    sizes = {
        "packed": math.ceil(units * k * max(1, math.ceil(math.log2(e))) / 8),
        "bitmap": math.ceil(units * e / 8),
    }
    sizes["auto"] = min(sizes.values())
    wanted = sizes.get(index, math.ceil(units * k * bits / 8))
    assert payload.nbytes == 4 * units * k + wanted
    arrived = payload.unpack_like(packed)
    assert torch.equal(arrived["indices"], payload["indices"])
    assert torch.equal(arrived.decode(), payload.decode())
    assert bool((payload["indices"].diff(dim=-1) > 0).all())


@pytest.mark.parametrize(
    ("k", "e", "index", "nbytes"),
    [
        (64, 4096, "bytes", 128),
        (64, 4096, "packed", 96),
        (64, 4096, "12bit", 96),
        (64, 4096, "bitmap", 512),
        (64, 4096, "auto", 96),
        (400, 4096, "auto", 512),
        (10, 200, "uint8", 10),
        (10, 200, "auto", 10),
        (10, 200, "12bit", 15),
        (30, 200, "auto", 25),
        (10, 70_000, "bytes", 40),
        (10, 70_000, "auto", 22),
        (10, 70_000, "int64", 80),
    ],
)
def test_indices_take_the_bytes_of_the_closed_form(k, e, index, nbytes):
    assert TopK(k, index=index).nbytes(Layout.flat(e)) == 4 * k + nbytes


def test_twelve_bits_are_laid_as_in_the_authors_code():
    with np.load(Path(__file__).parents[1] / "golden" / "compressors_reference.npz") as golden:
        index, packed = golden["idx12"].astype(np.int64), golden["idx12_packed"]
    for row, wanted in zip(index.reshape(-1, index.shape[-1]), packed.reshape(len(index), -1)):
        payload = TopK(len(row), index="12bit").payload(
            (4096,), torch.zeros(1, len(row)), torch.from_numpy(row)[None]
        )
        assert payload.pack()[0][: len(wanted)] == wanted.tobytes()


@pytest.mark.parametrize(("index", "e"), [("uint8", 257), ("12bit", 4097), ("uint16", 65_537)])
def test_a_unit_that_is_too_long_for_a_format_is_refused_with_one_that_holds_it(index, e):
    with pytest.raises(ValueError, match=rf"index='{index}'.*{e} values; choose 'uint(16|32)'"):
        TopK(1, index=index).nbytes(Layout.flat(e))
    with pytest.raises(ValueError, match="try 'packed'"):
        TopK(1, index="packde")


def test_a_bitmap_holds_ascending_numbers_only():
    with pytest.raises(ValueError, match="ascending"):
        Bitmap(2, 9).pack(torch.tensor([3, 1]))
    with pytest.raises(ValueError, match="below 9"):
        Bitmap(2, 9).pack(torch.tensor([3, 9]))


@given(st.data(), st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=80, deadline=None)
def test_top_k_loses_at_most_what_its_share_allows(data, n, k):
    x = data.draw(hnp.arrays(np.float64, (2, n), elements=st.floats(-1e3, 1e3)))
    x = torch.from_numpy(x)
    lost = x - encoded(TopK(k, value_dtype="native"), x).decode()
    bound = (1 - min(k, n) / n) * x.square().sum(1)
    assert (lost.square().sum(1) <= bound * (1 + 1e-12)).all()


def test_selections_of_one_size_differ_in_what_competes():
    layout = Layout({"a": (2, 4), "b": (4,)})
    row = torch.tensor([[9.0, 8, 7, 6, 1, 2, 3, 4, 0.1, 0.2, 0.3, 0.4]])
    kept = {
        "all": [9, 8, 7],
        "tensor": [9, 8, 0.3, 0.4],
        "rows": [9, 4, 0.4],
        "chunks": [9, 8, 3, 4],
    }
    codecs = {
        "all": TopK(3),
        "tensor": PerTensor(TopK(2, unit="row")),
        "rows": PerTensor(TopK(1)),
        "chunks": Chain(Chunks(6), TopK(2)),
    }
    for name, codec in codecs.items():
        decoded = encoded(codec, row, layout).decode()
        assert sorted(decoded[decoded != 0].tolist()) == pytest.approx(sorted(kept[name])), name


def test_chunks_are_cut_in_order_and_the_last_is_padded():
    payload = encoded(Chunks(4), torch.arange(1.0, 11)[None])
    assert payload.body.tolist() == [[[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 0]]]
    assert encoded(Blocks(4), torch.arange(1.0, 11)[None]).body.shape == (1, 5, 2)


# -- what all nodes draw alike ------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(-(2**40), 2**40))
@settings(max_examples=60, deadline=None)
def test_a_random_order_has_every_number_once(size, seed):
    order = permuted(np.arange(size), size, seed)
    assert sorted(order.tolist()) == list(range(size))


@pytest.mark.parametrize("codec", SHARED, ids=repr)
def test_all_nodes_send_the_same_and_the_mask_says_what(codec):
    x, layout = torch.ones(4, 500), Layout.flat(500)
    for step in range(3):
        ctx = Context(layout, step, np.arange(4), 7)
        sent = codec.encode(x, None, ctx)[0].decode() != 0
        assert torch.equal(sent, codec.mask(500, ctx).expand(4, -1))


@pytest.mark.parametrize("codec", SHARED, ids=repr)
def test_rows_of_other_steps_have_supports_of_their_own(codec):
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    layout, steps = Layout.flat(200), np.array([0, 5, 9])
    together, _ = codec.encode(x, None, Context(layout, steps, np.arange(3), 7))
    apart = [
        codec.encode(x[i : i + 1], None, Context(layout, int(step), np.array([i]), 7))[0]
        for i, step in enumerate(steps)
    ]
    assert together.sizes == [one.sizes[0] for one in apart]
    rows = torch.cat([one.decode() for one in apart])
    assert torch.equal(together.decode(), rows)
    torch.testing.assert_close(together.combine(), rows.mean(0))
    assert together.pack() == [one.pack()[0] for one in apart]


@pytest.mark.parametrize("select", ["shuffled", "partition"])
@pytest.mark.parametrize(("size", "p"), [(1000, 0.05), (997, 0.05), (7, 0.3), (3, 0.001)])
def test_each_coefficient_has_its_turn_in_time(select, size, p):
    codec, layout = SharedMask(p, select), Layout.flat(size)
    turns = math.ceil(size / max(1, round(p * size)))
    masks = torch.stack(
        [codec.mask(size, Context(layout, t, np.zeros(1), 0)) for t in range(3 * turns)]
    )
    assert (masks.sum(1) == max(1, round(p * size))).all()
    assert masks.sum(0).min() >= 3
    assert masks.sum(0).max() <= 6
    for cycle in masks.split(turns):
        assert cycle.any(0).all()
    again = torch.equal(masks[:turns], masks[turns : 2 * turns])
    assert again == (select == "shuffled" and size in (1000, 3)) or size < 8


def test_bernoulli_masks_have_the_probability_of_each():
    codec, layout = SharedMask(0.3), Layout.flat(400)
    masks = torch.stack(
        [codec.mask(400, Context(layout, t, np.zeros(1), 0)) for t in range(600)]
    ).double()
    sigma = math.sqrt(0.3 * 0.7 / 600)
    assert (masks.mean(0) - 0.3).abs().max() < 5 * sigma
    assert masks.mean() == pytest.approx(0.3, abs=5 * sigma / 20)
    assert masks.sum(1).std() == pytest.approx(math.sqrt(400 * 0.3 * 0.7), rel=0.1)


def test_bytes_of_masks_are_values_and_a_seed_or_faithfully_a_byte_for_each_element():
    layout, x = Layout.flat(10_000), torch.ones(2, 10_000)
    assert SharedMask(0.005, "shuffled").nbytes(layout) == 4 * 50 + 8
    assert SharedMask(0.005, "partition", faithful=True).nbytes(layout) == 4 * 50 + 8 + 10_000
    payload = encoded(SharedMask(0.005), x)
    sent = int(payload["count"][0])
    assert payload.sizes == [4 * sent + 8 + 4] * 2
    with pytest.raises(ValueError, match="depends on the values"):
        SharedMask(0.005).nbytes(layout)


@pytest.mark.parametrize("codec", [RandomK(ratio=0.1), RandomBlocks(0.1, block=8)], ids=repr)
def test_every_coefficient_is_drawn_as_often(codec):
    layout = Layout.flat(203)
    masks = [codec.mask(203, Context(layout, t, np.zeros(1), 0)) for t in range(2000)]
    share = torch.stack(masks).double().mean(0)
    wanted = codec.amount(203) / 203
    assert (share - wanted).abs().max() < 5 * math.sqrt(wanted / 2000)


def test_random_blocks_are_neighbours_on_a_circle():
    codec = RandomBlocks(0.2, block=8)
    for seed in range(20):
        mask = codec.mask(203, Context(Layout.flat(203), 0, np.zeros(1), seed))
        edges = int((mask != mask.roll(1)).sum()) // 2
        assert int(mask.sum()) == 40
        assert 1 <= edges <= 5


@pytest.mark.parametrize(
    "codec",
    [RandomK(ratio=0.25, scaled=True), RandomBlocks(0.25, block=4, scaled=True)],
    ids=repr,
)
def test_the_mean_over_seeds_is_the_input(codec):
    x = torch.randn(1, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = torch.cat([encoded(codec, x, seed=seed).decode() for seed in range(3000)])
    assert ((drawn.mean(0) - x[0]).abs() <= 5 * drawn.std(0) / math.sqrt(3000)).all()


# -- feedback -----------------------------------------------------------------------------------

LOSSY = [
    TopK(2, value_dtype="native"),
    RandomK(k=3, value_dtype="native"),
    RandomBlocks(0.3, block=2, value_dtype="native"),
    SharedMask(0.3, value_dtype="native"),
    Sign(),
    Quantize(3),
]


@given(
    inputs=hnp.arrays(np.float64, (5, 2, 9), elements=st.floats(-100, 100)),
    codec=st.sampled_from(LOSSY),
    decay=st.floats(0, 1),
    scale=st.floats(0.01, 2),
)
@settings(max_examples=60, deadline=None)
def test_feedback_is_its_recursion_and_telescopes_without_decay(inputs, codec, decay, scale):
    layout = Layout.flat(9)
    for d, s in ((decay, scale), (1.0, 1.0)):
        feedback = ErrorFeedback(codec, d, s)
        state, residual, sent = feedback.init(layout, 2), torch.zeros(2, 9).double(), 0
        for step, x in enumerate(torch.from_numpy(inputs)):
            ctx = Context(layout, step, np.arange(2), 0)
            payload, state = feedback.encode(x, state, ctx)
            wanted = s * x + d * residual
            decoded = codec.encode(wanted, None, ctx)[0].decode()
            torch.testing.assert_close(payload.decode(), decoded, rtol=1e-6, atol=1e-4)
            residual = wanted - payload.decode()
            torch.testing.assert_close(state[0], residual, rtol=1e-9, atol=1e-9)
            sent = sent + payload.decode()
    torch.testing.assert_close(
        sent + state[0], torch.from_numpy(inputs).sum(0), rtol=1e-9, atol=1e-8
    )


def test_feedback_says_whether_it_telescopes():
    assert ErrorFeedback(TopK(2)).telescopes
    assert not ErrorFeedback(TopK(2), decay=0.9).telescopes
    assert not ErrorFeedback(TopK(2), scale=0.1).telescopes
    for options, said in (({"decay": 1.1}, "decay=1.1"), ({"scale": 0}, "scale=0")):
        with pytest.raises(ValueError, match=said):
            ErrorFeedback(TopK(2), **options)


# -- a codec for each tensor --------------------------------------------------------------------


def test_rules_choose_by_name_then_size_then_axes():
    layout = Layout({"embed": (6, 4), "w": (6, 4), "tiny": (2, 1), "b": (4,), "gain": ()})
    codec = PerTensor(
        TopK(2), dense_below=3, vectors=Sign(), names={"emb*": Dense("bfloat16"), "gain": Sign()}
    )
    payload = encoded(codec, torch.randn(2, layout.numel), layout)
    used = [part.codec for part in payload.content]
    assert used == [Dense("bfloat16"), TopK(2), Dense(), Sign(), Sign()]
    assert codec.nbytes(layout) == 48 + 6 * 2 * 5 + 8 + 5 + 5
    assert codec == PerTensor(TopK(2), 3, Sign(), (("emb*", Dense("bfloat16")), ("gain", Sign())))
    assert hash(codec)


def test_rules_leave_each_tensor_to_its_codec():
    layout = Layout({"a": (4, 3), "b": (4, 3), "c": (5,)})
    x = torch.randn(3, layout.numel, generator=torch.Generator().manual_seed(0))
    decoded = encoded(PerTensor(TopK(1), vectors=Dense(), names={"b": Sign()}), x, layout).decode()
    views, got = layout.views(x), layout.views(decoded)
    assert torch.equal(got["a"], encoded(TopK(1), views["a"]).decode())
    assert torch.equal(got["b"], encoded(Sign(), views["b"]).decode())
    assert torch.equal(got["c"], views["c"])


def test_flags_of_rules_are_those_of_all_codecs():
    mixed = PerTensor(RandomK(k=2), vectors=Dense())
    assert mixed.summable
    assert mixed.shared_support
    assert not PerTensor(RandomK(k=2), vectors=TopK(1)).summable
    assert PerTensor(TopK(1), names={"x": SharedMask(0.1)}).sized_by_data
    assert not PerTensor(TopK(1), names={"x": RandomK(k=1)}).deterministic
    with pytest.raises(ValueError, match="_convert_: all"):
        PerTensor(TopK(1), names={"x": {"_target_": "Dense"}})


# -- low rank -----------------------------------------------------------------------------------


def test_bytes_of_low_rank_are_those_of_its_factors_or_of_the_matrix():
    layout = Layout({"w": (100, 50), "conv": (8, 3, 3), "b": (100,), "small": (3, 3)})
    assert PerTensor(LowRank(4)).nbytes(layout) == 4 * (4 * 150 + 4 * 17 + 100 + 9)
    assert PerTensor(LowRank(2)).nbytes(layout) == 4 * (2 * 150 + 2 * 17 + 100 + 9)


def test_a_matrix_of_low_rank_is_sent_whole():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3, 20, 2, generator=rng) @ torch.randn(3, 2, 9, generator=rng)
    decoded = encoded(LowRank(2), x, Layout({"w": (20, 9)})).decode()
    torch.testing.assert_close(decoded, x, rtol=1e-4, atol=1e-4)


@given(hnp.arrays(np.float32, (2, 8, 6), elements=st.floats(-10, 10, width=32)), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_low_rank_never_adds_error(x, rank):
    x = torch.from_numpy(x)
    lost = x - encoded(LowRank(rank), x, Layout({"w": (8, 6)})).decode()
    assert (lost.square().sum((1, 2)) <= x.square().sum((1, 2)) * (1 + 1e-4) + 1e-6).all()


def test_over_one_matrix_it_turns_to_the_truncated_decomposition():
    x = torch.randn(2, 12, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layout, codec = Layout({"w": (12, 7)}), LowRank(3)
    state = codec.init(layout, 2)
    for step in range(400):
        payload, state = codec.encode(x, state, Context(layout, step, np.arange(2), 0))
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    best = (u[:, :, :3] * s[:, None, :3]) @ v[:, :3]
    torch.testing.assert_close(payload.decode(), best, rtol=1e-5, atol=1e-5)


def test_after_a_zero_it_still_finds_the_next_matrix():
    codec, layout = LowRank(2), Layout({"w": (9, 9)})
    ctx = Context(layout, 0, np.zeros(1), 0)
    payload, state = codec.encode(torch.zeros(1, 9, 9), codec.init(layout, 1), ctx)
    assert not payload.decode().any()
    x = torch.outer(torch.arange(1.0, 10), torch.ones(9))[None]
    decoded = codec.encode(x, state, ctx)[0].decode()
    torch.testing.assert_close(decoded, x, rtol=1e-4, atol=1e-4)


# -- collectives --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "codec",
    [TopK(2), Sign(), PerTensor(LowRank(1)), PerTensor(RandomK(k=1), names={"layer.0": TopK(1)})],
    ids=repr,
)
def test_a_ring_refuses_what_it_cannot_add_up_and_names_what_carries_it(idle, codec):
    group = idle().group()
    said = "not summable; use all_gather, or average"
    with pytest.raises(ValueError, match=said):
        group.all_reduce(group.params, codec)
    with pytest.raises(ValueError, match=said):
        group.all_reduce(group.encode(codec, group.params))


@pytest.mark.parametrize("codec", [*SHARED, PerTensor(RandomK(k=2), vectors=Dense())], ids=repr)
def test_what_is_drawn_alike_goes_around_a_ring(idle, codec):
    sim = idle()
    group, rows = sim.group(), torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    sent = group.encode(codec, rows)
    mean = sim.run(until=group.all_reduce(rows, codec))
    torch.testing.assert_close(mean, sent.decode().mean(0))
    assert sim.trace["collective"]["op"].tolist() == ["all_reduce"]
