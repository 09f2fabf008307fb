"""The arithmetic of DeMo: exact selection, cosine transform, residual; the same for any threads."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optimizers.compression import DCT, Blocks, Chain, PerTensor, Quantize, Sign, TopK
from optimizers.compression.basis import accumulate, halves
from optimizers.compression.scattered import scattered_mean
from optimizers.compression.selection import add, largest, select
from optimizers.demo import DeMo, Extract
from sim.compute.layout import Layout
from sim.compute.placed import Placed
from sim.payload import Context, Dense, Payload

LAYOUT = Layout({"w": (12, 10), "v": (7,), "u": (12, 10), "t": (7,), "conv": (4, 3, 2), "g": ()})
KINDS = ("normal", "ties", "zeros", "special", "falling")


def numbers(kind, shape, dtype=np.float64):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    if kind == "ties":
        x = rng.integers(-3, 4, shape).astype(float)
    if kind == "zeros":
        x = np.where(rng.random(shape) < 0.5, 0.0, -0.0)
    if kind == "special":
        x[rng.random(shape) < 0.1] = np.nan
        x[rng.random(shape) < 0.1] = -np.inf
    if kind == "falling":
        x *= np.exp(-np.arange(shape[-1]) / 3)
    return x.astype(dtype)


def first_largest(row, k):
    """By magnitude, then by index; NaN is above infinity."""
    magnitude = np.where(np.isnan(row), 0, np.abs(row.astype(np.float64)))
    keys = (np.arange(len(row)), -magnitude, ~np.isnan(row))
    return np.sort(np.lexsort(keys)[:k])


# -- selection ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("e", "k"),
    [(1, 1), (7, 3), (64, 32), (100, 100), (1000, 8), (1024, 32), (1024, 100), (3001, 300)],
)
def test_the_largest_are_those_of_a_sort(kind, dtype, e, k):
    x = numbers(kind, (5, e), dtype)
    got = largest(torch.from_numpy(x), k)
    assert got.tolist() == [first_largest(row, k).tolist() for row in x]


@pytest.mark.parametrize("sampled", [-9.0, 9.0])
def test_a_sample_that_misleads_changes_nothing(sampled):
    """Every 17th value is looked at first: if these are the largest, or the smallest, of all."""
    x = numbers("normal", (2, 2000), np.float32)
    x[:, ::17] = np.abs(x[:, ::17]) * 10.0**sampled
    got = largest(torch.from_numpy(x), 200).numpy()
    for row, index in zip(x, got):
        np.testing.assert_array_equal(index, first_largest(row, 200))


@given(
    rows=hnp.arrays(np.float32, (2, 70), elements=st.floats(width=32) | st.sampled_from([0.0, 1])),
    k=st.integers(1, 70),
)
@settings(max_examples=100, deadline=None)
def test_the_largest_of_any_numbers_are_those_of_a_sort(rows, k):
    got = largest(torch.from_numpy(rows), k)
    assert got.tolist() == [first_largest(row, k).tolist() for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_types_without_compiled_code_select_alike(kind):
    x = numbers(kind, (3, 40), np.float16)
    got = largest(torch.from_numpy(x), 7)
    assert got.tolist() == [first_largest(row, 7).tolist() for row in x]


def test_parts_of_a_row_are_selected_from_as_if_alone():
    x = torch.from_numpy(numbers("ties", (4, 30)))
    values, index = select(Placed.of(x), np.array([[0, 2, 5, 2], [10, 1, 20, 3]]))
    alone = [largest(x[:, a:b], k) for a, b, k in ((0, 5, 2), (5, 10, 2), (10, 30, 3))]
    assert torch.equal(index, torch.cat(alone, 1))
    starts = torch.tensor([0, 0, 5, 5, 10, 10, 10])
    assert torch.equal(values, x.gather(1, index + starts))


def test_what_is_taken_leaves_zeros_until_it_is_added_again():
    x = torch.from_numpy(numbers("normal", (4, 30)))
    rest = x.clone()
    values, index = select(Placed.of(rest), np.array([[0, 1, 30, 4]]), take=True)
    assert torch.equal(rest, x.scatter(1, index, 0.0))
    add(Placed.of(rest), values, index)
    assert torch.equal(rest, x)


def test_values_are_added_where_rows_lie_and_only_inside_of_them():
    x, values = torch.zeros(4, 5), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    add(Placed(x, np.array([2, 0])), values, torch.tensor([[0, 4], [1, 1]]), scale=-1.0)
    assert x.tolist() == [[0, -7, 0, 0, 0], [0] * 5, [-1, 0, 0, 0, -2], [0] * 5]
    for outside in (-1, 5):
        with pytest.raises(AssertionError, match="outside"):
            add(Placed.of(x), torch.ones(4, 1), torch.full((4, 1), outside))


def test_rows_are_selected_from_where_they_lie():
    memory, at = torch.from_numpy(numbers("normal", (6, 30))), np.array([1, 2, 5])
    parts, before = np.array([[0, 1, 30, 4]]), memory.clone()
    values, index = select(Placed(memory, at), parts, take=True)
    for got, wanted in zip((values, index), select(Placed.of(before[at]), parts)):
        assert torch.equal(got, wanted)
    assert (memory != before).sum(1).tolist() == [0, 4, 4, 0, 0, 4]


def test_an_index_outside_of_the_row_is_not_followed():
    with pytest.raises(AssertionError, match="outside of the 3 values"):
        scattered_mean(torch.ones(1, 1), torch.tensor([[3]]), 3, "all", None)


@pytest.mark.parametrize("over", ["all", "senders"])
def test_means_of_sparse_rows_agree_with_those_of_torch(over):
    rng = np.random.default_rng(0)
    index = torch.from_numpy(rng.integers(0, 9, (6, 5)))
    values = torch.from_numpy(rng.standard_normal((6, 5)))
    arguments = (index, 9, over, torch.tensor([1.0, 0.5, 2.0]), 2, torch.from_numpy(np.arange(6)))
    ours = scattered_mean(values, *arguments)
    dense = torch.zeros(6, 9).double()
    share = torch.zeros(6, 9).double()
    for r in range(6):
        for j in range(min(r, 5)):
            dense[r, index[r, j]] += values[r, j]
            share[r, index[r, j]] += 1
    weights = torch.tensor([1.0, 0.5, 2.0]).double().repeat(2)[:, None]
    total, counted = ((weights * x).view(2, 3, 9).sum(1) for x in (dense, share))
    wanted = total / (3.5 if over == "all" else counted.clamp(min=1e-300))
    torch.testing.assert_close(ours, wanted)


# -- transform ----------------------------------------------------------------------------------


BLOCKS = [(8, 8), (6, 10), (61, 5), (48, 50), (16, 33), (64, 32), (64,), (50,), (31, 1), (1,)]


@pytest.mark.parametrize("shape", BLOCKS)
def test_coefficients_of_a_block_are_those_of_scipy(shape):
    fft = pytest.importorskip("scipy.fft")
    x = np.random.default_rng(0).standard_normal((3, *shape))
    ctx = Context(Layout({"x": shape}), 0, np.arange(3), 0)
    payload = DCT(64).encode(torch.from_numpy(x), None, ctx)[0]
    wanted = fft.dctn(x, norm="ortho", axes=range(1, x.ndim))
    np.testing.assert_allclose(payload.body.numpy().reshape(x.shape), wanted, atol=2e-14)
    np.testing.assert_allclose(payload.decode().numpy(), x, atol=2e-14)


@pytest.mark.parametrize("shape", BLOCKS)
def test_coefficients_in_single_precision_are_those_of_scipy_in_any_company(shape):
    fft = pytest.importorskip("scipy.fft")
    x = np.random.default_rng(0).standard_normal((70, *shape)).astype(np.float32)
    ctx = Context(Layout({"x": shape}), 0, np.arange(len(x)), 0)
    body = DCT(64).encode(torch.from_numpy(x), None, ctx)[0].body
    wanted = fft.dctn(x.astype(np.float64), norm="ortho", axes=range(1, x.ndim))
    np.testing.assert_allclose(body.numpy().reshape(x.shape), wanted, atol=3e-6)
    alone = DCT(64).encode(torch.from_numpy(x[69:]), None, ctx)[0].body
    assert torch.equal(alone, body[69:])


def test_long_blocks_have_the_coefficients_of_scipy_too():
    fft = pytest.importorskip("scipy.fft")
    x = np.random.default_rng(0).standard_normal((2, 300))
    ctx = Context(Layout.flat(300), 0, np.arange(2), 0)
    payload = DCT(300).encode(torch.from_numpy(x), None, ctx)[0]
    np.testing.assert_allclose(payload.body[:, 0].numpy(), fft.dct(x, norm="ortho"), atol=1e-12)


@pytest.mark.parametrize("first", [DCT(8), Blocks(4)], ids=repr)
def test_coefficients_are_added_to_what_is_there(first):
    x, before = (torch.from_numpy(numbers("normal", (3, LAYOUT.numel))) for _ in range(2))
    transform, _ = halves(PerTensor(Chain(first, TopK(3))))
    turned = before.clone()
    accumulate(transform, LAYOUT, x, Placed.of(turned), 0.0, 1.0)
    memory, at = before.repeat(2, 1), np.array([3, 1, 5])
    accumulate(transform, LAYOUT, x, Placed(memory, at), 0.5, 2.0)
    torch.testing.assert_close(memory[at], 0.5 * before[at % 3] + 2.0 * turned)
    assert torch.equal(memory[[0, 2, 4]], before[[0, 2, 1]])


# -- the step of DeMo ---------------------------------------------------------------------------


@dataclass
class Rows:
    """Rows of some nodes, as a function of blocks sees them."""

    layout: Layout
    momentum: torch.Tensor

    @contextmanager
    def in_place(self, name):
        yield Placed.of(self.momentum)

    @property
    def context(self):
        return Context(self.layout, 0, np.arange(len(self.momentum)), 0)

    def encode(self, codec, x):
        return codec.encode(x, None, self.context)[0]


def steps(codec, grads, decay=0.9, keep_error=False):
    """DeMo's momentum [n, P] and last update [P] after gradients [T, n, P]."""
    demo = DeMo(decay=decay, compressor=codec, keep_quantisation_error=keep_error)
    rows = Rows(LAYOUT, torch.zeros(grads.shape[1:], dtype=grads.dtype))
    extract = Extract(demo, LAYOUT, *halves(codec), 1.0)
    for grad in grads:
        sent = extract(rows, grad)
    return rows.momentum, sent


def gradients(n=3, dtype=np.float64):
    return torch.from_numpy(numbers("normal", (4, n, LAYOUT.numel), dtype))


def basis(n):
    rows = [[math.cos(math.pi * (2 * j + 1) * f / (2 * n)) for j in range(n)] for f in range(n)]
    scale = np.sqrt(np.where(np.arange(n) == 0, 1, 2) / n)
    return scale[:, None] * np.array(rows)


def blocks_of(matrix, chunk):
    """Views of the blocks of a matrix, in row-major order."""
    h, w = (max(d for d in range(1, chunk + 1) if side % d == 0) for side in matrix.shape)
    R, C = matrix.shape
    return [matrix[i : i + h, j : j + w] for i in range(0, R, h) for j in range(0, C, w)]


def slow_step(momentum, grad, chunk, k, decay):
    """One node: changes `momentum` [P] (of values), returns what it sends, densely."""
    momentum *= decay
    momentum += grad
    sent = np.zeros_like(momentum)
    for name, shape in LAYOUT.shapes.items():
        sides = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
        here, there = (x[LAYOUT.slices[name]].reshape(sides) for x in (momentum, sent))
        for block, out in zip(blocks_of(here, chunk), blocks_of(there, chunk)):
            left, right = basis(len(block)), basis(block.shape[1])
            turned = (left @ block @ right.T).ravel()
            kept = np.zeros_like(turned)
            index = first_largest(turned, min(k, len(turned)))
            kept[index] = turned[index]
            out[:] = left.T @ kept.reshape(block.shape) @ right
    momentum -= sent
    return sent


def test_demo_is_its_algorithm_written_slowly():
    grads = gradients()
    codec = PerTensor(Chain(DCT(4), TopK(3, value_dtype="native")))
    _, sent = steps(codec, grads)
    momentum = np.zeros((3, LAYOUT.numel))
    for grad in grads.numpy():
        slow = [slow_step(row, g, 4, 3, 0.9) for row, g in zip(momentum, grad)]
    torch.testing.assert_close(sent.decode(), torch.from_numpy(np.stack(slow)))


CODECS = [
    PerTensor(Chain(DCT(4), TopK(3))),
    PerTensor(Chain(DCT(4), TopK(3), Sign(None))),
    PerTensor(Chain(DCT(4), TopK(3), Quantize(4))),
    PerTensor(Chain(Blocks(4), TopK(3, value_dtype="bfloat16"))),
    PerTensor(TopK(3)),
    Dense(),
]


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("keep_error", [False, True])
def test_demo_keeps_what_it_did_not_send(codec, keep_error):
    grads = gradients(dtype=np.float32)[:1]
    momentum, sent = steps(codec, grads, keep_error=keep_error)
    transform, _ = halves(codec)
    turned = torch.zeros_like(grads[0])
    accumulate(transform, LAYOUT, grads[0], Placed.of(turned), 0.0, 1.0)
    values = sent.decode() if keep_error else sent.unquantised()
    wanted = torch.zeros_like(turned)
    accumulate(transform, LAYOUT, grads[0] - values, Placed.of(wanted), 0.0, 1.0)
    torch.testing.assert_close(momentum, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_blocks_of_rows_and_threads_give_the_same_bits(codec):
    grads = gradients(24, np.float32)
    momentum, sent = steps(codec, grads)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda i: steps(codec, grads[:, i : i + 2]), range(0, 24, 2)))
    assert torch.equal(torch.cat([m for m, _ in parts]), momentum)
    joined = Payload.cat([s for _, s in parts])
    assert joined.pack() == sent.pack()
    for over in ("all", "senders"):
        assert torch.equal(joined.combine(over), sent.combine(over))
