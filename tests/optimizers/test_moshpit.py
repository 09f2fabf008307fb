"""Moshpit SGD: groups on a grid, exact on a full one, and what failures leave of it."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from experiments.averaging import variances
from experiments.experiment import Experiment
from experiments.tasks.quadratic import Quadratic
from experiments.validate.golden.recorders import RecordedRounds, rows_of
from optimizers import SGD, AdamW, DiLoCo, Moshpit
from optimizers.moshpit import grid_lines
from sim.budget import Budget
from sim.payload import Dense
from topologies import complete

STILL = SGD(lr=0.0)
"""An inner optimizer that learns nothing: only averaging moves parameters."""


def _averages(size, dims, n, rounds, **options):
    """All parameters before the first and after each averaging, [rounds + 1, n, 4]."""
    task = Quadratic(dimension=4)
    recorded = RecordedRounds(rows_of)
    strategy = Moshpit(1, dims, size, **options)
    parts = {"local": STILL, "coordinator": recorded, "budget": Budget(steps=rounds)}
    sim = Experiment(task, complete(n), strategy, **parts).build()
    sim.group().params = torch.randn(n, 4, generator=torch.Generator().manual_seed(1))
    sim.start()
    sim.run(until=sim.done)
    return torch.stack(recorded.notes)


@pytest.mark.parametrize(("size", "dims"), [(2, 1), (5, 1), (3, 2), (2, 4), (3, 3)])
def test_a_full_grid_has_the_exact_mean_after_as_many_rounds_as_axes(size, dims):
    values = _averages(size, dims, size**dims, dims)
    mean = values[0].mean(0).expand_as(values[0])
    torch.testing.assert_close(values[-1], mean, rtol=0, atol=1e-6)
    if dims > 1:
        assert (values[-2] - mean).abs().max() > 1e-3  # not before
    for before, after in pairwise(values):
        torch.testing.assert_close(after.mean(0), before.mean(0))
        assert after.var(0).sum() <= before.var(0).sum() * (1 + 1e-6)


def test_groups_rotate_from_the_second_axis_on():
    """Cells in order: the first round averages rows of the grid, the second one its columns."""
    values = _averages(2, 2, 4, 2, cells=[0, 1, 2, 3])
    rows = values[0].view(2, 2, 4).mean(1, keepdim=True).expand(2, 2, 4).reshape(4, 4)
    torch.testing.assert_close(values[1], rows)


def test_a_grid_with_holes_comes_close_to_the_mean():
    values = _averages(4, 2, 11, 12)
    assert values[-1].var(0).sum() < 1e-4 * values[0].var(0).sum()


@pytest.mark.parametrize(("size", "dims"), [(3, 1), (3, 2), (2, 3)])
def test_lines_are_the_nodes_that_share_all_other_coordinates(size, dims):
    cells = np.random.default_rng(0).permutation(size**dims)
    places = np.stack(np.unravel_index(cells, (size,) * dims))
    lines = grid_lines(cells, size, dims)
    for axis in range(dims):
        others = np.delete(places, axis, axis=0)
        same = (others[:, :, None] == others[:, None, :]).all(0)
        assert ((lines[axis][:, None] == lines[axis][None, :]) == same).all()


def test_one_axis_is_local_sgd():
    models = []
    for strategy in (Moshpit(3, dims=1), DiLoCo(3, SGD(1.0), Dense("native"))):
        rounds = RecordedRounds(lambda sim, strategy=strategy: strategy.consensus(sim))
        parts = {"local": SGD(0.1), "coordinator": rounds, "budget": Budget(steps=12)}
        Experiment(Quadratic(dimension=4), complete(5), strategy, **parts).run()
        models.append(torch.stack(rounds.notes))
    torch.testing.assert_close(*models, rtol=0, atol=1e-6)


def test_the_simulated_protocol_is_that_of_the_figures():
    """`experiments.averaging` on the grid of 3 x 3 x 3, without failures."""
    ours = _averages(3, 3, 27, 3).double().var(1, correction=0).mean(1)
    theirs = variances("moshpit", 27, 0.0, range(40), cap=3, group=3, dims=3).mean(0)
    np.testing.assert_allclose(ours / ours[0], theirs / theirs[0], atol=0.2)
    assert ours[-1] < 1e-12


def test_who_left_is_absent_and_the_others_of_its_group_average(tiny):
    away = {1: (0.5, math.inf)}
    strategy = Moshpit(1, 2, 2, cells=[0, 1, 2, 3])
    sim = tiny(strategy, away=away, local=STILL).build()
    sim.group().params = torch.randn(4, 8)
    start = rows_of(sim).clone()
    sim.start()
    while sim.rounds < 2:
        sim.step()
    rows = rows_of(sim)
    torch.testing.assert_close(rows[0], start[0])
    torch.testing.assert_close(rows[1:], start[2:].mean(0).expand(2, 8))


def test_a_mean_is_weighted_by_the_steps_since_the_last_one(tiny):
    """A group whose exchange was cut keeps what it has; it counts twice the next time."""
    strategy = Moshpit(1, 1, 4, cells=range(4))
    sim = tiny(strategy, local=STILL, budget=Budget(steps=1)).build()
    sim.group().params = torch.randn(4, 8)
    start = rows_of(sim).clone()
    sim.numbers("moshpit.steps")[:] = [0, 0, 2, 0]
    sim.start()
    sim.run(until=sim.done)
    wanted = (start[0] + start[1] + 3 * start[2] + start[3]) / 6
    torch.testing.assert_close(rows_of(sim), wanted.expand(4, 8))
    assert sim.numbers("moshpit.steps").tolist() == [0] * 4


def test_a_round_moves_the_bytes_of_small_rings(tiny):
    sim = tiny(Moshpit(1, 2, 2, cells=range(4)), budget=Budget(steps=3)).build()
    sim.start()
    sim.run(until=sim.done)
    assert sim.network.totals().sent.tolist() == [3 * 2 * 32 * (2 - 1) / 2] * 4


def test_how_far_nodes_are_apart_is_recorded(tiny):
    """After a round on a full line all are equal; on a grid of two axes they are not."""
    spread = {}
    for dims in (1, 2):
        run = tiny(Moshpit(1, dims), local=SGD(0.1), budget=Budget(steps=1))
        spread[dims] = run.run()["metric"]["spread"].iloc[-1]
        rows = rows_of(run.sim).double()
        wanted = (rows - rows.mean(0)).square().sum(1).mean().sqrt()
        assert spread[dims] == pytest.approx(float(wanted), abs=1e-6)
    assert spread[1] < 1e-6 < spread[2]


def test_moments_are_averaged_too(tiny):
    strategy = Moshpit(2, 1, average_state=True)
    sim = tiny(strategy, local=AdamW(lr=0.01), budget=Budget(steps=2)).build()
    sim.start()
    sim.run(until=sim.done)
    for name in ("params", "local.mean", "local.square"):
        rows = rows_of(sim, name)
        assert rows.abs().max() > 0
        assert torch.equal(rows, rows[:1].expand_as(rows)), name
    assert sim.network.totals().sent.tolist() == [3 * 2 * 32 * 3 / 4] * 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"inner_steps": 0}, "strategy.inner_steps=0"),
        ({"dims": 0}, "strategy.dims=0: must be between 1 and 16"),
        ({"size": 1}, r"strategy.size=1: 1\^2 cells are too few for 4 nodes; the least is 2"),
        ({"size": 2, "cells": [0, 1, 2, 2]}, "must be 4 different numbers from 0 to 3"),
        ({"size": 2, "cells": [0, 1, 2, 4]}, "must be 4 different numbers from 0 to 3"),
    ],
)
def test_grids_that_do_not_fit_are_refused(tiny, options, said):
    with pytest.raises(ValueError, match=said):
        tiny(Moshpit(**options)).run()
