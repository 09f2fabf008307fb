"""Small networks on a clock, and what they record."""

import networkx as nx
import numpy as np
import pytest
import simpy

from sim.network.network import Network


@pytest.fixture
def env():
    return simpy.Environment()


@pytest.fixture
def rows():
    """What was recorded: (kind, fields)."""
    return []


@pytest.fixture
def attach(env, rows):
    """attach(graph, **options) -> a network on the clock `env`."""

    def make(graph, **options):
        network = Network(graph, **options)
        network.attach(env, lambda kind, **fields: rows.append((kind, fields)))
        return network

    return make


@pytest.fixture
def access(attach):
    """access(up, down, latency, **options): hosts with private links to one router.

    Bandwidths in bytes/s, one number per host; `latency` (s) lies on the up links; `backbone`
    (bytes/s) puts a link between the side that sends and the side that receives.
    """

    def make(up, down=None, latency=0.0, backbone=None, **options):
        n, down = len(up), up if down is None else down
        latencies = np.broadcast_to(latency, n)
        graph = nx.DiGraph()
        graph.add_nodes_from(range(n), kind="host")
        graph.add_nodes_from([n, n + 1], kind="router")
        for host in range(n):
            graph.add_edge(host, n, bandwidth=up[host], latency=latencies[host])
            graph.add_edge(n + 1, host, bandwidth=down[host], latency=0.0)
        graph.add_edge(n, n + 1, bandwidth=backbone or np.inf, latency=0.0)
        return attach(graph, **options)

    return make
