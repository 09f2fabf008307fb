"""Data centres, and mixtures of sites."""

import networkx as nx
import pytest

from topologies import Site, datacenter, homes, mix, n_hosts, ring, set_links, validate

GIGABIT = 1e9 / 8


def test_hosts_of_a_data_centre_share_nothing_but_their_own_links():
    graph = datacenter(6)
    assert sorted(graph.neighbors(6)) == [0, 1, 2, 3, 4, 5]
    assert graph.edges[0, 6]["bandwidth"] == 400 * GIGABIT


def test_a_data_centre_may_have_one_host():
    assert len(datacenter(1)) == 2


def test_the_link_of_a_leaf_is_oversubscribed():
    graph = datacenter(8, "100Gbps", hosts_per_leaf=4, oversubscription=2)
    assert graph.edges[8, 10]["bandwidth"] == 4 * 100 * GIGABIT / 2
    assert nx.shortest_path(graph, 0, 7) == [0, 8, 10, 9, 7]
    assert nx.shortest_path(graph, 0, 3) == [0, 8, 3]


def test_the_last_leaf_may_be_partly_empty():
    graph = datacenter(9, hosts_per_leaf=4)
    assert [graph.degree(leaf) for leaf in (9, 10, 11)] == [5, 5, 2]


def test_oversubscription_needs_leaves():
    with pytest.raises(ValueError, match="oversubscription=2: one switch has none"):
        datacenter(8, oversubscription=2)


@pytest.fixture
def mixture():
    return mix(
        [
            Site(datacenter(2), "East US", name="lab"),
            Site(homes(3, spread=0), "West Europe", bandwidth="inf"),
            Site(datacenter(2), "East US"),
        ]
    )


def test_hosts_are_numbered_site_by_site(mixture):
    sites = [mixture.nodes[i]["site"] for i in range(n_hosts(mixture))]
    assert sites == ["lab"] * 2 + ["West Europe 1"] * 3 + ["East US 2"] * 2


def test_a_mixture_is_a_valid_topology_in_one_piece(mixture):
    validate(mixture)
    assert nx.is_strongly_connected(mixture)


def test_sites_of_one_region_meet_in_its_router(mixture):
    path = nx.shortest_path(mixture, 0, 6)
    assert len(path) == 5
    assert mixture.nodes[path[2]] == {"kind": "router", "region": "East US"}


def test_sites_keep_their_links(mixture):
    home, core = 2, next(iter(mixture.successors(2)))
    assert mixture.edges[home, core]["bandwidth"] < mixture.edges[core, home]["bandwidth"]
    switch = next(iter(mixture.successors(0)))
    assert mixture.edges[0, switch] == mixture.edges[switch, 0]
    assert mixture.edges[0, switch]["bandwidth"] == 400 * GIGABIT


def test_sites_of_two_regions_are_as_far_apart_as_measured(mixture):
    path = nx.shortest_path(mixture, 0, 2)
    here, there = path[2:4]  # host, switch, router - router, core, home
    assert mixture.edges[here, there]["latency"] == pytest.approx((83 + 85) / 4 * 1e-3)


def test_a_mixture_of_undirected_sites_is_undirected():
    assert not mix([Site(datacenter(2), "East US")]).is_directed()


def test_mixing_leaves_the_sites_as_they_were():
    graph = datacenter(2)
    mixed = mix([Site(graph, "East US")])
    set_links(mixed, 1, 0)
    assert nx.utils.graphs_equal(graph, datacenter(2))


def test_a_gateway_may_be_named():
    graph = mix([Site(ring(4), "East US", gateway=2)])
    assert sorted(graph.neighbors(2)) == [1, 3, 4]


def test_a_site_without_a_gateway_is_refused():
    with pytest.raises(ValueError, match=r"gateway=None: must be a node of the site, 0 \.\. 3"):
        Site(ring(4), "East US")


def test_a_mixture_needs_a_site():
    with pytest.raises(ValueError, match="at least 1 site"):
        mix([])
