"""Wide-area topologies: cloud regions of the world with measured round-trip times.

Between two hosts of different regions bytes cross three links: up to the region's router, over
the wide area to the other router, and down. Notable choices:

- A link of the wide area carries what its `backbone` allows, which is unlimited by default; what
  limits a transfer is that *one connection* gets no more than a window per round trip.
- Measured round-trip times violate the triangle inequality (going through a third region can be
  faster), but packets do not take that detour: routers form a complete graph and the topology asks
  for `fewest_hops` routes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import networkx as nx
import numpy as np

from sim import units
from topologies.limits import whole
from topologies.links import G, link, unlinked
from topologies.tables import DATA, read_matrix

WORLD = (
    "West US 2",
    "East US",
    "Brazil South",
    "West Europe",
    "Central India",
    "Southeast Asia",
    "Japan East",
    "Australia East",
)
"""Eight regions on five continents, ordered so that a ring over them goes around the world."""


def regions(
    n: int,
    regions: Sequence[str] | str = WORLD,
    bandwidth: units.Quantity = "10Gbps",
    latency: units.Quantity = "0.25ms",
    *,
    backbone: units.Quantity = "inf",
    window: units.Quantity = "83Mbit",
    max_flow: units.Quantity = "1.15Gbps",
) -> nx.Graph:
    """Return n hosts in cloud regions, with the round-trip times measured between these.

    Parameters
    ----------
    n : int
        Hosts, n >= 1: equal blocks of consecutive hosts per region, the first regions getting
        what is left over; with fewer hosts than regions the first n regions get one each.
    regions : sequence of str or "all"
        Names as `region_names()` lists them.
    bandwidth, latency : str or float
        Of the link between a host and its region's router: bytes/s in each direction; seconds
        one way. The default latency makes 1 ms of round trip inside a region, an assumption.
    backbone : str or float
        Capacity shared by all connections between two regions, bytes/s in each direction.
    window, max_flow : str or float
        One connection between two regions gets min(max_flow, window / round-trip time): bytes
        and bytes/s. "inf" lifts either.

    Returns
    -------
    networkx.Graph
        Hosts have `region`; routers have `region` and follow in the order of `regions`.

    Notes
    -----
    Latencies are half the median round-trip time between Azure regions [1]_, the mean of the two
    directions. The defaults of `window` and `max_flow` summarise the 45 AWS region pairs of [2]_:
    beyond 60 ms bandwidth times round-trip time is nearly constant (median 83 Mbit, 50 to 93). The
    rule is within 13 % of all pairs but eight of Oregon's, which got 28 to 40 % less. They were
    measured through a VPN; several Gbit/s per connection are reached without one.

    References
    ----------
    .. [1] Microsoft, "Azure network round-trip latency statistics",
       https://learn.microsoft.com/en-us/azure/networking/azure-network-latency
    .. [2] B. Yuan et al., "Decentralized Training of Foundation Models in Heterogeneous
       Environments", arXiv:2206.01288, and the matrices in github.com/DS3Lab/DT-FM.

    Examples
    --------
    >>> graph = regions(4, ["East US", "West Europe"])
    >>> graph.nodes[3]["region"], graph.edges[4, 5]["latency"]
    ('West Europe', 0.042)
    """
    n = whole("n", n, "a topology of regions", 1)
    wan = Wan.read(backbone, window, max_flow)
    access = link(bandwidth, latency)
    graph, routers = place(nx.Graph, n, regions)
    for host in range(n):
        graph.add_edge(host, routers[graph.nodes[host]["region"]], **access)
    return wan.join(graph, list(routers.values()), region_latency(list(routers)))


def region_names() -> list[str]:
    """The regions whose round-trip times are known."""
    return list(_table()[0])


def region_latency(names: Sequence[str]) -> np.ndarray:
    """One-way latency between regions, seconds, float64 [len(names), len(names)], symmetric."""
    known, matrix = _table()
    round_trip = choose(names, known, matrix) * 1e-3
    return (round_trip + round_trip.T) / 4


def choose(names: Sequence[str], known: list[str], matrix: np.ndarray) -> np.ndarray:
    """Rows and columns of a matrix over `known` regions, [len(names), len(names)]."""
    for name in names:
        if name not in known:
            close = units.nearest(str(name), known)
            raise ValueError(
                f"region={name!r}: not among the {len(known)} known ones; did you mean {close!r}?"
            )
    rows = [known.index(name) for name in names]
    return matrix[np.ix_(rows, rows)]


@lru_cache(maxsize=1)
def _table() -> tuple[list[str], np.ndarray]:
    return read_matrix(DATA / "region_rtt.csv")


def place(graph_type: type[G], n: int, names: Sequence[str] | str) -> tuple[G, dict[str, int]]:
    """A graph of n hosts in blocks over regions, and the routers of the regions that got any.

    Returns the graph and region -> router; links are the caller's.
    """
    if isinstance(names, str):
        names = region_names() if names == "all" else [names]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"regions={list(names)}: must be one or more different names")
    each, extra = divmod(n, len(names))
    counts = {name: each + (i < extra) for i, name in enumerate(names)}
    placed = [name for name, count in counts.items() for _ in range(count)]
    used = list(dict.fromkeys(placed))
    graph = unlinked(graph_type, n, len(used))
    nx.set_node_attributes(graph, dict(enumerate(placed + used)), "region")
    return graph, {name: n + i for i, name in enumerate(used)}


@dataclass(frozen=True)
class Wan:
    """What the links between routers of a wide area allow.

    Args:
        backbone: capacity of a link, shared by its connections, bytes/s in each direction.
        window: bytes that one connection has in flight; per round trip, its bandwidth.
        max_flow: the most that one connection gets, however near, bytes/s.
    """

    backbone: float
    window: float
    max_flow: float

    @classmethod
    def read(
        cls, backbone: units.Quantity, window: units.Quantity, max_flow: units.Quantity
    ) -> Wan:
        """From quantities: strings with units, or numbers."""
        return cls(
            units.bandwidth(backbone, "backbone"),
            units.size(window, "window", positive=True),
            units.bandwidth(max_flow, "max_flow"),
        )

    def join(self, graph: G, routers: Sequence[int], latency: np.ndarray) -> G:
        """Link every two of the routers; latency [R, R] is in seconds, from row to column.

        NaN means no direct link. A connection's round trip is the sum of both directions, or
        twice the one that is known.
        """
        pairs = itertools.permutations if graph.is_directed() else itertools.combinations
        for i, j in pairs(range(len(routers)), 2):
            if math.isnan(latency[i, j]):
                continue
            back = latency[i, j] if math.isnan(latency[j, i]) else latency[j, i]
            attributes = {"bandwidth": self.backbone, "latency": float(latency[i, j])}
            cap = self.flow_bandwidth(float(latency[i, j] + back))
            if cap < math.inf:
                attributes["flow_bandwidth"] = cap
            graph.add_edge(routers[i], routers[j], **attributes)
        graph.graph["routing"] = "fewest_hops"
        return graph

    def flow_bandwidth(self, round_trip: float) -> float:
        """What one connection gets, bytes/s, at a round-trip time in seconds.

        >>> Wan.read("inf", "83Mbit", "1.15Gbps").flow_bandwidth(0.083) * 8
        1000000000.0
        """
        return min(self.max_flow, self.window / round_trip) if round_trip else self.max_flow
