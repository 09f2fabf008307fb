"""Budgets: which limit counts, and what is refused."""

import math

import pytest

from optimizers import ADPSGD, DiLoCo
from sim.budget import Budget


@pytest.mark.parametrize(
    ("limits", "spent"),
    [
        ({"seconds": 12.4}, 0.5),  # two steps of 1 s, two rings of 2.1 s
        ({"steps": 8}, 0.25),
        ({"tokens": 16}, 0.5),  # 4 nodes, 1 token a step
        ({"nbytes": 4 * 2 * 48 * 4}, 0.25),  # each of 4 sends 2 (n - 1) / n of 32 bytes per round
        ({"seconds": 12.4, "steps": 3}, 2 / 3),
    ],
)
def test_the_share_that_is_spent_is_that_of_the_nearest_limit(tiny, limits, spent):
    sim = tiny(budget=Budget(**limits)).build()
    sim.start()
    sim.run(until=6.2)
    assert sim.budget.spent(sim) == pytest.approx(spent, rel=1e-6)


def test_time_ends_a_run_at_once(tiny):
    experiment = tiny(budget=Budget(seconds="2.5s"))
    experiment.run()
    assert experiment.sim.now == 2.5


def test_a_round_is_whole_when_steps_end_a_run(tiny):
    experiment = tiny(DiLoCo(inner_steps=4), budget=Budget(steps=6))
    trace = experiment.run()
    assert trace["metric"]["step"].iloc[-1] == 8
    assert len(trace["collective"]) == 2


def test_an_asynchronous_run_ends_at_the_step(tiny):
    trace = tiny(ADPSGD(), budget=Budget(steps=6)).run()
    assert trace["metric"]["step"].iloc[-1] == 6


def test_a_run_ends_when_its_bytes_are_sent(tiny):
    trace = tiny(budget=Budget(nbytes="1kB")).run()
    sent = trace["metric"]["nbytes"].iloc[-1]
    assert 1000 <= sent <= 1000 + 4 * 48


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "the run would never end"),
        ({"seconds": 0}, "budget.seconds=0: must be > 0"),
        ({"seconds": "2 fortnights"}, "budget.seconds='2 fortnights'"),
        ({"nbytes": "4s"}, "budget.nbytes='4s'"),
        ({"steps": 0}, "budget.steps=0: must be > 0"),
        ({"tokens": -1}, "budget.tokens=-1: must be > 0"),
        ({"tokens": math.nan}, "budget.tokens=nan: must be > 0"),
    ],
)
def test_an_impossible_budget_is_refused_by_name(limits, message):
    with pytest.raises(ValueError, match=message):
        Budget(**limits)


def test_without_a_limit_on_time_the_horizon_is_infinite():
    assert Budget(steps=1).horizon == math.inf
    assert Budget(seconds="2h").horizon == 7200.0
