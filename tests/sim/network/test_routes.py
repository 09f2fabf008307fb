"""Routes: networkx as the oracle, ties, and hops that share links."""

import networkx as nx
import numpy as np
import pytest

from sim.network.routes import NoRoute, Routes


def hosts(graph, routers=()):
    """Mark nodes, and give each edge 1 byte/s and 0.1 s."""
    nx.set_node_attributes(graph, "host", "kind")
    nx.set_edge_attributes(graph, 1.0, "bandwidth")
    nx.set_edge_attributes(graph, 0.1, "latency")
    for node in routers:
        graph.nodes[node]["kind"] = "router"
    return graph


def random_graph(seed, directed=False):
    rng = np.random.default_rng(seed)
    graph = nx.gnp_random_graph(25, 0.2, seed=seed, directed=directed)
    nx.add_cycle(graph, range(25))
    hosts(graph)
    for u, v in graph.edges:
        graph.edges[u, v]["latency"] = float(rng.integers(1, 5)) * 0.1
    return graph


def nodes_on(routes, src, links):
    ends = {link: pair for pair, link in routes.index.items()}
    return [src, *(ends[link][1] for link in links)]


@pytest.mark.parametrize("directed", [False, True])
def test_latency_of_a_route_is_that_of_the_shortest_path(directed):
    graph = random_graph(0, directed)
    routes = Routes(graph)
    for src in range(25):
        shortest = nx.single_source_dijkstra_path_length(graph, src, weight="latency")
        for dst in range(25):
            plan = routes.plan([(src, dst)])
            assert plan.latency == pytest.approx(shortest[dst])
            assert nx.is_path(graph, nodes_on(routes, src, routes.path(src, dst)))


def test_ties_in_latency_go_to_fewest_hops():
    graph = random_graph(1)
    routes = Routes(graph)
    for dst in range(1, 25):
        paths = nx.all_shortest_paths(
            graph, 0, dst, weight=lambda u, v, e: round(e["latency"] * 10)
        )
        assert len(routes.path(0, dst)) == min(len(path) - 1 for path in paths)


def test_further_ties_go_to_the_lower_id():
    graph = hosts(nx.Graph([(0, 2), (0, 1), (2, 3), (1, 3)]))
    graph.edges[0, 1]["latency"] = graph.edges[2, 3]["latency"] = 0.2  # 2 is found before 1
    routes = Routes(graph)
    assert nodes_on(routes, 0, routes.path(0, 3)) == [0, 1, 3]


def test_fewest_hops_takes_the_direct_link_though_the_detour_is_faster():
    graph = hosts(nx.cycle_graph(3))
    graph.edges[0, 2]["latency"] = 1.0
    assert len(Routes(graph).path(0, 2)) == 2
    graph.graph["routing"] = "fewest_hops"
    assert len(Routes(graph).path(0, 2)) == 1


def test_to_itself_a_host_crosses_no_link():
    assert Routes(random_graph(0)).path(3, 3) == []


def test_a_plan_counts_the_hops_that_cross_a_link():
    graph = hosts(nx.path_graph(4), routers=[3])
    plan = Routes(graph).plan([(0, 1), (0, 2)])
    assert sorted(plan.loads.tolist()) == [1.0, 2.0]
    assert (plan.senders.tolist(), plan.sent.tolist()) == ([0], [2])
    assert plan.receivers.tolist() == [1, 2]


def test_the_latency_of_a_chain_of_hops_adds_up():
    graph = hosts(nx.path_graph(4))
    assert Routes(graph).plan([(0, 1), (1, 2), (2, 3)]).latency == pytest.approx(0.3)


def test_a_link_that_is_down_is_avoided_and_without_another_way_there_is_no_route():
    graph = hosts(nx.cycle_graph(3))
    routes = Routes(graph)
    for link in routes.links_between(0, 1):
        routes.set_up(link, False)
    assert nodes_on(routes, 0, routes.path(0, 1)) == [0, 2, 1]
    for link in routes.links_between(0, 2):
        routes.set_up(link, False)
    with pytest.raises(NoRoute, match="0 to 1"):
        routes.path(0, 1)


def test_a_graph_in_two_parts_is_an_error_of_the_user():
    with pytest.raises(ValueError, match="not connected"):
        Routes(hosts(nx.empty_graph(2))).path(0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.add_node(9, kind="host"), "hosts are"),
        (lambda g: g.add_node("x", kind="switch"), "kind='switch'"),
        (lambda g: g.add_edge(0, 1), "needs bandwidth"),
        (lambda g: g.graph.update(routing="fewest_hop"), "did you mean 'fewest_hops'"),
    ],
)
def test_a_wrong_graph_is_refused_by_name(change, message):
    graph = hosts(nx.empty_graph(2))
    change(graph)
    with pytest.raises(ValueError, match=message):
        Routes(graph)
