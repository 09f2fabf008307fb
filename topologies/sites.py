"""Data centres, and mixtures of sites: data centres, homes and others joined by a wide area."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx

from sim import units
from topologies.internet import Wan, region_latency
from topologies.limits import real, whole
from topologies.links import KINDS, link, unlinked, validate


def datacenter(
    n: int,
    bandwidth: units.Quantity = "400Gbps",
    latency: units.Quantity = "10us",
    *,
    hosts_per_leaf: int | None = None,
    oversubscription: float = 1.0,
) -> nx.Graph:
    """Return n hosts behind one non-blocking switch, or behind leaf switches and a spine.

    Parameters
    ----------
    n : int
        Hosts, n >= 1.
    bandwidth, latency : str or float
        Of the link between a host and its switch: bytes/s in each direction; seconds one way, the
        same for the links between switches.
    hosts_per_leaf : int or None
        Hosts under one leaf switch, >= 1; None is one switch for all.
    oversubscription : float
        Bandwidth of a leaf's hosts together over that of its link to the spine, >= 1; needs
        `hosts_per_leaf`.

    Returns
    -------
    networkx.Graph
        `graph.graph["gateway"]` is the switch, or the spine.

    Notes
    -----
    The spine is one router with one link per leaf, i.e. load is balanced perfectly over the
    switches of a real spine [1]_; hash collisions of flows are not modelled.

    References
    ----------
    .. [1] M. Al-Fares, A. Loukissas, A. Vahdat, "A Scalable, Commodity Data Center Network
       Architecture", SIGCOMM 2008.
    """
    n = whole("n", n, "a data centre", 1)
    oversubscription = real("oversubscription", oversubscription, "a data centre", 1.0)
    access = link(bandwidth, latency)
    if hosts_per_leaf is None:
        if oversubscription != 1.0:
            raise ValueError(
                f"oversubscription={oversubscription:g}: one switch has none (1.0); "
                "give hosts_per_leaf, for example 8"
            )
        return _under_switches(n, n, access)
    width = whole("hosts_per_leaf", hosts_per_leaf, "a leaf", 1)
    graph = _under_switches(n, width, access)
    leaves = [node for node in graph if node >= n]
    graph.graph["gateway"] = spine = len(graph)
    graph.add_node(spine, kind="router")
    up = access | {"bandwidth": access["bandwidth"] * width / oversubscription}
    graph.add_edges_from(((leaf, spine) for leaf in leaves), **up)
    return graph


def _under_switches(n: int, width: int, access: dict[str, float]) -> nx.Graph:
    """n hosts, `width` under each switch; the gateway is the first switch."""
    graph = unlinked(nx.Graph, n, n_routers=-(-n // width))
    graph.graph["gateway"] = n
    graph.add_edges_from(((host, n + host // width) for host in range(n)), **access)
    return graph


@dataclass(frozen=True)
class Site:
    """A topology somewhere in the world, for `mix`.

    Args:
        graph: any topology with a `gateway`: `datacenter`, `homes`, `star`, ...
        region: where it is; `region_names()` lists what is known.
        bandwidth, latency: of the link between its gateway and the region's router: bytes/s in each
            direction; seconds one way.
        name: the `site` of its hosts; "<region> <index>" if empty.
        gateway: the node that is linked to the region; by default `graph.graph["gateway"]`.
    """

    graph: nx.Graph
    region: str
    bandwidth: units.Quantity = "100Gbps"
    latency: units.Quantity = "0.25ms"
    name: str = ""
    gateway: int | None = None

    def __post_init__(self) -> None:
        validate(self.graph)
        link(self.bandwidth, self.latency)
        self.joint()

    def joint(self) -> int:
        """The node of the site that is linked to the region; ValueError if there is none."""
        node = self.graph.graph.get("gateway") if self.gateway is None else self.gateway
        if node is None or node not in self.graph:
            raise ValueError(
                f"gateway={node!r}: must be a node of the site, 0 .. {len(self.graph) - 1}"
            )
        return node


def mix(
    sites: Sequence[Site],
    *,
    backbone: units.Quantity = "inf",
    window: units.Quantity = "83Mbit",
    max_flow: units.Quantity = "1.15Gbps",
) -> nx.Graph:
    """Return several sites joined by the wide area between their regions.

    Parameters
    ----------
    sites : sequence of Site
        One or more; hosts are numbered site by site.
    backbone, window, max_flow : str or float
        Of the wide area, as in `topologies.regions`.

    Returns
    -------
    networkx.Graph or networkx.DiGraph
        A DiGraph if a site is one. Hosts have `site` and `region`. Routes are the fewest hops,
        inside the sites too.

    Examples
    --------
    >>> from topologies import Site, datacenter, homes, mix
    >>> east = Site(datacenter(4), "East US")
    >>> graph = mix([east, Site(homes(8), "West Europe", bandwidth="inf")])
    >>> graph.nodes[0]["site"], graph.nodes[11]["technology"]
    ('East US 0', 'cable')
    """
    if not sites:
        raise ValueError("sites=[]: a mixture needs at least 1 site")
    wan = Wan.read(backbone, window, max_flow)
    graph, ids = _union(sites)
    routers = {}
    for i, site in enumerate(sites):
        if site.region not in routers:
            routers[site.region] = len(graph)
            graph.add_node(len(graph), kind="router", region=site.region)
        uplink = link(site.bandwidth, site.latency)
        graph.add_edge(ids[i, site.joint()], routers[site.region], **uplink)
        graph.add_edge(routers[site.region], ids[i, site.joint()], **uplink)
    return wan.join(graph, list(routers.values()), region_latency(list(routers)))


def _union(sites: Sequence[Site]) -> tuple[nx.Graph, dict[tuple[int, int], int]]:
    """All sites in one graph, not yet joined, and (site, node there) -> node: hosts come first."""
    order = [
        (i, node)
        for wanted in KINDS
        for i, site in enumerate(sites)
        for node, kind in sorted(site.graph.nodes(data="kind"))
        if kind == wanted
    ]
    ids = {old: new for new, old in enumerate(order)}
    directed = any(site.graph.is_directed() for site in sites)
    graph = unlinked(nx.DiGraph if directed else nx.Graph, 0)
    for (i, node), new in ids.items():
        site = sites[i]
        where = {"site": site.name or f"{site.region} {i}", "region": site.region}
        graph.add_node(new, **(site.graph.nodes[node] | where))
    for i, site in enumerate(sites):
        part = site.graph.to_directed(as_view=True) if directed else site.graph
        graph.add_edges_from((ids[i, u], ids[i, v], data) for u, v, data in part.edges(data=True))
    return graph, ids
