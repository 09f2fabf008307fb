"""Ring orders against all permutations, and what it costs to learn the costs."""

from itertools import permutations

import numpy as np
import pytest

from sim.network import closed_forms as closed
from sim.network.probe import rounds
from sim.network.ring_order import find_order, slowest_hop, sum_of_hops

value = {"min_max": slowest_hop, "min_sum": sum_of_hops}
objectives = pytest.mark.parametrize("objective", value)


def costs(n, seed, symmetric=False):
    matrix = np.random.default_rng(seed).uniform(1.0, 10.0, (n, n))
    return matrix + matrix.T if symmetric else matrix


@objectives
@pytest.mark.parametrize("n", [2, 3, 5, 7])
@pytest.mark.parametrize("seed", range(4))
def test_few_members_get_the_best_order_there_is(objective, n, seed):
    matrix = costs(n, seed)
    best = min(value[objective](matrix, [0, *rest]) for rest in permutations(range(1, n)))
    order = find_order(matrix, objective)
    assert sorted(order) == list(range(n))
    assert value[objective](matrix, order) == pytest.approx(best, rel=1e-12)


@objectives
@pytest.mark.parametrize("symmetric", [True, False])
def test_many_members_get_a_better_order_than_the_best_of_many_at_random(objective, symmetric):
    matrix, rng = costs(24, 3, symmetric), np.random.default_rng(0)
    order = find_order(matrix, objective)
    drawn = min(value[objective](matrix, rng.permutation(24).tolist()) for _ in range(2000))
    assert sorted(order) == list(range(24))
    assert value[objective](matrix, order) < 0.9 * drawn
    assert order == find_order(matrix, objective)


def test_a_ring_that_is_hidden_among_slow_hops_is_found():
    n = 30
    hidden = np.random.default_rng(1).permutation(n)
    matrix = np.full((n, n), 10.0)
    matrix[hidden, np.roll(hidden, -1)] = 1.0
    for objective in value:
        assert slowest_hop(matrix, find_order(matrix, objective)) == 1.0


@pytest.mark.parametrize("wrong", [np.ones((2, 3)), -costs(4, 0), np.full((4, 4), np.nan)])
def test_costs_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        find_order(wrong, "min_sum")


@objectives
@pytest.mark.parametrize("mode", ["coupled", "flows"])
def test_a_network_orders_its_rings(env, access, objective, mode):
    up, down = [40.0, 10.0, 40.0, 10.0], [10.0, 40.0, 10.0, 40.0]
    network = access(up, down, ring_order=objective, collectives=mode)
    env.run(network.all_reduce(range(4), 400.0))  # 0 -> 1 -> .. has a hop at 40, others at 10
    assert env.now == pytest.approx(closed.ring_all_reduce_seconds(400.0, 4, 10.0))


def test_an_order_with_fast_hops_only_is_preferred(env, attach, two_sites):
    for order, hops in (("given", 1.0), ("min_max", 1.0), ("min_sum", 1.0)):
        network, began = attach(two_sites, ring_order=order), env.now
        env.run(network.all_reduce([0, 2, 1, 3], 400.0))
        crossings = 2 if order == "given" else 1
        expected = closed.ring_all_reduce_seconds(400.0, 4, hops / crossings)
        assert env.now - began == pytest.approx(expected)


def test_an_order_that_is_measured_serves_the_second_ring_and_costs_its_bytes(
    env, attach, two_sites
):
    network = attach(two_sites, ring_order="min_sum", probe_bytes=10)
    first = env.run(network.all_reduce([0, 2, 1, 3], 400.0))
    env.run()  # the probe may be under way still
    alone = closed.ring_all_reduce_seconds(400.0, 4, 0.5)  # two hops of the given order cross
    assert first.finished > alone + 1.0  # and the probe took its share of the slow link
    assert network.totals().sent.sum() == pytest.approx(4 * 600.0 + 4 * 3 * 10.0)
    began = env.now
    env.run(network.all_reduce([0, 2, 1, 3], 400.0))
    assert env.now - began == pytest.approx(closed.ring_all_reduce_seconds(400.0, 4, 1.0))


def test_a_probe_that_lost_a_member_is_made_again_for_those_that_are_left(env, attach, two_sites):
    network = attach(two_sites, ring_order="min_max", probe_bytes=10, detection=0)
    network.all_reduce([0, 2, 1, 3], 40.0)
    env.timeout(5.0).callbacks.append(lambda _: network.leave(3))
    env.run()
    before = network.totals().sent.sum()
    env.run(network.all_reduce([0, 2, 1], 3.0))
    env.run()
    assert network.totals().sent.sum() - before == pytest.approx(3 * 4.0 + 3 * 2 * 10.0)


@pytest.fixture
def two_sites():
    """Hosts 0, 1 behind one router and 2, 3 behind another; a slow link between the routers."""
    import networkx as nx

    graph = nx.Graph()
    graph.add_nodes_from(range(4), kind="host")
    graph.add_nodes_from([4, 5], kind="router")
    for host in range(4):
        graph.add_edge(host, 4 + host // 2, bandwidth=100.0, latency=0.0)
    graph.add_edge(4, 5, bandwidth=1.0, latency=0.0)
    return graph


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_a_tournament_pairs_all_in_rounds_of_disjoint_pairs(n):
    games = list(rounds(n))
    pairs = [frozenset(pair) for game in games for pair in game]
    assert set(pairs) == {frozenset((a, b)) for a in range(n) for b in range(a)}
    assert len(pairs) == len(set(pairs))
    for game in games:
        players = [player for pair in game for player in pair]
        assert len(players) == len(set(players))


@pytest.mark.parametrize("n", [4, 5])
def test_a_probe_measures_what_it_pays_for(env, access, n):
    up, down = np.linspace(10, 40, n), np.linspace(40, 15, n)
    network = access(up, down, header_bytes=0)
    probe = env.run(network.probe(range(n), 100.0))
    expected = np.minimum.outer(up, down)
    np.fill_diagonal(expected, np.inf)
    assert probe.bandwidth == pytest.approx(expected)
    games = [[*game, *((b, a) for a, b in game)] for game in rounds(n)]
    slowest = sum(max(100.0 / min(up[a], down[b]) for a, b in game) for game in games)
    assert probe.seconds == env.now == pytest.approx(slowest)
    assert probe.nbytes == network.totals().sent.sum() == 100.0 * n * (n - 1)


def test_a_probe_of_one_that_has_left_measures_nothing(env, access):
    network = access([10.0] * 3)
    network.leave(1)
    probe = env.run(network.probe(range(3), 100.0))
    assert probe.bandwidth[1].tolist() == [0.0, np.inf, 0.0]
    assert probe.bandwidth[0, 2] == 10.0
