"""Regular topologies against networkx's own generators and counts in closed form."""

import networkx as nx
import pytest

from topologies import complete, exponential, hypercube, random_regular, ring, star, torus


def same_links(ours, theirs):
    return nx.utils.edges_equal(ours.edges, nx.convert_node_labels_to_integers(theirs).edges)


def test_a_complete_graph_of_one_host_has_no_links():
    assert (len(complete(1)), complete(1).size()) == (1, 0)


def test_regular_topologies_have_the_edges_of_networkx():
    assert same_links(complete(6), nx.complete_graph(6))
    assert same_links(ring(7), nx.cycle_graph(7))
    assert same_links(torus(3, 5), nx.grid_2d_graph(3, 5, periodic=True))
    assert same_links(torus(2, 4), nx.grid_2d_graph(2, 4, periodic=True))
    assert same_links(hypercube(16), nx.hypercube_graph(4))


def test_a_ring_of_two_is_one_link():
    assert list(ring(2).edges) == [(0, 1)]


@pytest.mark.parametrize("n", [2, 3, 6, 8, 9, 16])
def test_exponential_hosts_send_to_the_powers_of_two(n):
    offsets = [2**k for k in range(20) if 2**k < n]
    for i, successors in exponential(n).adjacency():
        assert sorted(successors) == sorted((i + offset) % n for offset in offsets)


def test_a_star_around_a_router_keeps_hosts_apart():
    graph = star(5)
    assert graph.nodes[5]["kind"] == "router"
    assert sorted(graph.neighbors(5)) == [0, 1, 2, 3, 4]
    assert graph.size() == 5


def test_a_star_around_a_host_has_no_router():
    assert nx.utils.edges_equal(star(5, hub="host").edges, nx.star_graph(4).edges)


@pytest.mark.parametrize(("n", "degree"), [(4, 3), (8, 3), (9, 4), (50, 5), (6, 5)])
def test_every_host_of_a_random_regular_graph_has_the_degree(n, degree):
    graph = random_regular(n, degree, seed=3)
    assert list(graph) == list(range(n))
    assert {d for _, d in graph.degree} == {degree}
    assert nx.is_connected(graph)


def test_another_seed_gives_another_random_regular_graph():
    first, second = random_regular(20, 3, seed=0), random_regular(20, 3, seed=1)
    assert not nx.utils.edges_equal(first.edges, second.edges)


@pytest.mark.parametrize(
    "graph",
    [complete(4, "8Mbps", "5ms"), torus(2, 2, 1e6, 0.005), star(3, "1MBps", "5ms")],
)
def test_all_links_are_alike(graph):
    assert all(data == {"bandwidth": 1e6, "latency": 0.005} for *_, data in graph.edges(data=True))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ring(1), "n=1: a ring needs n >= 2; nearest valid choice: n=2"),
        (lambda: ring(2.5), "n=2.5: a ring needs a whole number"),
        (lambda: ring(True), "n=True"),
        (lambda: complete(0), "n=0: a complete graph needs n >= 1"),
        (lambda: torus(1, 4), "rows=1: a torus needs rows >= 2"),
        (lambda: hypercube(6), "n=6: a hypercube needs a power of two; nearest valid choice: n=8"),
        (lambda: hypercube(5), "n=4"),
        (lambda: exponential(1), "n=1"),
        (lambda: star(1, hub="host"), "n=1: a star around a host needs n >= 2"),
        (lambda: star(3, hub="rooter"), "did you mean 'router'"),
        (lambda: random_regular(8, 8), "degree=8.*3 <= degree <= 7.*degree=7"),
        (lambda: random_regular(9, 3), "must be even; nearest valid choice: degree=4"),
        (lambda: random_regular(8, 3, seed=-1), "seed=-1"),
        (lambda: ring(3, bandwidth="10 Mbs"), "unknown unit 'Mbs'"),
        (lambda: ring(3, latency="-1ms"), "latency"),
    ],
)
def test_a_value_out_of_range_is_named_with_the_nearest_valid_choice(build, message):
    with pytest.raises(ValueError, match=message):
        build()
