"""Random topologies: Erdős–Rényi, small world, scale free, geometric; always connected.

Each draws again, from seeds derived from `seed`, until the graph is connected, and raises
ValueError naming the threshold of connectivity if that does not happen.
"""

from __future__ import annotations

import math

import networkx as nx

from sim.units import Quantity
from topologies.draws import connected
from topologies.limits import real, whole
from topologies.links import set_links


def erdos_renyi(
    n: int, p: float, bandwidth: Quantity = "1Gbps", latency: Quantity = "10ms", *, seed: int = 0
) -> nx.Graph:
    """Return n hosts, every two of them linked with probability p.

    Parameters
    ----------
    n : int
        Hosts, n >= 2.
    p : float
        Probability of a link, 0 <= p <= 1; below ln(n)/n a large graph is rarely connected [1]_.
    bandwidth, latency : str or float
        Of every link: bytes/s in each direction; seconds one way.
    seed : int
        Equal seeds give equal graphs.

    Returns
    -------
    networkx.Graph

    References
    ----------
    .. [1] P. Erdős, A. Rényi, "On random graphs I", Publ. Math. Debrecen 6 (1959), 290-297.
    .. [2] V. Batagelj, U. Brandes, "Efficient generation of large random networks", Physical
       Review E 71 (2005), 036113: the algorithm.
    """
    n = whole("n", n, "an Erdős–Rényi graph", 2)
    p = real("p", p, "an Erdős–Rényi graph", 0.0, 1.0)
    graph = connected(
        lambda draw: nx.fast_gnp_random_graph(n, p, seed=draw),
        "erdos_renyi",
        seed,
        f"p={p}: a graph of n={n} is connected for p above about ln(n)/n = {math.log(n) / n:.3g}",
    )
    return set_links(graph, bandwidth, latency)


def small_world(
    n: int,
    k: int,
    p: float,
    bandwidth: Quantity = "1Gbps",
    latency: Quantity = "10ms",
    *,
    seed: int = 0,
) -> nx.Graph:
    """Return a ring with links to the k nearest hosts, each moved with probability p.

    Parameters
    ----------
    n : int
        Hosts, n >= 3.
    k : int
        Links per host before the moves, even, 2 <= k <= n - 1.
    p : float
        Probability that a link is moved to a random other end, 0 <= p <= 1.
    bandwidth, latency : str or float
        Of every link: bytes/s in each direction; seconds one way.
    seed : int
        Equal seeds give equal graphs.

    Returns
    -------
    networkx.Graph
        With n * k / 2 links.

    References
    ----------
    .. [1] D. Watts, S. Strogatz, "Collective dynamics of 'small-world' networks", Nature 393
       (1998), 440-442.
    """
    n = whole("n", n, "a small world", 3)
    k = whole("k", k, f"a small world of {n} hosts", 2, n - 1)
    p = real("p", p, "a small world", 0.0, 1.0)
    if k % 2:
        raise ValueError(f"k={k}: a small world needs an even k; nearest valid choice: k={k - 1}")
    graph = connected(
        lambda draw: nx.watts_strogatz_graph(n, k, p, seed=draw),
        "small_world",
        seed,
        f"k={k}, p={p}: raise k or lower p",
    )
    return set_links(graph, bandwidth, latency)


def scale_free(
    n: int, m: int, bandwidth: Quantity = "1Gbps", latency: Quantity = "10ms", *, seed: int = 0
) -> nx.Graph:
    """Return hosts that came one by one, each linked to m others, popular ones preferred.

    Parameters
    ----------
    n : int
        Hosts, n >= 2.
    m : int
        Links of a newcomer, 1 <= m <= n - 1; m = 1 gives a tree.
    bandwidth, latency : str or float
        Of every link: bytes/s in each direction; seconds one way.
    seed : int
        Equal seeds give equal graphs.

    Returns
    -------
    networkx.Graph
        With m * (n - m) links; it starts as a star of m + 1 hosts.

    References
    ----------
    .. [1] A.-L. Barabási, R. Albert, "Emergence of scaling in random networks", Science 286
       (1999), 509-512.
    """
    n = whole("n", n, "a scale-free graph", 2)
    m = whole("m", m, f"a scale-free graph of {n} hosts", 1, n - 1)
    graph = connected(
        lambda draw: nx.barabasi_albert_graph(n, m, seed=draw), "scale_free", seed, f"m={m}"
    )
    return set_links(graph, bandwidth, latency)


def geometric(
    n: int,
    radius: float,
    bandwidth: Quantity = "1Gbps",
    latency: Quantity = "10ms",
    *,
    by_distance: bool = True,
    seed: int = 0,
) -> nx.Graph:
    """Return hosts at random places of a square, linked if no further apart than radius.

    Parameters
    ----------
    n : int
        Hosts, n >= 2.
    radius : float
        In sides of the square, 0 <= radius <= sqrt(2); below sqrt(ln(n)/(pi n)) a large graph is
        rarely connected [1]_.
    bandwidth : str or float
        Of every link, bytes/s in each direction.
    latency : str or float
        Seconds one way: along one side of the square if `by_distance` (10 ms is some 2,000 km of
        fibre), else of every link.
    by_distance : bool
        Whether the latency of a link is in proportion to its length.
    seed : int
        Equal seeds give equal graphs.

    Returns
    -------
    networkx.Graph
        Its nodes have `pos`, the place (x, y) in [0, 1)^2.

    References
    ----------
    .. [1] M. Penrose, "Random Geometric Graphs", Oxford University Press, 2003.
    """
    n = whole("n", n, "a geometric graph", 2)
    radius = real("radius", radius, "a geometric graph", 0.0, math.sqrt(2))
    threshold = math.sqrt(math.log(n) / (math.pi * n))
    graph = connected(
        lambda draw: nx.random_geometric_graph(n, radius, seed=draw),
        "geometric",
        seed,
        f"radius={radius}: a graph of n={n} is connected for a radius above about "
        f"sqrt(ln(n)/(pi n)) = {threshold:.3g}",
    )
    set_links(graph, bandwidth, latency)
    places = nx.get_node_attributes(graph, "pos")
    for u, v, data in graph.edges(data=True):
        data["latency"] *= math.dist(places[u], places[v]) if by_distance else 1.0
    return graph
