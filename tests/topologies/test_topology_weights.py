"""Mixing matrices: doubly stochastic, with the spectral gaps that theory gives."""

import math

import networkx as nx
import numpy as np
import pytest

from topologies import (
    complete,
    exponential,
    hypercube,
    ring,
    scale_free,
    set_links,
    small_world,
    star,
    torus,
)
from topologies.weights import metropolis_weights, restrict, spectral_gap, uniform_weights

IRREGULAR = [scale_free(20, 2), small_world(20, 4, 0.5), star(9, hub="host"), complete(1)]


def is_doubly_stochastic(weights):
    dense = weights.toarray()
    return (dense >= 0).all() and np.allclose([dense.sum(0), dense.sum(1)], 1.0)


@pytest.mark.parametrize("graph", IRREGULAR)
def test_metropolis_weights_are_symmetric_and_doubly_stochastic(graph):
    weights = metropolis_weights(graph)
    assert is_doubly_stochastic(weights)
    assert np.array_equal(weights.toarray(), weights.toarray().T)


def test_metropolis_weights_are_those_of_the_definition():
    graph = scale_free(12, 2)
    weights = metropolis_weights(graph).toarray()
    for i, j in graph.edges:
        expected = 1 / (1 + max(graph.degree(i), graph.degree(j)))
        assert weights[i, j] == pytest.approx(expected)


def test_both_weights_agree_on_regular_graphs():
    graph = hypercube(8)
    assert np.allclose(metropolis_weights(graph).toarray(), uniform_weights(graph).toarray())


def test_a_directed_host_averages_what_it_hears():
    weights = uniform_weights(exponential(8)).toarray()
    assert np.flatnonzero(weights[0]).tolist() == [0, 4, 6, 7]
    assert is_doubly_stochastic(uniform_weights(exponential(8)))


def test_gossip_with_all_neighbors_averages_in_one_round():
    x = np.arange(6.0)
    assert np.allclose(metropolis_weights(complete(6)) @ x, x.mean())


def test_gossip_keeps_the_mean_and_shrinks_the_disagreement_by_the_gap():
    weights = metropolis_weights(scale_free(20, 2))
    x = np.random.default_rng(0).normal(size=20)
    mixed = weights @ x
    assert mixed.mean() == pytest.approx(x.mean())
    assert np.std(mixed) <= (1 - spectral_gap(weights)) * np.std(x) * (1 + 1e-9)


@pytest.mark.parametrize("n", [4, 8, 16, 64])
def test_the_gap_of_a_ring_is_the_closed_form(n):
    expected = 1 - (1 + 2 * math.cos(2 * math.pi / n)) / 3
    assert spectral_gap(metropolis_weights(ring(n))) == pytest.approx(expected)


@pytest.mark.parametrize("n", [4, 8, 16, 64, 256])
def test_the_gap_of_the_exponential_graph_is_the_published_one(n):
    # Theorem 1 of arXiv:2110.13363, for even n.
    assert spectral_gap(uniform_weights(exponential(n))) == pytest.approx(2 / (1 + math.log2(n)))


@pytest.mark.parametrize(("side", "gap"), [(4, 0.4), (8, 0.117157), (16, 0.0304482)])
def test_the_gap_of_a_torus_is_that_of_power_iteration(side, gap):
    assert spectral_gap(metropolis_weights(torus(side, side))) == pytest.approx(gap, rel=1e-5)


def test_one_host_agrees_with_itself():
    assert spectral_gap(metropolis_weights(complete(1))) == 1.0


def test_the_weight_of_lost_neighbors_returns_to_self():
    weights = metropolis_weights(ring(6))
    rest = restrict(weights, [0, 1, 3]).toarray()
    third = 1 / 3
    expected = [[2 * third, third, 0], [third, 2 * third, 0], [0, 0, 1]]
    assert np.allclose(rest, expected)


def test_restricted_weights_follow_the_order_of_the_members():
    weights = metropolis_weights(scale_free(10, 2))
    dense = restrict(weights, [2, 5, 7]).toarray()
    assert np.allclose(restrict(weights, [7, 2, 5]).toarray(), dense[np.ix_([2, 0, 1], [2, 0, 1])])


def test_restricted_to_all_the_weights_are_unchanged():
    weights = metropolis_weights(scale_free(10, 2))
    assert np.allclose(restrict(weights, range(10)).toarray(), weights.toarray())


def test_a_group_without_members_has_no_weights():
    assert restrict(metropolis_weights(ring(4)), []).shape == (0, 0)


def test_a_self_loop_counts_for_nothing():
    graph = ring(4)
    graph.add_edge(0, 0)
    assert np.allclose(metropolis_weights(graph).toarray(), metropolis_weights(ring(4)).toarray())


def test_routers_cannot_gossip():
    with pytest.raises(ValueError, match="1 of 5 nodes are routers"):
        metropolis_weights(star(4))


def test_uniform_weights_need_a_regular_graph():
    with pytest.raises(ValueError, match="degrees from 1 to 3"):
        uniform_weights(set_links(nx.star_graph(3), 1, 0))


def test_metropolis_weights_need_an_undirected_graph():
    with pytest.raises(ValueError, match="undirected"):
        metropolis_weights(exponential(4))


def test_a_gap_needs_stochastic_rows():
    with pytest.raises(ValueError, match="sum to 1"):
        spectral_gap(np.ones((2, 2)))
