"""CHOCO-SGD: D-PSGD as its limit, what replicas know, joiners, and rounds that are cut."""

import math

import numpy as np
import pytest
import torch

from experiments.experiment import Experiment
from experiments.validate.golden.problems import Regression
from experiments.validate.golden.recorders import RecordedRounds, rows_of
from optimizers import CHOCO, DPSGD
from optimizers.choco import Friends, _step_and_difference
from optimizers.compression import TopK
from sim.budget import Budget
from sim.coordinators import Elastic
from sim.payload import Dense
from topologies import complete, ring, torus
from topologies.weights import metropolis_weights

EXACT = Dense("native")


def _models(strategy, graph, steps=6):
    """All parameters after each step, [T, N, P], in float64."""
    rounds = RecordedRounds(rows_of)
    n, budget = len(graph), Budget(steps=steps)
    Experiment(Regression.drawn(n), graph, strategy, coordinator=rounds, budget=budget).run()
    return rounds.after_rounds


@pytest.mark.parametrize("graph", [ring(5), torus(2, 3), complete(4)], ids=["ring", "torus", "all"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("adapt_first", "adapt_then_combine"), ("mix_first", "combine_while_adapt")],
)
def test_sending_everything_with_gamma_1_is_dpsgd(graph, ours, theirs):
    choco = _models(CHOCO(0.1, 1.0, ours, EXACT), graph)
    torch.testing.assert_close(choco, _models(DPSGD(0.1, theirs), graph), rtol=0, atol=1e-13)


def test_gossip_without_gradients_agrees_on_the_mean_from_a_few_values_a_round(tiny):
    """Theorem 2 of the paper: linear convergence, with any codec that contracts."""
    strategy = CHOCO(0.0, gamma=0.3, compressor=TopK(2))
    sim = tiny(strategy, budget=Budget(steps=150)).build()
    start = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    sim.group().params = start
    sim.start()
    sim.run(until=sim.done)
    rows = rows_of(sim)
    torch.testing.assert_close(rows.mean(0), start.mean(0))
    torch.testing.assert_close(rows, start.mean(0).expand(4, 8), rtol=0, atol=1e-3)


@pytest.mark.parametrize("order", ["adapt_first", "mix_first"])
def test_what_is_sent_is_the_codec_s_bytes_to_each_neighbour(tiny, order):
    sim = tiny(CHOCO(order=order, compressor=TopK(2)), budget=Budget(steps=3)).build()
    sim.start()
    sim.run(until=sim.done)
    assert sim.network.totals().sent.tolist() == [3 * 2 * (2 * 5)] * 4  # value and index of two


def test_who_joins_gets_the_replicas_of_its_neighbours_in_full(tiny):
    """Node 2 comes back, with the state for free; its two neighbours send their xhat, 32 bytes."""
    codec = TopK(1)
    sent = []
    for away in (None, {2: (3.5, 3.6)}):
        sim = tiny(CHOCO(compressor=codec), away=away).build()
        sim.start()
        sim.run(until=30)
        sent.append(sim.network.totals().sent / max(1, sim.rounds))
        assert (sim.numbers("choco.known") == 1).all()
    assert sent[1][1] - sent[0][1] > 20 / 30
    assert sent[1][0] == pytest.approx(sent[0][0], abs=1.0)


@pytest.mark.parametrize("coordinator", [None, Elastic()])
def test_a_joiner_takes_part_once_it_knows_its_neighbours(tiny, coordinator):
    """Consensus is reached again with a joiner whose replica began anew."""
    parts = {"coordinator": coordinator} if coordinator else {}
    strategy = CHOCO(0.0, gamma=0.3, compressor=TopK(4))
    away = {2: (5.2, 9.0)}
    sim = tiny(strategy, away=away, budget=Budget(seconds=600), **parts).build()
    sim.group().params = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    sim.start()
    sim.run(until=sim.done)
    rows = rows_of(sim)
    torch.testing.assert_close(rows, rows.mean(0).expand(4, 8), rtol=0, atol=1e-3)
    start = sim.initial_params()
    torch.testing.assert_close(rows_of(sim, "xhat") + start, rows, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_and_its_difference_are_those_of_two_passes(dtype):
    x, g, xhat = torch.randn(3, 5, 37, dtype=dtype)
    start, rate = torch.randn(37, dtype=dtype), torch.rand(5, 1, dtype=dtype)
    moved = x - rate * g
    _step_and_difference(x, g, xhat, start, rate)
    torch.testing.assert_close(x, moved)
    torch.testing.assert_close(g, moved - start - xhat)


def _friends(strategy, sim):
    return Friends(metropolis_weights(sim.overlay), strategy._known(sim), strategy.gamma)


def test_a_difference_that_did_not_reach_all_counts_for_nobody(idle):
    """The round ends while messages travel: nobody's xhat may have moved, the error is kept."""
    strategy = CHOCO(compressor=EXACT)
    sim = idle()
    strategy._known(sim)[:] = 1.0
    group = sim.run(until=sim.coordinator.round())
    links = _friends(strategy, sim).links(group)
    rows = torch.randn(4, 8)
    exchange = group.neighbor_gather(rows, links, EXACT)
    sim.run(until=sim.now + 0.5)
    group.round.over.succeed()
    strategy._remember(sim.run(until=exchange), links)
    assert torch.equal(rows_of(sim, "xhat"), torch.zeros(4, 8))
    heard = sim.run(until=sim.group().neighbor_gather(rows, links, EXACT))
    strategy._remember(heard, links)
    assert torch.equal(rows_of(sim, "xhat"), rows)


def test_a_neighbour_that_left_does_not_hold_back_the_others(idle):
    strategy, rows = CHOCO(compressor=EXACT), torch.randn(4, 8)
    sim = idle(away={2: (0.5, math.inf)})
    strategy._known(sim)[:] = 1.0
    group = sim.group()
    links = _friends(strategy, sim).links(group)
    strategy._remember(sim.run(until=group.neighbor_gather(rows, links, EXACT)), links)
    assert torch.equal(rows_of(sim, "xhat"), rows[[0, 1, 3]])
    again = _friends(strategy, sim).links(sim.group()).toarray()
    np.testing.assert_allclose(again.sum(1), 1.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": -1.0}, "strategy.lr=-1.0: must be >= 0"),
        ({"gamma": 1.5}, "strategy.gamma=1.5: must be above 0 and at most 1"),
        ({"order": "mix"}, "'mix': must be one of adapt_first, mix_first"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        CHOCO(**options)
