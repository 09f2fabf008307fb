"""Rows that are changed where they lie in the fleet."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optimizers import SGD
from sim.compute.block import Block
from sim.compute.fleet import Fleet
from sim.compute.options import ComputeOptions
from sim.compute.placed import Placed

N = 6


def fleet_of(task, dtype="float32"):
    initial = torch.zeros(task.layout.numel)
    options = ComputeOptions(workers=1, state_dtype=dtype)
    return Fleet(task, N, SGD(0.1), initial, task.layout, options=options)


def add(block, rows):
    with block.in_place("kept") as placed:
        placed.write(placed.read().add_(rows))


@pytest.mark.parametrize("at", [[1, 2, 3], [3, 1, 5], []])
def test_rows_are_read_and_written_where_they_lie(at):
    memory = torch.arange(12.0).view(6, 2)
    before, placed = memory.clone(), Placed(memory, np.array(at, dtype=np.int64))
    assert torch.equal(placed.read(), before[at])
    placed.write(placed.read() + 100)
    before[at] += 100
    assert torch.equal(memory, before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ids", [[0, 1, 2], [1, 4, 5]])
def test_each_node_has_what_was_added_to_its_row(quadratic, ids, dtype):
    fleet, ids = fleet_of(quadratic, dtype), np.array(ids)
    for _ in range(2):
        add(Block(fleet, ids), torch.arange(1.0, 4.0)[:, None])
    wanted = torch.zeros(N)
    wanted[ids] = torch.tensor([2.0, 4.0, 6.0])
    rows = fleet.get("kept", np.arange(N))
    assert torch.equal(rows, wanted[:, None].expand_as(rows))


def test_a_vector_that_nodes_share_is_not_written(quadratic):
    fleet, vector = fleet_of(quadratic), torch.ones(quadratic.layout.numel)
    fleet.put("kept", np.arange(N), vector)
    add(Block(fleet, np.array([0, 2])), torch.ones(2, 1))
    assert torch.equal(vector, torch.ones_like(vector))
    assert fleet.get("kept", np.arange(N))[:, 0].tolist() == [2, 1, 2, 1, 1, 1]


def test_who_left_and_came_back_begins_with_the_default_again(quadratic):
    fleet = fleet_of(quadratic)
    block = Block(fleet, np.array([0, 2]))
    add(block, torch.ones(2, 1))
    fleet.forget(2)
    add(block, torch.ones(2, 1))
    assert fleet.get("kept", np.array([0, 2]))[:, 0].tolist() == [2, 1]
