"""Routes: networkx as the oracle, ties, and hops that share links."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.network import cores
from sim.network.routes import NoRoute, Routes
from topologies import homes


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


def with_leaves(graph, n=8):
    """n more hosts in front of the nodes of a graph, which keep their kind, one link each."""
    core = len(graph)
    both = nx.relabel_nodes(graph, {node: node + n for node in graph})
    both = nx.compose(nx.empty_graph(n, create_using=type(graph)), both)
    for leaf in range(n):
        both.add_node(leaf, kind="host")
        for u, v in [(leaf, n + leaf % core), (n + leaf % core, leaf)]:
            both.add_edge(u, v, bandwidth=1.0, latency=0.1 * (1 + leaf % 3))
    return both


def nodes_on(routes, src, links):
    for link in links:
        assert routes.tail[link] == src
        src = int(routes.head[link])
        yield src


def path(routes, src, dst):
    """Nodes that a route visits."""
    return [src, *nodes_on(routes, src, routes.route(src, dst)[0])]


def from_the_contract(routes, src, dst):
    """Links of a route, put together as callers of `core` do."""
    number = routes.core(int(routes.gate[src]), int(routes.gate[dst]))
    begin, end = routes.core_ptr[number : number + 2]
    inside = routes.core_links[begin:end].tolist()
    access = [int(routes.access_up[src])], [int(routes.access_down[dst])]
    return [link for link in [*access[0], *inside, *access[1]] if link >= 0]


GRAPHS = [random_graph(0), random_graph(0, directed=True)]
GRAPHS += [hosts(nx.balanced_tree(2, 3)), hosts(nx.cycle_graph(7, create_using=nx.DiGraph))]
GRAPHS += [with_leaves(graph) for graph in GRAPHS]


@pytest.mark.parametrize("graph", GRAPHS)
def test_latency_of_a_route_is_that_of_the_shortest_path(graph):
    routes = Routes(graph)
    for src in graph:
        shortest = nx.single_source_dijkstra_path_length(graph, src, weight="latency")
        for dst in graph:
            assert routes.route(src, dst)[1] == pytest.approx(shortest[dst])
            assert nx.is_path(graph, path(routes, src, dst))
            assert path(routes, src, dst)[-1] == dst


@pytest.mark.parametrize("graph", GRAPHS)
def test_ties_in_latency_go_to_fewest_hops(graph):
    routes = Routes(graph)
    for dst in range(1, routes.n):
        paths = nx.all_shortest_paths(
            graph, 0, dst, weight=lambda u, v, e: round(e["latency"] * 10)
        )
        assert len(routes.route(0, dst)[0]) == min(len(nodes) - 1 for nodes in paths)


@pytest.mark.parametrize("graph", GRAPHS)
def test_fewest_hops_are_those_of_networkx(graph):
    graph = graph.copy()
    graph.graph["routing"] = "fewest_hops"
    routes = Routes(graph)
    for src, lengths in nx.all_pairs_shortest_path_length(graph):
        for dst, hops in lengths.items():
            assert len(routes.route(src, dst)[0]) == hops


def test_among_paths_of_fewest_hops_the_shortest_is_taken():
    graph = with_leaves(random_graph(3))
    graph.graph["routing"] = "fewest_hops"
    routes = Routes(graph)
    for dst in range(1, routes.n):
        paths = nx.all_shortest_paths(graph, 0, dst)
        shortest = min(nx.path_weight(graph, nodes, "latency") for nodes in paths)
        assert routes.route(0, dst)[1] == pytest.approx(shortest)


def test_further_ties_go_to_the_lower_id():
    graph = hosts(nx.Graph([(0, 2), (0, 1), (2, 3), (1, 3)]))
    graph.edges[0, 1]["latency"] = graph.edges[2, 3]["latency"] = 0.2  # 2 is found before 1
    assert path(Routes(graph), 0, 3) == [0, 1, 3]


def test_fewest_hops_takes_the_direct_link_though_the_detour_is_faster():
    graph = hosts(nx.cycle_graph(3))
    graph.edges[0, 2]["latency"] = 1.0
    assert len(Routes(graph).route(0, 2)[0]) == 2
    graph.graph["routing"] = "fewest_hops"
    assert len(Routes(graph).route(0, 2)[0]) == 1


@st.composite
def networks(draw):
    """A small graph with many ties, and links of it that are down."""
    n = draw(st.integers(2, 7))
    graph = nx.empty_graph(n, create_using=draw(st.sampled_from([nx.Graph, nx.DiGraph])))
    nodes = st.integers(0, n - 1)
    for u, v in draw(st.lists(st.tuples(nodes, nodes), max_size=16)):
        if u != v:
            tenths = draw(st.integers(0, 2))
            graph.add_edge(u, v, bandwidth=1.0, latency=0.1 * tenths, tenths=tenths)
    n_hosts = draw(st.integers(1, n))
    kinds = {node: "host" if node < n_hosts else "router" for node in graph}
    nx.set_node_attributes(graph, kinds, "kind")
    graph.graph["routing"] = draw(st.sampled_from(["latency", "fewest_hops"]))
    return graph, draw(
        st.lists(st.sampled_from(sorted(graph.edges)), max_size=3)
    ) if graph.edges else []


def lengths_from(graph, src):
    """(tenths of a second, hops), or the other way round, to each node: Bellman and Ford."""
    turn = -1 if graph.graph["routing"] == "fewest_hops" else 1
    lengths = {src: (0, 0)}
    for _ in graph:
        for u, v, edge in nx.DiGraph(graph).edges(data=True):
            if u in lengths:
                step = (edge["tenths"], 1)[::turn]
                there = tuple(a + b for a, b in zip(lengths[u], step))
                lengths[v] = min(lengths.get(v, there), there)
    return lengths, turn


def shortest(graph, src, dst):
    """Nodes from src to dst, at each the lowest one before it that fits; None: unreachable."""
    lengths, turn = lengths_from(graph, src)
    if dst not in lengths:
        return None
    nodes = [dst]
    while nodes[0] != src:
        into = [(u, e) for u, v, e in nx.DiGraph(graph).edges(data=True) if v == nodes[0]]
        steps = {u: (e["tenths"], 1)[::turn] for u, e in into if u in lengths}
        fits = [
            u
            for u, step in steps.items()
            if tuple(a + b for a, b in zip(lengths[u], step)) == lengths[nodes[0]]
        ]
        nodes.insert(0, min(fits))
    return nodes


@given(networks())
def test_any_route_is_that_of_a_slow_search_with_the_same_rules(case):
    graph, gone = case
    routes = Routes(graph)
    for link in {link for edge in gone for link in routes.links_between(*edge)}:
        routes.set_up(link, False)
    left = graph.copy()
    left.remove_edges_from(gone)
    for src in range(routes.n):
        for dst in range(routes.n):
            expected = shortest(left, src, dst)
            if expected is None:
                with pytest.raises(NoRoute if gone else ValueError, match="no route"):
                    routes.table([src], [dst])
            else:
                assert path(routes, src, dst) == expected
                links = routes.table([src], [dst]).links
                assert links.tolist() == routes.route(src, dst)[0].tolist()


def test_many_hosts_share_few_paths():
    graph, n = homes(3000, regions="all"), 3000
    routes, rng = Routes(graph), np.random.default_rng(0)
    src, dst = rng.integers(0, n, 5000), rng.integers(0, n, 5000)
    assert routes.table(src, dst).latency.tolist() == pytest.approx(
        [latency_between_homes(graph, *pair) for pair in zip(src.tolist(), dst.tolist())]
    )
    assert np.count_nonzero(routes.core_ptr) <= 25**2


def latency_between_homes(graph, a, b):
    if a == b:
        return 0.0
    up, down = next(iter(graph[a])), next(iter(graph[b]))
    between = graph.edges[up, down]["latency"] if up != down else 0.0
    return graph.edges[a, up]["latency"] + between + graph.edges[down, b]["latency"]


@pytest.mark.parametrize("graph", GRAPHS)
def test_access_links_and_the_path_between_gates_are_the_route(graph):
    routes = Routes(graph)
    for src in range(routes.n):
        for dst in range(routes.n):
            if src != dst:
                assert from_the_contract(routes, src, dst) == routes.route(src, dst)[0].tolist()


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_table_of_routes_is_the_routes_one_by_one(graph):
    routes = Routes(graph)
    src, dst = np.divmod(np.arange(routes.n**2), routes.n)
    lengths, links, latency, cap = routes.table(src, dst)
    ends = np.cumsum(lengths)
    for i, pair in enumerate(zip(src.tolist(), dst.tolist())):
        one = routes.route(*pair)
        assert links[ends[i] - lengths[i] : ends[i]].tolist() == one[0].tolist()
        assert (latency[i], cap[i]) == one[1:]


def test_only_hosts_that_hang_on_one_neighbor_are_single_homed():
    graph = hosts(nx.path_graph(4, create_using=nx.DiGraph))
    graph.add_edges_from([(1, 0), (2, 1), (3, 1)], bandwidth=1.0, latency=0.1)
    routes = Routes(graph)  # 3 hears from 2 but sends to 1
    assert (routes.access_up >= 0).tolist() == [True, False, False, False]
    assert (routes.access_down >= 0).tolist() == [True, False, False, False]
    assert routes.gate[0] == routes.gate[1]
    assert path(routes, 0, 3) == [0, 1, 2, 3]
    assert path(routes, 3, 0) == [3, 1, 0]


def test_two_hosts_with_one_link_between_them_cross_it_once():
    routes = Routes(hosts(nx.path_graph(2)))
    assert (path(routes, 0, 1), path(routes, 1, 0)) == ([0, 1], [1, 0])
    assert routes.route(0, 1)[1] == 0.1


def test_hosts_on_another_host_reach_it_and_each_other():
    routes = Routes(hosts(nx.star_graph(3)))  # the middle is host 0
    assert (path(routes, 1, 0), path(routes, 0, 1)) == ([1, 0], [0, 1])
    assert path(routes, 1, 2) == [1, 0, 2]


@pytest.mark.parametrize("where", [(0, 8), (8, 9), (9, 1)])
def test_one_connection_gets_the_least_that_a_link_of_its_route_allows(where):
    graph = with_leaves(hosts(nx.path_graph(2), routers=[0, 1]))
    graph.edges[where]["flow_bandwidth"] = 7.0
    routes = Routes(graph)
    assert routes.route(0, 1)[2] == routes.table([0], [1]).cap[0] == 7.0
    assert routes.route(2, 4)[2] == np.inf


def test_to_itself_a_host_crosses_no_link():
    routes = Routes(with_leaves(random_graph(0)))
    for host in (0, 9):  # single-homed, and not
        assert routes.route(host, host)[0].tolist() == []
        assert routes.route(host, host)[1:] == (0.0, np.inf)
        assert len(routes.plan([(host, host)]).senders) == 0


def test_a_host_alone_reaches_itself():
    assert Routes(hosts(nx.empty_graph(1))).plan([(0, 0)]).latency == 0.0


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
    routes = Routes(hosts(nx.cycle_graph(3)))
    for link in routes.links_between(0, 1):
        routes.set_up(link, False)
    assert path(routes, 0, 1) == [0, 2, 1]
    for link in routes.links_between(0, 2):
        routes.set_up(link, False)
    for call in (routes.route, routes.core):
        with pytest.raises(NoRoute, match=r"0 to .*1"):
            call(0, 1)
    for link in routes.links_between(0, 1):
        routes.set_up(link, True)
    assert path(routes, 0, 1) == [0, 1]


@pytest.mark.parametrize("directed", [False, True])
def test_routes_without_some_links_are_those_of_a_graph_without_them(directed):
    graph = with_leaves(random_graph(5, directed))
    routes, rng = Routes(graph), np.random.default_rng(5)
    core = [edge for edge in graph.edges if min(edge) >= 8]
    gone = [core[i] for i in rng.choice(len(core), 5, replace=False)]
    kept = graph.copy()
    kept.remove_edges_from(gone)
    routes.plan([(0, 5)])  # something to forget
    for link in [link for edge in gone for link in routes.links_between(*edge)]:
        routes.set_up(link, False)
    other = Routes(kept)
    for src in range(0, routes.n, 3):
        for dst in range(routes.n):
            assert path(routes, src, dst) == path(other, src, dst)


def test_an_access_link_that_is_down_cuts_its_host_off_one_way():
    routes = Routes(with_leaves(hosts(nx.path_graph(2), routers=[0, 1])))
    version = routes.version
    routes.plan([(0, 1)])
    routes.set_up(int(routes.access_up[0]), False)
    assert path(routes, 1, 0) == [1, 9, 8, 0]
    for call in (lambda: routes.route(0, 1), lambda: routes.plan([(0, 1)])):
        with pytest.raises(NoRoute, match="0 to 1"):
            call()
    assert routes.route(0, 0)[1] == 0.0
    assert routes.version == version  # paths between gates are what they were


def test_the_version_changes_with_a_link_between_gates():
    routes = Routes(with_leaves(hosts(nx.cycle_graph(3))))
    version = routes.version
    routes.set_up(routes.links_between(8, 9)[0], False)
    assert routes.version != version


def test_paths_are_right_after_too_many_were_remembered(monkeypatch):
    monkeypatch.setattr(cores, "_MOST_PATHS", 40)
    monkeypatch.setattr(cores, "_MOST_SEARCHED", 60)
    graph = with_leaves(random_graph(2))
    routes = Routes(graph)
    shortest = dict(nx.all_pairs_dijkstra_path_length(graph, weight="latency"))
    for src in range(routes.n):
        dst = np.arange(src, src + 5) % routes.n
        latency = routes.table(np.full(5, src), dst).latency
        assert latency == pytest.approx([shortest[src][d] for d in dst.tolist()])
    assert routes.version > 0


def test_a_graph_in_two_parts_is_an_error_that_names_the_pair():
    routes = Routes(hosts(nx.empty_graph(2)))
    for call in (routes.route, lambda a, b: routes.table([a], [b])):
        with pytest.raises(ValueError, match=r"no route from 0 to 1.*add links"):
            call(0, 1)


@pytest.mark.parametrize(
    "call",
    [lambda r: r.route(0, 2), lambda r: r.plan([(0, 1), (2, 0)]), lambda r: r.table([0], [-1])],
)
def test_a_host_that_does_not_exist_is_named(call):
    with pytest.raises(ValueError, match=r"host (2|-1): expected 0 \.\. 1"):
        call(Routes(hosts(nx.path_graph(2))))


def test_links_are_found_by_the_names_of_nodes():
    graph = hosts(nx.path_graph(3), routers=[2])
    routes = Routes(nx.relabel_nodes(graph, {2: "hub"}))
    assert [(routes.tail[i], routes.head[i]) for i in routes.links_between(1, "hub")] == [
        (1, 2),
        (2, 1),
    ]
    for ends in [(0, "hub"), (0, "rub")]:
        with pytest.raises(ValueError, match=r"no link from 0 to '.ub'"):
            routes.links_between(*ends)


def test_loss_is_a_probability_of_each_link():
    graph = hosts(nx.path_graph(3))
    graph.edges[1, 2]["loss"] = 0.25
    assert Routes(graph).loss.tolist() == [0.0, 0.0, 0.25, 0.25]


def add(graph, **attributes):
    graph.add_edge(0, 1, **({"bandwidth": 1.0, "latency": 0.1} | attributes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.add_node(9, kind="host"), "hosts are"),
        (lambda g: g.add_node("x", kind="switch"), "kind='switch'"),
        (lambda g: g.add_edge(0, 1), "needs bandwidth"),
        (lambda g: add(g, bandwidth=0), r"bandwidth of edge \(0, 1\)=0: must be > 0"),
        (lambda g: add(g, bandwidth=float("nan")), r"bandwidth of edge \(0, 1\)=nan: not a number"),
        (lambda g: add(g, bandwidth=-1.0), r"bandwidth of edge \(0, 1\)=-1"),
        (lambda g: add(g, bandwidth=True), r"bandwidth of edge \(0, 1\)=True"),
        (lambda g: add(g, bandwidth=[1]), r"bandwidth of edge \(0, 1\)=\[1\]"),
        (lambda g: add(g, latency="inf"), r"latency of edge \(0, 1\)='inf': expected 0 \.\."),
        (lambda g: add(g, flow_bandwidth=0), r"flow_bandwidth of edge \(0, 1\)=0"),
        (lambda g: add(g, loss=1.0), r"loss of edge \(0, 1\)=1.0: expected a probability"),
        (lambda g: add(g, loss="1%"), r"loss of edge \(0, 1\)='1%'"),
        (lambda g: g.graph.update(routing="fewest_hop"), "did you mean 'fewest_hops'"),
    ],
)
def test_a_wrong_graph_is_refused_by_name(change, message):
    graph = hosts(nx.empty_graph(2))
    change(graph)
    with pytest.raises(ValueError, match=message):
        Routes(graph)
