"""Links, hosts and the validation of a topology graph."""

import math

import networkx as nx
import pytest

from topologies import hosts, n_hosts, ring, set_links, star, validate
from topologies.links import link


def test_a_link_reads_strings_as_bytes_per_second_and_seconds():
    assert link("100Mbps", "50ms", "8Mbps") == {
        "bandwidth": 12.5e6,
        "latency": 0.05,
        "flow_bandwidth": 1e6,
    }


def test_a_link_may_be_infinitely_wide_but_not_infinitely_late():
    assert link("inf", 0)["bandwidth"] == math.inf
    with pytest.raises(ValueError, match="finite"):
        link("1Gbps", "inf")


def test_set_links_keeps_the_kinds_that_are_there():
    graph = nx.star_graph(3)
    graph.nodes[3]["kind"] = "router"
    assert hosts(set_links(graph, 1, 0)) == [0, 1, 2]


def test_hosts_are_counted_without_routers():
    assert n_hosts(star(5)) == 5
    assert hosts(star(5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bandwidth", 0, r"edge \(0, 1\): bandwidth=0 must be > 0"),
        ("bandwidth", math.nan, "bandwidth=nan"),
        ("bandwidth", "100Mbps", "'100Mbps' must be a number"),
        ("bandwidth", None, "bandwidth=None"),
        ("bandwidth", True, "bandwidth=True"),
        ("latency", -0.1, "latency=-0.1 must be finite"),
        ("latency", math.inf, "latency=inf must be finite"),
        ("latency", math.nan, "latency=nan"),
        ("latency", 1e7, "latency=10000000.0 must be finite"),
        ("flow_bandwidth", 0, "flow_bandwidth=0"),
        ("loss", 1.0, r"edge \(0, 1\): loss=1.0 must be >= 0 and < 1"),
        ("loss", math.nan, "loss=nan"),
        ("loss", "1%", "loss='1%' must be a number"),
    ],
)
def test_a_bad_attribute_is_named_with_its_edge_and_value(key, value, message):
    graph = ring(4)
    graph.edges[0, 1][key] = value
    with pytest.raises(ValueError, match=message):
        validate(graph)


def test_a_host_without_links_is_refused():
    graph = ring(4)
    graph.add_node(4, kind="host")
    with pytest.raises(ValueError, match="host 4: cannot be reached from host 0"):
        validate(graph)


def test_a_host_that_only_receives_is_refused():
    graph = ring(4).to_directed()
    graph.add_node(4, kind="host")
    graph.add_edge(0, 4, **link(1, 0))
    with pytest.raises(ValueError, match="host 4: cannot reach host 0"):
        validate(graph)


def test_a_router_may_hang_loose():
    graph = ring(4)
    graph.add_node(4, kind="router")
    validate(graph)
    assert n_hosts(graph) == 4


@pytest.mark.parametrize("names", [{0: "a"}, {0: 9}, {0: -1}, {0: 0.5}])
def test_nodes_that_are_not_numbered_from_zero_are_refused(names):
    with pytest.raises(ValueError, match=r"nodes must be the integers 0 \.\. 3"):
        validate(nx.relabel_nodes(ring(4), names))


def test_hosts_come_before_routers():
    graph = nx.relabel_nodes(star(3), {0: 3, 3: 0})
    with pytest.raises(ValueError, match="node 3: a host comes after a router"):
        validate(graph)


def test_an_unknown_kind_is_refused():
    graph = ring(4)
    graph.nodes[2]["kind"] = "switch"
    with pytest.raises(ValueError, match="node 2: kind='switch'"):
        validate(graph)


def test_a_topology_needs_a_host():
    graph = nx.empty_graph(1)
    graph.nodes[0]["kind"] = "router"
    with pytest.raises(ValueError, match="at least 1 node"):
        validate(graph)


def test_a_self_loop_is_refused():
    graph = ring(4)
    graph.add_edge(2, 2, **link(1, 0))
    with pytest.raises(ValueError, match=r"edge \(2, 2\)"):
        validate(graph)


def test_an_unknown_routing_names_the_nearest():
    graph = ring(4)
    graph.graph["routing"] = "fewest_hop"
    with pytest.raises(ValueError, match="did you mean 'fewest_hops'"):
        validate(graph)


def test_a_multigraph_is_refused():
    with pytest.raises(ValueError, match="MultiGraph"):
        validate(nx.MultiGraph(ring(4)))
