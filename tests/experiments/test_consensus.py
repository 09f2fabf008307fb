"""Gossip averaging: errors beside spectra, times beside sums done by hand."""

import networkx as nx
import numpy as np
import pytest

from experiments import consensus
from topologies import complete, exponential, ring, star, torus
from topologies.weights import metropolis_weights, uniform_weights

SIZE, RATE, DELAY = 1000.0, 100.0, 0.5  # bytes, bytes/s, s of each link


def mixing(graph):
    return [metropolis_weights(graph)]


@pytest.mark.parametrize("n", [2, 8, 64])
def test_one_peer_exponential_is_exact_after_log2_n_rounds(n):
    product = np.eye(n)
    for matrix in consensus.one_peer_exponential(n):
        product = matrix @ product
    assert product == pytest.approx(np.full((n, n), 1 / n))


def test_each_node_of_a_one_peer_round_hears_one_other():
    second = consensus.one_peer_exponential(8)[1].toarray()
    assert [set(np.flatnonzero(row)) for row in second[:3]] == [{0, 6}, {1, 7}, {2, 0}]


@pytest.mark.parametrize("n", [0, 1, 6])
def test_one_peer_exponential_needs_a_power_of_two(n):
    with pytest.raises(ValueError, match=f"n={n}: must be a power of two, such as"):
        consensus.one_peer_exponential(n)


@pytest.mark.parametrize("graph", [ring(9), torus(4, 5), nx.hypercube_graph(3)])
def test_the_error_falls_by_what_the_spectrum_says(graph):
    graph = nx.convert_node_labels_to_integers(graph)
    nx.set_node_attributes(graph, "host", "kind")
    eigenvalues = np.linalg.eigvalsh(metropolis_weights(graph).toarray())
    second = np.sort(np.abs(eigenvalues))[-2]
    path = consensus.errors(mixing(graph), rounds=60, floor=1e-14)
    assert path[-1] / path[-2] == pytest.approx(second, rel=0.02)
    assert consensus.decades(mixing(graph)) == pytest.approx(np.log10(second))


def test_the_complete_graph_agrees_in_one_round():
    path = consensus.errors(mixing(complete(6)), rounds=10)
    assert path.tolist() == [1.0, pytest.approx(0.0, abs=1e-12)]
    assert consensus.decades(mixing(complete(6))) == -np.inf


def test_matrices_in_turn_have_no_slope():
    assert np.isnan(consensus.decades(consensus.one_peer_exponential(4)))


def test_a_seed_draws_other_vectors():
    one, same, other = (consensus.errors(mixing(ring(8)), 5, seed) for seed in (0, 0, 1))
    assert one.tolist() == same.tolist() != other.tolist()


def test_a_round_on_links_of_its_own_takes_latency_and_bytes():
    ends = consensus.round_ends(ring(6, RATE, DELAY), mixing(ring(6)), SIZE, rounds=3)
    assert ends == pytest.approx((DELAY + SIZE / RATE) * np.arange(4))


def test_a_round_through_one_access_link_takes_a_message_per_neighbour():
    ends = consensus.round_ends(star(8, RATE, DELAY), [uniform_weights(exponential(8))], SIZE, 2)
    assert ends == pytest.approx((2 * DELAY + 3 * SIZE / RATE) * np.arange(3))


def test_a_ring_all_reduce_takes_its_closed_form():
    seconds = consensus.all_reduce_seconds(ring(5, RATE, DELAY), 5, SIZE)
    assert seconds == pytest.approx(8 * (DELAY + SIZE / 5 / RATE))


def test_a_comparison_has_a_row_per_round_and_says_when_an_error_was_reached():
    mixings = {"complete": mixing(complete(4)), "ring": mixing(ring(4))}
    table = consensus.compare(mixings, {"lan": complete(4, RATE, DELAY)}, SIZE, 5, seeds=[0, 1])
    assert table.groupby("topology")["round"].max().to_dict() == {"complete": 1, "ring": 5}
    found = consensus.reached(table, 1e-4)
    assert found.loc[("lan", "complete")].tolist() == [1, pytest.approx(DELAY + SIZE / RATE)]
    assert found.loc[("lan", "ring")].isna().all()


@pytest.mark.parametrize("size", [0, "0MB", -1])
def test_a_message_without_bytes_is_refused(size):
    with pytest.raises(ValueError, match="nbytes"):
        consensus.round_ends(ring(4), mixing(ring(4)), size, 1)
