"""Random topologies: structure at the extremes, one statistic each, connectivity."""

import math

import networkx as nx
import numpy as np
import pytest

from topologies import erdos_renyi, geometric, scale_free, small_world

GENERATORS = [
    lambda seed: erdos_renyi(30, 0.3, seed=seed),
    lambda seed: small_world(30, 4, 0.3, seed=seed),
    lambda seed: scale_free(30, 2, seed=seed),
    lambda seed: geometric(30, 0.4, seed=seed),
]


@pytest.mark.parametrize("build", GENERATORS)
def test_random_graphs_are_connected_and_numbered_in_order(build):
    for seed in range(10):
        graph = build(seed)
        assert nx.is_connected(graph)
        assert list(graph) == list(range(30))


@pytest.mark.parametrize("build", GENERATORS)
def test_another_seed_gives_another_graph(build):
    assert not nx.utils.edges_equal(build(0).edges, build(1).edges)


def test_probability_one_gives_the_complete_graph():
    assert erdos_renyi(10, 1.0).size() == 45


def test_erdos_renyi_has_p_of_all_pairs_linked():
    sizes = [erdos_renyi(100, 0.2, seed=seed).size() for seed in range(20)]
    pairs = 20 * 4950
    assert abs(sum(sizes) - 0.2 * pairs) < 4 * math.sqrt(0.2 * 0.8 * pairs)


def test_a_small_world_without_moves_is_a_lattice():
    graph = small_world(12, 4, 0.0)
    assert nx.utils.edges_equal(graph.edges, nx.circulant_graph(12, [1, 2]).edges)


def test_moves_shorten_the_paths_of_a_small_world():
    lengths = [nx.average_shortest_path_length(small_world(100, 4, p)) for p in (0.0, 0.3)]
    assert lengths[1] < lengths[0] / 2


def test_scale_free_graphs_have_m_links_per_newcomer():
    assert scale_free(50, 3).size() == 3 * (50 - 3)


def test_scale_free_graphs_have_hubs():
    assert max(degree for _, degree in scale_free(500, 2).degree) > 30


def test_geometric_links_are_exactly_the_near_pairs():
    graph = geometric(40, 0.35, seed=2)
    places = np.array([graph.nodes[i]["pos"] for i in range(40)])
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    near = {(i, j) for i in range(40) for j in range(i) if distance[i, j] <= 0.35}
    assert {(max(e), min(e)) for e in graph.edges} == near


def test_geometric_latency_follows_the_distance():
    graph = geometric(40, 0.35, latency="10ms", seed=2)
    for u, v, latency in graph.edges(data="latency"):
        length = math.dist(graph.nodes[u]["pos"], graph.nodes[v]["pos"])
        assert latency == pytest.approx(0.01 * length)


def test_geometric_latency_may_be_constant():
    graph = geometric(40, 0.35, latency="10ms", by_distance=False)
    assert set(nx.get_edge_attributes(graph, "latency").values()) == {0.01}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: erdos_renyi(100, 0.001), r"p=0.001.*ln\(n\)/n = 0.0461"),
        (lambda: erdos_renyi(10, 1.5), "p=1.5.*0.0 <= p <= 1.0; nearest valid choice: p=1.0"),
        (lambda: erdos_renyi(10, math.nan), "p=nan"),
        (lambda: geometric(100, 0.01), r"radius=0.01.*= 0.121"),
        (lambda: small_world(10, 3, 0.1), "k=3: a small world needs an even k.*k=2"),
        (lambda: small_world(10, 12, 0.1), "k=12.*2 <= k <= 9"),
        (lambda: scale_free(10, 10), "m=10.*1 <= m <= 9"),
    ],
)
def test_a_value_that_cannot_connect_is_named_with_its_threshold(build, message):
    with pytest.raises(ValueError, match=message):
        build()
