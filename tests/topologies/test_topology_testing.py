"""The conformance kit passes our own topologies and catches broken ones."""

from functools import partial

import networkx as nx
import numpy as np
import pytest

import topologies as t
from topologies.links import link
from topologies.testing import check_topology

FACTORIES = [
    partial(t.complete, 5),
    partial(t.ring, 5),
    partial(t.torus, 3, 4),
    partial(t.hypercube, 8),
    partial(t.exponential, 6),
    partial(t.star, 5),
    partial(t.star, 5, hub="host"),
    partial(t.random_regular, 8, 3),
    partial(t.erdos_renyi, 12, 0.4),
    partial(t.small_world, 12, 4, 0.2),
    partial(t.scale_free, 12, 2),
    partial(t.geometric, 12, 0.6),
    partial(t.regions, 10),
    partial(t.aws_regions, 12),
    partial(t.homes, 10),
    partial(t.homes, 10, regions="all"),
    partial(t.datacenter, 10),
    partial(t.datacenter, 10, hosts_per_leaf=4, oversubscription=2),
    lambda seed: t.mix([t.Site(t.homes(4, seed=seed), "UK South"), t.Site(t.star(3), "East US")]),
]


@pytest.mark.parametrize("factory", FACTORIES)
def test_our_topologies_conform(factory):
    check_topology(factory)


def test_a_graph_is_checked_too():
    graph = t.ring(4)
    check_topology(graph)
    del graph.edges[0, 1]["bandwidth"]
    with pytest.raises(ValueError, match="bandwidth=None"):
        check_topology(graph)


def test_an_unseeded_factory_is_caught():
    def factory():
        return t.ring(4, latency=np.random.default_rng().random())

    with pytest.raises(AssertionError, match="differ"):
        check_topology(factory)


def test_a_factory_that_returns_its_own_graph_again_is_caught():
    graph = t.ring(4)
    with pytest.raises(AssertionError, match="share"):
        check_topology(lambda: graph)


def test_links_that_share_one_mapping_are_caught():
    class Shared(nx.Graph):
        attributes = link(1, 0)
        edge_attr_dict_factory = staticmethod(lambda: Shared.attributes)

    def factory():
        return t.set_links(Shared([(0, 1), (1, 2)]), 1, 0)

    with pytest.raises(AssertionError, match="share"):
        check_topology(factory)


def test_a_factory_that_guesses_units_is_caught():
    def factory(bandwidth="1 Mbps"):
        return t.ring(4, bandwidth=float(str(bandwidth).partition("M")[0]))

    with pytest.raises(AssertionError, match="8Mbps"):
        check_topology(factory)
