"""Cloud regions between which latency and the bandwidth of a connection were both measured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import networkx as nx
import numpy as np

from sim import units
from topologies.internet import choose, place
from topologies.limits import whole
from topologies.links import link
from topologies.tables import DATA, read_matrix

AWS = (
    "Oregon",
    "Virginia",
    "Ohio",
    "Tokyo",
    "Seoul",
    "Singapore",
    "Sydney",
    "London",
    "Frankfurt",
    "Ireland",
)
"""The ten regions that `aws_regions` knows."""


def aws_regions(
    n: int,
    regions: Sequence[str] = AWS,
    bandwidth: units.Quantity = "10Gbps",
    latency: units.Quantity = "0.25ms",
    *,
    backbone: units.Quantity = "inf",
) -> nx.Graph:
    """Return n hosts in AWS regions, with latencies and connections as measured between these.

    Parameters
    ----------
    n : int
        Hosts, n >= 1, in blocks over the regions as in `topologies.regions`.
    regions : sequence of str
        Names out of `AWS`.
    bandwidth, latency : str or float
        Of the link between a host and its region's router: bytes/s in each direction; seconds
        one way. Assumptions.
    backbone : str or float
        Capacity shared by all connections between two regions, bytes/s in each direction.

    Returns
    -------
    networkx.Graph
        Hosts and routers have `region`. One connection between two regions gets what was measured
        from point to point, 0.33 to 1.16 Gbit/s; several get as much each, up to `backbone`.

    Notes
    -----
    Each pair was measured once, through a VPN: public addresses of some of these regions reach
    several Gbit/s. 22 of the 720 detours through a third region have a shorter round trip than the
    direct way; packets do not take them (routes are the fewest hops).

    References
    ----------
    .. [1] B. Yuan et al., "Decentralized Training of Foundation Models in Heterogeneous
       Environments", arXiv:2206.01288, and the matrices in github.com/DS3Lab/DT-FM.

    Examples
    --------
    >>> graph = aws_regions(4, ["Tokyo", "London"])
    >>> graph.edges[4, 5]["latency"], graph.edges[4, 5]["flow_bandwidth"] * 8 / 1e9
    (0.105, 0.366)
    """
    n, access = whole("n", n, "a topology of regions", 1), link(bandwidth, latency)
    chosen = [regions] if isinstance(regions, str) else list(regions)
    graph, routers = place(nx.Graph, n, chosen)
    round_trip, rate = (choose(list(routers), list(AWS), matrix) for matrix in _tables())
    shared = units.bandwidth(backbone, "backbone")
    for host in range(n):
        graph.add_edge(host, routers[graph.nodes[host]["region"]], **access)
    for i, j in itertools.combinations(range(len(routers)), 2):
        between = link(shared, float(round_trip[i, j]) / 2, float(rate[i, j]))
        graph.add_edge(n + i, n + j, **between)
    graph.graph["routing"] = "fewest_hops"
    return graph


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Round trips in seconds and rates in bytes/s, float64 [10, 10] in the order of `AWS`."""
    (names, milliseconds), (others, gigabits) = (
        read_matrix(DATA / f"aws_{table}.csv") for table in ("rtt", "bandwidth")
    )
    assert names == others == list(AWS)
    return milliseconds * 1e-3, gigabits * 1e9 / 8
