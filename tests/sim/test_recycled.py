"""Memory of large results, used again when nobody looks at it."""

from __future__ import annotations

import pytest
import torch

from experiments.experiment import Experiment
from experiments.tasks.quadratic import Quadratic
from optimizers import SGD, AllReduce
from sim.budget import Budget
from sim.compute import recycled
from sim.compute.recycled import Recycled
from topologies import complete

ROW = torch.zeros(2**10, 2**10)  # 4 MB


def test_memory_is_used_again_by_fewer_rows_too():
    memory = Recycled()
    first = memory.rows(3, ROW)
    place = first.data_ptr()
    del first
    again = memory.rows(2, ROW)
    assert again.data_ptr() == place
    assert again.shape == (2, *ROW.shape)


def test_memory_that_somebody_looks_at_is_left_alone():
    memory = Recycled()
    part = memory.rows(2, ROW).fill_(1.0)[1, 0, :5]
    memory.rows(2, ROW).fill_(2.0)
    assert part.tolist() == [1.0] * 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_memory_takes_any_type(dtype):
    memory, like = Recycled(), ROW.to(dtype)
    made = memory.rows(2, like).fill_(3.0)
    assert made.dtype == dtype
    assert made.sum() == 3 * 2 * ROW.numel()


def test_small_tensors_and_those_without_values_are_made_anew():
    memory = Recycled()
    small, meta = memory.rows(2, ROW[0]), memory.rows(2, ROW.to("meta"))
    assert small.shape == (2, 2**10)
    assert meta.is_meta
    assert len(memory._memory) == 0


def test_gradients_that_a_strategy_keeps_are_not_written_over(monkeypatch):
    monkeypatch.setattr(recycled, "_LEAST", 0)
    kept = []

    class Keeps(AllReduce):
        def run(self, sim):
            while True:
                group = yield sim.coordinator.round()
                group.params = sim.shared["params"]
                grads = yield group.grad()
                kept.append((grads, grads.clone()))
                sim.shared["params"] = sim.shared["params"] - 0.1 * grads.mean(0)

    Experiment(Quadratic(), complete(4), Keeps(SGD(0.1)), budget=Budget(steps=4)).run()
    assert len(kept) == 4
    assert all(torch.equal(grads, before) for grads, before in kept)
