"""Regular topologies: complete, ring, torus, hypercube, exponential, star, random regular.

All nodes are hosts but the router in the middle of a star; hosts forward.
"""

from __future__ import annotations

import networkx as nx

from sim.units import Quantity, nearest
from topologies.draws import connected
from topologies.limits import whole
from topologies.links import set_links, unlinked


def complete(n: int, bandwidth: Quantity = "1Gbps", latency: Quantity = "10ms") -> nx.Graph:
    """Return n hosts with a private link between every two.

    Parameters
    ----------
    n : int
        Hosts, n >= 1.
    bandwidth, latency : str or float
        Of every link: bytes/s in each direction; seconds one way.

    Returns
    -------
    networkx.Graph

    Examples
    --------
    >>> complete(4).size()
    6
    """
    return set_links(nx.complete_graph(whole("n", n, "a complete graph", 1)), bandwidth, latency)


def ring(n: int, bandwidth: Quantity = "1Gbps", latency: Quantity = "10ms") -> nx.Graph:
    """Return n hosts in a circle, each linked to the next.

    Parameters
    ----------
    n : int
        Hosts, n >= 2; two hosts share a single link.
    bandwidth, latency : str or float
        Of every link: bytes/s in each direction; seconds one way.

    Returns
    -------
    networkx.Graph

    Examples
    --------
    >>> sorted(ring(5, bandwidth="100Mbps", latency="50ms").neighbors(0))
    [1, 4]
    """
    n = whole("n", n, "a ring", 2)
    return set_links(nx.Graph((i, (i + 1) % n) for i in range(n)), bandwidth, latency)


def torus(
    rows: int, cols: int, bandwidth: Quantity = "1Gbps", latency: Quantity = "10ms"
) -> nx.Graph:
    """Return rows x cols hosts in a grid whose opposite borders are joined.

    Parameters
    ----------
    rows, cols : int
        Each >= 2; host `r * cols + c` is in row r and column c.
    bandwidth, latency : str or float
        Of every link: bytes/s in each direction; seconds one way.

    Returns
    -------
    networkx.Graph
        Of degree 4; a side of length 2 has one link where longer ones have two.
    """
    rows, cols = whole("rows", rows, "a torus", 2), whole("cols", cols, "a torus", 2)
    graph = unlinked(nx.Graph, rows * cols)
    for r in range(rows):
        for c in range(cols):
            graph.add_edge(r * cols + c, r * cols + (c + 1) % cols)
            graph.add_edge(r * cols + c, (r + 1) % rows * cols + c)
    return set_links(graph, bandwidth, latency)


def hypercube(n: int, bandwidth: Quantity = "1Gbps", latency: Quantity = "10ms") -> nx.Graph:
    """Return n = 2**d hosts, linked where their numbers differ in one bit.

    Parameters
    ----------
    n : int
        Hosts, a power of two, n >= 2.
    bandwidth, latency : str or float
        Of every link: bytes/s in each direction; seconds one way.

    Returns
    -------
    networkx.Graph
        Of degree d = log2(n), which is also its diameter.
    """
    n = whole("n", n, "a hypercube", 2)
    if n & (n - 1):
        below = 1 << (n.bit_length() - 1)
        close = below if n - below < 2 * below - n else 2 * below
        raise ValueError(
            f"n={n}: a hypercube needs a power of two; nearest valid choice: n={close}"
        )
    graph = unlinked(nx.Graph, n)
    graph.add_edges_from((i, i ^ 1 << bit) for i in range(n) for bit in range(n.bit_length() - 1))
    return set_links(graph, bandwidth, latency)


def exponential(n: int, bandwidth: Quantity = "1Gbps", latency: Quantity = "10ms") -> nx.DiGraph:
    """Return the static exponential graph: host i sends to i + 1, i + 2, i + 4, ... (mod n).

    Parameters
    ----------
    n : int
        Hosts, n >= 2.
    bandwidth, latency : str or float
        Of every link: bytes/s; seconds one way.

    Returns
    -------
    networkx.DiGraph
        With ceil(log2(n)) links out of each host, and as many into it.

    References
    ----------
    .. [1] M. Assran, N. Loizou, N. Ballas, M. Rabbat, "Stochastic Gradient Push for Distributed
       Deep Learning", arXiv:1811.10792, 2018.
    .. [2] B. Ying, K. Yuan, Y. Chen, H. Hu, P. Pan, W. Yin, "Exponential Graph is Provably
       Efficient for Decentralized Deep Training", arXiv:2110.13363, 2021.
    """
    n = whole("n", n, "an exponential graph", 2)
    graph = unlinked(nx.DiGraph, n)
    for k in range((n - 1).bit_length()):
        graph.add_edges_from((i, (i + (1 << k)) % n) for i in range(n))
    return set_links(graph, bandwidth, latency)


def star(
    n: int, bandwidth: Quantity = "1Gbps", latency: Quantity = "10ms", *, hub: str = "router"
) -> nx.Graph:
    """Return n hosts that all meet in one place.

    Parameters
    ----------
    n : int
        Hosts; n >= 1 around a router, n >= 2 if one of them is the hub.
    bandwidth, latency : str or float
        Of every link: bytes/s in each direction; seconds one way.
    hub : {"router", "host"}
        A router (node n; hosts share nothing but their own links) or host 0.

    Returns
    -------
    networkx.Graph
        With `graph.graph["gateway"]` set to the hub: where `mix` joins it to a wide area.
    """
    if hub not in ("router", "host"):
        close = nearest(str(hub), ["router", "host"])
        raise ValueError(f"hub={hub!r}: one of ('router', 'host'); did you mean {close!r}?")
    n = whole("n", n, f"a star around a {hub}", 1 if hub == "router" else 2)
    centre, n_routers = (n, 1) if hub == "router" else (0, 0)
    graph = unlinked(nx.Graph, n, n_routers)
    graph.graph["gateway"] = centre
    graph.add_edges_from((i, centre) for i in range(n) if i != centre)
    return set_links(graph, bandwidth, latency)


def random_regular(
    n: int,
    degree: int,
    bandwidth: Quantity = "1Gbps",
    latency: Quantity = "10ms",
    *,
    seed: int = 0,
) -> nx.Graph:
    """Return a connected random graph in which every host has `degree` links.

    Parameters
    ----------
    n : int
        Hosts, n >= 4.
    degree : int
        Links per host, 3 <= degree <= n - 1; n * degree must be even. Degree n - 1 is the
        complete graph; degree 2 would be a `ring`.
    bandwidth, latency : str or float
        Of every link: bytes/s in each direction; seconds one way.
    seed : int
        Equal seeds give equal graphs.

    Returns
    -------
    networkx.Graph

    Notes
    -----
    Drawn almost uniformly by pairing half-links [1]_, again until connected; the first draw
    nearly always is.

    References
    ----------
    .. [1] A. Steger, N. Wormald, "Generating random regular graphs quickly", Combinatorics,
       Probability and Computing 8 (1999), 377-396.
    """
    n = whole("n", n, "a random regular graph", 4)
    degree = whole("degree", degree, f"a random regular graph of {n} hosts", 3, n - 1)
    if n * degree % 2:
        close = degree + 1 if degree + 1 < n else degree - 1
        raise ValueError(
            f"n={n}, degree={degree}: n * degree must be even; nearest valid choice: degree={close}"
        )
    if degree == n - 1:
        return complete(n, bandwidth, latency)
    graph = connected(
        lambda draw: nx.random_regular_graph(degree, n, seed=draw),
        "random_regular",
        seed,
        f"n={n}, degree={degree}: raise degree",
    )
    return set_links(graph, bandwidth, latency)
