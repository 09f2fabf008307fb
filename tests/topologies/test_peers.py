"""Directed graphs that change from round to round, and the split into active and passive nodes."""

import networkx as nx
import numpy as np
import pytest

from topologies import ExponentialPeers, complete, erdos_renyi, exponential, ring, torus
from topologies.peers import active_nodes, links
from topologies.weights import push_weights


@pytest.mark.parametrize("n", range(2, 18))
def test_one_peer_in_turn_sends_along_the_static_exponential_graph(n):
    peers, graph = ExponentialPeers(), exponential(n)
    turns = len(peers.distances(n))
    edges = {(i, int(peers.receivers(n, t)[i, 0])) for t in range(turns) for i in range(n)}
    assert edges == set(graph.edges)


def test_both_directions_of_six_nodes_have_a_distance_twice():
    distances = np.array(ExponentialPeers(directions="both").distances(6)) % 6
    assert distances.tolist() == [1, 5, 2, 4, 4, 2]


def test_several_peers_go_to_multiples_of_powers():
    assert ExponentialPeers(peers=2).distances(9) == [1, 2, 3, 6]
    assert ExponentialPeers(peers=2).receivers(9, number=1)[0].tolist() == [3, 6]
    assert ExponentialPeers(peers=2).receivers(9, number=2)[0].tolist() == [1, 2]


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("peers", [1, 2, 4])
@pytest.mark.parametrize("directions", ["forward", "both"])
def test_what_is_sent_and_kept_is_what_there_was(n, peers, directions):
    graph = ExponentialPeers(peers, directions)
    for number in range(5):
        weights = push_weights(links(graph.receivers(n, number)))
        np.testing.assert_allclose(weights.sum(axis=0), 1.0)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_power_of_two_has_the_mean_after_as_many_rounds(k):
    values, n = np.arange(2.0**k), 2**k
    for number in range(k):
        values = push_weights(links(ExponentialPeers().receivers(n, number))) @ values
    np.testing.assert_allclose(values, (n - 1) / 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"peers": 0}, "peers=0"), ({"directions": "forwards"}, "did you mean 'forward'")],
)
def test_what_is_no_graph_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        ExponentialPeers(**arguments)


GRAPHS = {
    "ring of 5": ring(5),
    "ring of 6": ring(6),
    "torus": torus(3, 4),
    "complete": complete(9),
    "directed": exponential(11),
    "random": erdos_renyi(30, 0.2, seed=1),
    "apart": nx.Graph([(0, 1), (2, 3)]),
    "pair": complete(2),
    "alone": complete(1),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_edges_between_active_and_passive_nodes_keep_a_graph_connected(name):
    graph = GRAPHS[name].to_undirected()
    active = active_nodes(GRAPHS[name])
    between = nx.Graph((i, j) for i, j in graph.edges if active[i] != active[j])
    between.add_nodes_from(graph)
    parts = {frozenset(part) for part in nx.connected_components(graph)}
    assert {frozenset(part) for part in nx.connected_components(between)} == parts
    assert 2 * between.size() >= graph.size()
    if nx.is_bipartite(graph):
        assert between.size() == graph.size()
