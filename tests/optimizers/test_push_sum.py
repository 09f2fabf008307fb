"""Stochastic gradient push: what it conserves, beside a plain loop, and what churn does to it."""

import math

import networkx as nx
import numpy as np
import pytest
import torch

from experiments.experiment import Experiment
from experiments.validate.golden.problems import Forced, Regression
from experiments.validate.golden.recorders import RecordedRounds, rows_of
from optimizers import SGD, SGP, AllReduce
from sim.budget import Budget
from sim.compute.layout import Layout
from sim.payload import Dense
from topologies import ExponentialPeers, complete
from topologies.peers import links
from topologies.weights import hears, push_weights

DIRECTED_RING = nx.DiGraph([(0, 1), (1, 2), (2, 0)])
UNEVEN = nx.DiGraph([(0, 1), (0, 2), (0, 3), (1, 2), (2, 3), (3, 0), (3, 4), (4, 0)])


def _record(strategy, start, gradients, **parts):
    """x and w [T, n, ...] after each step, from z = start [n, P] and with gradients [T, n, P]."""
    steps, n, p = gradients.shape
    rounds = RecordedRounds(
        lambda sim: torch.cat([rows_of(sim), torch.from_numpy(strategy.w(sim))[:, None]], 1)
    )
    task = Forced(gradients, Layout({"x": (p,)}), torch.zeros(p, dtype=torch.float64))
    budget = Budget(steps=steps)
    run = Experiment(task, complete(n), strategy, coordinator=rounds, budget=budget, **parts)
    sim = run.build()
    sim.group().params = start
    sim.start()
    sim.run(until=sim.done)
    z, w = rounds.after_rounds[..., :-1], rounds.after_rounds[..., -1]
    return z * w[..., None], w


def test_a_round_on_a_directed_ring_of_three_by_hand():
    start = torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64)
    x, w = _record(SGP(graph=None), start, torch.zeros(1, 3, 1).double(), overlay=DIRECTED_RING)
    assert x.ravel().tolist() == [3.5, 1.5, 4.0]
    assert w.ravel().tolist() == [1.0, 1.0, 1.0]


def _plain_loop(strategy, start, gradients, matrices):
    """Algorithm 1, node by node, with a queue of messages; x and w [T, n, ...]."""
    steps, n, _ = gradients.shape
    w = np.array(strategy.weights or [1.0] * n)
    x, m = start.numpy() * w[:, None], np.zeros(start.shape)
    late, found = [], []
    for t in range(steps):
        p, g = matrices(t), gradients[t].numpy()
        m = strategy.momentum * m + g
        step = g + strategy.momentum * m if strategy.nesterov else m
        x = x - strategy.lr * step
        late.append(
            [(i, j, p[i, j] * x[j], p[i, j] * w[j]) for i, j in zip(*p.nonzero()) if i != j]
        )
        x, w = x * p.diagonal()[:, None], w * p.diagonal()
        due = late.pop(0) if len(late) > strategy.overlap else []
        due += [one for some in late for one in some] if t == steps - 1 else []
        for i, _, some, weight in due:
            x[i] += some
            w[i] += weight
        found.append((x.copy(), w.copy()))
    return (torch.from_numpy(np.array(rows)) for rows in zip(*found))


@pytest.mark.parametrize("overlap", [0, 1, 3])
@pytest.mark.parametrize("graph", [None, ExponentialPeers(), ExponentialPeers(2, "both")])
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.5}, {"momentum": 0.5, "nesterov": True, "weights": [1, 2, 3, 4, 0.5]}],
    ids=["plain", "momentum", "nesterov, weighted"],
)
def test_values_are_those_of_a_plain_loop(graph, overlap, options):
    rng = np.random.default_rng(0)
    start, gradients = (
        torch.from_numpy(rng.normal(size=(5, 3))),
        torch.from_numpy(rng.normal(size=(7, 5, 3))),
    )
    strategy = SGP(0.1, graph=graph, overlap=overlap, **options)

    def matrix(t):
        edges = hears(_hosts(UNEVEN)) if graph is None else links(graph.receivers(5, t))
        return push_weights(edges).toarray()

    ours = _record(strategy, start, gradients, overlay=UNEVEN)
    for mine, theirs in zip(ours, _plain_loop(strategy, start, gradients, matrix)):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-13)


def _hosts(graph):
    graph = graph.copy()
    nx.set_node_attributes(graph, "host", "kind")
    return graph


def test_on_an_uneven_graph_sums_are_kept_and_all_tend_to_the_mean():
    start = torch.from_numpy(np.random.default_rng(1).normal(size=(5, 2)))
    still = torch.zeros(60, 5, 2, dtype=torch.float64)
    x, w = _record(SGP(graph=None), start, still, overlay=UNEVEN)
    torch.testing.assert_close(x.sum(1), start.sum(0).expand(60, 2), rtol=0, atol=1e-13)
    torch.testing.assert_close(w.sum(1), torch.full((60,), 5.0).double(), rtol=0, atol=1e-13)
    assert (w[-1] - 1).abs().max() > 0.3  # without w they would agree on something else
    torch.testing.assert_close(
        x[-1] / w[-1][:, None], start.mean(0).expand(5, 2), atol=1e-8, rtol=0
    )


def test_pushing_to_everybody_is_all_reduce():
    means = []
    for strategy in (SGP(0.1, graph=ExponentialPeers(3)), AllReduce(SGD(0.1), Dense("native"))):
        rounds = RecordedRounds(lambda sim, strategy=strategy: strategy.consensus(sim))
        budget = Budget(steps=6)
        task = Regression.drawn(4)
        Experiment(task, complete(4), strategy, coordinator=rounds, budget=budget).run()
        means.append(torch.stack(rounds.notes))
    torch.testing.assert_close(*means, rtol=0, atol=1e-14)


# -- churn ----------------------------------------------------------------------------------------

STILL = {"lr": 0.0}
"""Options with which only mixing moves parameters."""


@pytest.mark.parametrize("undelivered", ["lost", "returned"])
@pytest.mark.parametrize("overlap", [0, 2])
def test_lost_messages_leave_a_consensus_as_it_is(tiny, undelivered, overlap):
    """x and w are lost together, so their quotient does not move."""
    away = {2: [(1.5, 4.0), (7.3, 9.0)], 3: (6.2, 12.0)}
    strategy = SGP(**STILL, undelivered=undelivered, overlap=overlap)
    sim = tiny(strategy, away=away).build()
    sim.group().params = torch.arange(1.0, 9.0)
    sim.start()
    sim.run(until=20)
    assert sim.left == 3
    rows = sim.group([0, 1]).params.tensor()
    torch.testing.assert_close(rows, torch.arange(1.0, 9.0).expand(2, 8), rtol=1e-5, atol=0)


def _total(strategy, sim, ids):
    w = torch.from_numpy(strategy.w(sim)[ids]).float()
    return w.sum(), w @ sim.group(ids).params.tensor()


@pytest.mark.parametrize("graph", [ExponentialPeers(), None])
def test_who_leaves_while_it_computes_hands_over_what_it_has(tiny, graph):
    strategy = SGP(**STILL, graph=graph, leavers="hand_over")
    sim = tiny(strategy, away={2: (0.5, math.inf)}).build()
    sim.group().params = torch.randn(4, 8)
    sim.start()
    weight, mass = _total(strategy, sim, [0, 1, 2, 3])
    before = float(sim.network.totals().sent[2])
    sim.run(until=0.9)
    after, kept = _total(strategy, sim, [0, 1, 3])
    assert float(after) == pytest.approx(float(weight))
    torch.testing.assert_close(kept, mass)
    assert strategy.w(sim)[3] == 2.0  # the next one
    assert float(sim.network.totals().sent[2]) - before == 32 + 4


def test_who_leaves_while_messages_travel_hands_over_what_it_kept(tiny):
    """Half of its mass is on the way to node 0, as half of node 2's to it: that part is lost."""
    strategy = SGP(**STILL, leavers="hand_over")
    sim = tiny(strategy, away={3: (1.5, math.inf)}).build()
    sim.group().params = torch.ones(4, 8)
    sim.start()
    while sim.rounds < 2:
        sim.step()
    assert strategy.w(sim)[[0, 1, 2]].sum() == pytest.approx(4 - 2 * 0.5)


def test_a_share_that_does_not_arrive_returns_to_its_sender(tiny):
    strategy = SGP(**STILL, undelivered="returned", leavers="hand_over")
    sim = tiny(strategy, away={3: (1.5, math.inf)}).build()
    sim.group().params = torch.ones(4, 8)
    sim.start()
    while sim.rounds < 2:
        sim.step()
    assert strategy.w(sim)[[0, 1, 2]].sum() == pytest.approx(3.5)  # all but what node 3 had sent


def test_who_joins_starts_with_a_weight_of_one(tiny):
    strategy = SGP(**STILL, weights=[1, 2, 3, 4])
    sim = tiny(strategy, away={1: (0.5, 0.7)}).build()
    sim.start()
    sim.run(until=0.8)
    assert strategy.w(sim).tolist() == [1, 2, 3, 4]


# -- small things ---------------------------------------------------------------------------------


@pytest.mark.parametrize("peers", [1, 2])
def test_a_message_is_parameters_and_a_weight(tiny, peers):
    sim = tiny(SGP(graph=ExponentialPeers(peers)), budget=Budget(steps=3)).build()
    sim.start()
    sim.run(until=sim.done)
    assert sim.network.totals().sent.tolist() == [3 * peers * (8 * 4 + 4)] * 4


def test_a_message_may_take_as_long_as_the_steps_that_overlap_it(tiny):
    """Steps take 1 s, messages over one or two links up to 3.4 s."""
    ends = []
    for overlap in (0, 4):
        sim = tiny(SGP(overlap=overlap), budget=Budget(steps=4)).build()
        sim.start()
        sim.run(until=sim.done)
        ends.append(sim.now)
    assert ends[0] > 8
    assert ends[1] < 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": -1}, "strategy.lr=-1: must be >= 0"),
        ({"momentum": 1.0}, "strategy.momentum=1.0"),
        ({"nesterov": True}, "needs momentum > 0"),
        ({"overlap": -1}, "strategy.overlap=-1"),
        ({"undelivered": "dropped"}, "'dropped': must be one of lost, returned"),
        ({"leavers": "stay"}, "'stay': must be one of lost, hand_over"),
        ({"weights": [1, 0]}, "each must be > 0"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        SGP(**options)


def test_weights_of_another_number_of_nodes_are_refused(tiny):
    with pytest.raises(ValueError, match="2 numbers, but there are 4 nodes"):
        tiny(SGP(weights=[1, 2])).run()
