"""Blocks of rows: moved by compiled code as torch would, and values sent of them put back."""

import numpy as np
import pytest
import torch

from optimizers.compression import (
    DCT,
    Blocks,
    Chain,
    CodeBook,
    PerTensor,
    TopK,
    regrouping,
    selecting,
)
from optimizers.compression.transform import turn_rows, turn_rows_back
from sim.compute.layout import Layout
from sim.compute.placed import Placed
from sim.payload import Context

LAYOUT = Layout({"weight": (6, 8), "bias": (10,), "scalar": (), "conv": (4, 3, 2), "wide": (2, 12)})
SHAPES = tuple(shape or (1,) for shape in LAYOUT.shapes.values())


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def encoded(codec, x):
    return codec.encode(x, None, Context(LAYOUT, 0, np.arange(len(x)), 0))[0]


def test_stretches_are_as_long_as_they_can_be():
    places = torch.tensor([3, 4, 5, 0, 1, 7, 6, 2])
    wanted = [[3, 0, 3], [0, 3, 2], [7, 5, 1], [6, 6, 1], [2, 7, 1]]
    assert regrouping.runs_of(places).tolist() == wanted
    assert regrouping.runs_of(torch.arange(5)).tolist() == [[0, 0, 5]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_go_where_torch_puts_them_and_back(dtype):
    places = torch.cat([torch.arange(9, 20), torch.tensor([2, 0, 1, 5, 6, 7, 8, 3, 4])])
    runs, x, before = (
        regrouping.runs_of(places),
        normal(2, 20, dtype=dtype),
        normal(4, 20).to(dtype),
    )
    memory, at = before.clone(), np.array([3, 1])
    regrouping.regroup(x, runs, Placed(memory, at), keep=0.5, scale=-2.0)
    torch.testing.assert_close(memory[at], 0.5 * before[at] - 2.0 * x[:, places])
    assert torch.equal(memory[[0, 2]], before[[0, 2]])
    out = Placed.of(torch.full_like(x, float("nan")))
    regrouping.regroup_back(x[:, places], runs, out)
    assert torch.equal(out.memory, x)


@pytest.mark.parametrize("transform", [Blocks(3), Blocks(4), Blocks(5, "row")], ids=repr)
def test_blocks_of_all_tensors_at_once_are_those_of_each(transform):
    x = normal(3, LAYOUT.numel)
    out, back = Placed.of(torch.empty_like(x)), Placed.of(torch.empty_like(x))
    turn_rows(transform, SHAPES, x, out)
    parts = x.split([int(np.prod(shape)) for shape in SHAPES], dim=1)
    each = [transform.blocks(part.reshape(3, *shape)) for part, shape in zip(parts, SHAPES)]
    assert torch.equal(out.memory, torch.cat([blocks.flatten(1) for blocks in each], dim=1))
    turn_rows_back(transform, SHAPES, out.memory, back)
    assert torch.equal(back.memory, x)


@pytest.mark.parametrize("later", [(), (CodeBook(4, centred=True),)], ids=["exact", "coded"])
def test_what_is_sent_of_blocks_is_added_where_it_was(later):
    codec = PerTensor(Chain(Blocks(4), TopK(3, value_dtype="native"), *later))
    x, before = normal(3, LAYOUT.numel), normal(5, LAYOUT.numel, seed=1)
    sent, memory, at = encoded(codec, x), before.clone(), np.array([4, 0, 2])
    tensors = [part.decode().flatten(1) for part in sent.content]  # each by itself, by torch
    assert torch.equal(sent.decode(), torch.cat(tensors, dim=1))
    sent.add_to(Placed(memory, at), -0.5)
    torch.testing.assert_close(memory[at], before[at] - 0.5 * sent.decode())
    assert torch.equal(memory[[1, 3]], before[[1, 3]])
    torch.testing.assert_close(sent.combine(), sent.decode().mean(0))


@pytest.mark.parametrize("transform", [Blocks(4), DCT(4)], ids=repr)
def test_rows_that_are_encoded_a_few_at_a_time_are_sent_the_same(transform, monkeypatch):
    codec, x = PerTensor(Chain(transform, TopK(3))), normal(7, LAYOUT.numel)
    together = encoded(codec, x).pack()
    monkeypatch.setattr(selecting, "_AT_ONCE", 2 * LAYOUT.numel)
    assert encoded(codec, x).pack() == together
