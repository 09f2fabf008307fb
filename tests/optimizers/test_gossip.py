"""AD-PSGD's exchange is atomic; D-PSGD with other weights, and with neighbours that are away."""

import math
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
import torch
from scipy import sparse

from experiments.validate.golden.problems import Forced
from experiments.validate.golden.recorders import rows_of
from optimizers import ADPSGD, CHOCO, DPSGD, SGP
from optimizers.schedule import Schedule
from sim.budget import Budget
from sim.compute.device import Device
from sim.compute.layout import Layout
from sim.coordinators import Elastic, Psyche
from sim.payload import Dense
from topologies import complete, exponential, ring
from topologies.links import link

STILL = 0.0
"""A learning rate with which only averaging moves parameters."""


def _started(tiny, strategy, n, topology=None, **parts):
    parts |= {"topology": topology} if topology is not None else {}
    sim = tiny(strategy, n=n, **parts).build()
    generator = torch.Generator().manual_seed(0)
    sim.group().params = torch.randn(len(sim.online), 8, generator=generator)
    sim.start()
    return sim, rows_of(sim).clone()


FAST = {"bandwidth": "1Gbps", "latency": "10ms"}  # exchanges are over long before gradients are


@pytest.mark.parametrize("graph", [ring, complete, exponential])
@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_exchanges_keep_the_mean_of_the_fleet(tiny, graph, n):
    device = Device(speed=48, mfu=1, jitter=0)
    sim, start = _started(tiny, ADPSGD(STILL), n, graph(n, **FAST), device=device)
    spread = [start.var(0).sum()]
    for step in range(12):
        sim.run(until=step + 0.6)
        rows = rows_of(sim)
        torch.testing.assert_close(rows.mean(0), start.mean(0))
        spread.append(rows.var(0).sum())
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in pairwise(spread))
    assert spread[-1] < 0.2 * spread[0]


def test_both_ends_are_set_to_their_mean(tiny):
    sim, start = _started(tiny, ADPSGD(STILL), 2, complete(2, **FAST))
    sim.run(until=0.6)
    torch.testing.assert_close(rows_of(sim), start.mean(0).expand(2, 8))


def test_steps_that_overtake_an_exchange_are_not_lost(tiny):
    """Messages take 2.5 s, steps 1 s: gradients of one everywhere move the mean by lr a step."""
    slow = complete(2, bandwidth=1e9, latency=2.5)
    task = Forced(torch.ones(60, 2, 8), Layout({"x": (8,)}), torch.zeros(8))
    device = Device(speed=48, mfu=1, jitter=0)
    strategy = ADPSGD(0.1)
    sim, start = _started(tiny, strategy, 2, slow, task=task, device=device)
    while not sim.completed.all() or sim.now < 30 or sim.network.transfers():
        sim.step()
    sim.run(until=sim.now + 1e-3)  # what arrived last is in
    moved = rows_of(sim).sum(0) - start.sum(0)
    torch.testing.assert_close(moved, torch.full((8,), -0.1 * float(sim.completed.sum())))
    assert sim.completed.sum() > 40


@pytest.mark.parametrize("n", [2, 4])
def test_a_message_each_way_in_an_exchange(tiny, n):
    sim, _ = _started(tiny, ADPSGD(), n, complete(n, **FAST), budget=Budget(steps=5))
    sim.run(until=4.5)
    totals = sim.network.totals()
    assert totals.sent.sum() == 5 * (n // 2) * 2 * 32
    assert totals.sent[0] == 5 * 32


def test_a_partner_that_leaves_before_it_answers_changes_nothing(tiny):
    pair = complete(2, bandwidth=1e9, latency=0.3)
    sim, start = _started(tiny, ADPSGD(STILL), 2, pair, away={1: (0.4, math.inf)})
    sim.run(until=10)
    torch.testing.assert_close(rows_of(sim)[0], start[0])
    assert sim.completed[0] >= 9


def test_exchanges_go_on_with_a_partner_that_came_back(tiny):
    pair = complete(2, bandwidth=1e9, latency=0.3)
    away = {1: [(0.4, 2.5), (3.7, 5.2)]}
    sim, _ = _started(tiny, ADPSGD(STILL), 2, pair, away=away, coordinator=Elastic())
    sim.run(until=20)
    rows = rows_of(sim)
    torch.testing.assert_close(rows[0], rows[1])


# -- D-PSGD ---------------------------------------------------------------------------------------


def test_other_weights_than_those_of_metropolis(tiny):
    matrix = np.array([[0.9, 0.1, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 1, 0], [0.2, 0.2, 0.2, 0.4]])
    strategy = DPSGD(STILL, "adapt_then_combine", sparse.csr_array(matrix))
    sim, start = _started(tiny, strategy, 4, budget=Budget(steps=1))
    sim.run(until=sim.done)
    torch.testing.assert_close(rows_of(sim), torch.from_numpy(matrix).float() @ start)


@pytest.mark.parametrize("missing", ["self", "rescale"])
def test_where_the_weight_of_a_node_that_is_away_goes(tiny, missing):
    strategy = DPSGD(STILL, missing=missing)
    sim, (x0, x1, _) = _started(tiny, strategy, 4, away={2: (0.0, 50.0)})  # in a ring
    while sim.rounds < 2:
        sim.step()
    wanted = (2 * x1 + x0) / 3 if missing == "self" else (x1 + x0) / 2
    torch.testing.assert_close(rows_of(sim)[1], wanted)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": -0.1}, "strategy.lr=-0.1: must be >= 0"),
        ({"missing": "drop"}, "strategy.missing='drop'"),
        ({"weights": sparse.eye_array(3)}, "must be 4 rows of 4 that sum to 1"),
        ({"weights": 2 * sparse.eye_array(4)}, "must be 4 rows of 4 that sum to 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(tiny, options, said):
    with pytest.raises(ValueError, match=said):
        tiny(DPSGD(**options)).run()


@dataclass(frozen=True)
class Halving(Schedule):
    """1, 1/2, 1/4, ..."""

    def factor(self, age):
        return 0.5 ** age.double()


@pytest.mark.parametrize(
    "strategy",
    [
        DPSGD(0.1, schedule=Halving()),
        DPSGD(0.1, "adapt_then_combine", schedule=Halving()),
        ADPSGD(0.1, schedule=Halving()),
        CHOCO(0.1, schedule=Halving()),
        SGP(0.1, schedule=Halving()),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_rates_follow_the_steps_of_each_node(tiny, strategy):
    """Gradients of one, from a common start: sums of a geometric series."""
    task = Forced(torch.ones(9, 4, 8), Layout({"x": (8,)}), torch.zeros(8))
    sim = tiny(strategy, task=task, budget=Budget(steps=3)).build()
    sim.start()
    sim.run(until=sim.done)
    moved = -0.1 * (2 - 0.5 ** (sim.completed - 1)).mean()
    torch.testing.assert_close(strategy.consensus(sim), torch.full((8,), float(moved)))


@pytest.mark.parametrize("order", ["combine_while_adapt", "adapt_then_combine"])
def test_messages_that_are_late_one_way_do_not_move_the_mean(tiny, order):
    """Node 2 sends too slowly for any round, and hears the others in time."""
    slow = nx.DiGraph()
    slow.add_nodes_from(range(4), kind="host")
    slow.add_node(4, kind="router")
    for i in range(4):
        slow.add_edge(i, 4, **link(4.0 if i == 2 else 1e6, 1e-3))
        slow.add_edge(4, i, **link(1e6, 1e-3))
    rounds = Psyche(warmup_time=1.0, max_round_train_time=5.0, round_witness_time=0.1)
    parts = {"overlay": ring(4), "coordinator": rounds, "budget": Budget(seconds=60)}
    sim, start = _started(tiny, DPSGD(STILL, order), 4, slow, **parts)
    sim.run(until=sim.done)
    rows = rows_of(sim)
    assert sim.rounds > 8
    torch.testing.assert_close(rows.mean(0), start.mean(0))
    torch.testing.assert_close(rows[2], start[2])
    others = [0, 1, 3]
    torch.testing.assert_close(rows[others], start[others].mean(0).expand(3, 8), rtol=0, atol=0.1)


STILL_GOSSIP = [DPSGD(STILL), ADPSGD(STILL), CHOCO(STILL, compressor=Dense()), SGP(STILL)]


@pytest.mark.parametrize("strategy", STILL_GOSSIP, ids=lambda s: type(s).__name__)
def test_how_far_nodes_are_apart_is_recorded_and_falls(tiny, strategy):
    sim, start = _started(tiny, strategy, 4, complete(4, **FAST), budget=Budget(steps=30))
    sim.run(until=sim.done)
    sim.progress.evaluate()
    rows = rows_of(sim).double()
    wanted = (rows - rows.mean(0)).square().sum(1).mean().sqrt()
    spread = sim.trace["metric"]["spread"]
    assert spread.iloc[-1] == pytest.approx(float(wanted), abs=1e-5)
    assert spread.iloc[-1] < 0.3 * float((start - start.mean(0)).square().sum(1).mean().sqrt())
