"""Topologies: functions that return networkx graphs of hosts, routers and links.

>>> import topologies
>>> graph = topologies.ring(16, bandwidth="100Mbps", latency="50ms")
>>> graph.edges[0, 1]
{'bandwidth': 12500000.0, 'latency': 0.05}

The contract of such a graph is in `topologies.links`, mixing matrices for gossip in
`topologies.weights`, the conformance kit for generators of your own in `topologies.testing`.
"""

from topologies.access import access_lines, homes
from topologies.files import from_graphml
from topologies.internet import WORLD, region_names, regions
from topologies.links import hosts, n_hosts, set_links, validate
from topologies.matrices import from_latency_csv, from_matrices
from topologies.measured import AWS, aws_regions
from topologies.peers import ExponentialPeers, Peers
from topologies.random_graphs import erdos_renyi, geometric, scale_free, small_world
from topologies.regular import (
    complete,
    exponential,
    hypercube,
    random_regular,
    ring,
    star,
    torus,
)
from topologies.sites import Site, datacenter, mix

__all__ = [
    "AWS",
    "WORLD",
    "ExponentialPeers",
    "Peers",
    "Site",
    "access_lines",
    "aws_regions",
    "complete",
    "datacenter",
    "erdos_renyi",
    "exponential",
    "from_graphml",
    "from_latency_csv",
    "from_matrices",
    "geometric",
    "homes",
    "hosts",
    "hypercube",
    "mix",
    "n_hosts",
    "random_regular",
    "region_names",
    "regions",
    "ring",
    "scale_free",
    "set_links",
    "small_world",
    "star",
    "torus",
    "validate",
]
