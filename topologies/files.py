"""Topologies from files: GraphML, and latency matrices in CSV. Files are untrusted."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

import networkx as nx

from sim import units
from topologies.internet import Wan
from topologies.links import link, unlinked, validate
from topologies.tables import read_bytes, read_matrix

Ends = tuple[str, str]


def from_graphml(
    path: str | Path,
    bandwidth: str = "bandwidth",
    latency: str = "latency",
    *,
    bandwidth_unit: str = "Bps",
    latency_unit: str = "s",
    default_bandwidth: units.Quantity | None = None,
    default_latency: units.Quantity | None = None,
    max_size: units.Quantity = "16MB",
) -> nx.Graph:
    """Return the topology of a GraphML file.

    Parameters
    ----------
    path : str or Path
        The file; it may not have a document type or entities.
    bandwidth, latency : str
        Names of the edge attributes.
    bandwidth_unit, latency_unit : str
        Of the numbers in these attributes; "" if the values carry their own ("100Mbps").
    default_bandwidth, default_latency : str, float or None
        For edges without the attribute; None makes these an error.
    max_size : str or float
        Bytes; larger files are refused.

    Returns
    -------
    networkx.Graph or networkx.DiGraph
        As the file says. Nodes are numbered hosts first, in the order of the file, whose ids are
        kept as `name`. Parallel edges become one with the sum of bandwidths and the least latency.

    Notes
    -----
    A node is a host unless it has the attribute `kind` with the value "router". The edge attribute
    `flow_bandwidth` (in `bandwidth_unit`) and the graph attribute `routing` are read if present, so
    that a topology written by `networkx.write_graphml` comes back.

    References
    ----------
    .. [1] S. Knight et al., "The Internet Topology Zoo", IEEE JSAC 29 (2011), 1765-1775: several
       hundred networks in this format.
    """
    content = read_bytes(path, max_size)
    lines = _scan(path, content)
    try:
        source = nx.read_graphml(io.BytesIO(content))
    except (nx.NetworkXException, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a GraphML graph: {error}") from error
    graph, ids = _nodes(source)
    fields = (
        _Field(bandwidth, bandwidth_unit, default_bandwidth),
        _Field(latency, latency_unit, default_latency),
        _Field("flow_bandwidth", bandwidth_unit),
    )
    for u, v, data in source.edges(data=True):
        line = lines.get((u, v)) or lines.get((v, u))
        _merge(graph, ids[u], ids[v], _link(data, fields, f"{path}, line {line}"))
    validate(graph)
    return graph


def from_latency_csv(
    path: str | Path,
    bandwidth: units.Quantity = "1Gbps",
    *,
    latency_unit: str = "ms",
    round_trip: bool = True,
    backbone: units.Quantity = "inf",
    window: units.Quantity = "83Mbit",
    max_flow: units.Quantity = "1.15Gbps",
    max_size: units.Quantity = "16MB",
) -> nx.DiGraph:
    """Return hosts behind access links, with the pairwise latencies of a CSV matrix in between.

    Parameters
    ----------
    path : str or Path
        The header is `corner,name,...`, rows are `name,value,...`; row to column. Lines that start
        with # are comments. An empty cell means no direct link. The diagonal is ignored.
    bandwidth : str or float
        Of each host's own link, bytes/s in each direction; its latency is 0.
    latency_unit : str
        Of the values.
    round_trip : bool
        Whether the values are round-trip times, of which a link gets half.
    backbone, window, max_flow : str or float
        Of the links between every two, as in `topologies.regions`.
    max_size : str or float
        Bytes; larger files are refused.

    Returns
    -------
    networkx.DiGraph
        Host i has the `name` of row i and its own router n + i. Routes are the fewest hops, as
        measured latencies violate the triangle inequality.
    """
    wan, access = Wan.read(backbone, window, max_flow), link(bandwidth, 0.0)
    names, latency = read_matrix(path, max_size)
    n = len(names)
    graph = unlinked(nx.DiGraph, n, n)
    nx.set_node_attributes(graph, dict(enumerate(names)), "name")
    graph.add_edges_from(((i, n + i) for i in range(n)), **access)
    graph.add_edges_from(((n + i, i) for i in range(n)), **access)
    scale = units.seconds(f"1{latency_unit}", "latency_unit") / (2 if round_trip else 1)
    wan.join(graph, range(n, 2 * n), latency * scale)
    validate(graph)
    return graph


def _scan(path: str | Path, content: bytes) -> dict[Ends, int]:
    """Line numbers of the edges; refuses a document type, hence all entities, in any encoding."""
    lines: dict[Ends, int] = {}
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        line = parser.CurrentLineNumber
        raise ValueError(f"{path}, line {line}: has a document type (DTD), which is not accepted")

    def element(name: str, attributes: Mapping[str, str]) -> None:
        if name.rpartition(":")[2] == "edge":
            ends = attributes.get("source", ""), attributes.get("target", "")
            lines.setdefault(ends, parser.CurrentLineNumber)

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = element
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ValueError(f"{path}, line {error.lineno}: not XML: {error}") from error
    return lines


def _nodes(source: nx.Graph) -> tuple[nx.Graph, dict[str, int]]:
    """The numbered nodes, hosts first, and file id -> number."""
    graph = unlinked(nx.DiGraph if source.is_directed() else nx.Graph, 0)
    if "routing" in source.graph:
        graph.graph["routing"] = source.graph["routing"]
    kinds = {node: kind for node, kind in source.nodes(data="kind", default="host")}
    ids = {
        node: i for i, node in enumerate(sorted(kinds, key=lambda node: kinds[node] == "router"))
    }
    for node, i in ids.items():
        labels = {
            key: value
            for key, value in source.nodes[node].items()
            if key in ("region", "site", "technology")
        }
        graph.add_node(i, kind=kinds[node], name=node, **labels)
    return graph, ids


@dataclass(frozen=True)
class _Field:
    """Where a quantity of an edge is found."""

    key: str
    unit: str
    default: units.Quantity | None = None

    def read(self, data: Mapping[str, object]) -> units.Quantity | None:
        return f"{data[self.key]}{self.unit}" if self.key in data else self.default


def _link(data: Mapping[str, object], fields: Sequence[_Field], where: str) -> dict[str, float]:
    """The attributes of one edge of a file: bandwidth, latency and perhaps flow_bandwidth."""
    bandwidth, latency, flow_bandwidth = (field.read(data) for field in fields)
    if bandwidth is None or latency is None:
        key = fields[0 if bandwidth is None else 1].key
        raise ValueError(
            f"{where}: the edge has no {key!r} but {sorted(data)}; "
            "name another attribute or give a default"
        )
    try:
        return link(bandwidth, latency, flow_bandwidth)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _merge(graph: nx.Graph, u: int, v: int, attributes: dict[str, float]) -> None:
    """Add an edge, or add it to the one that is there."""
    old = graph.get_edge_data(u, v)
    if old:
        attributes = {
            "bandwidth": old["bandwidth"] + attributes["bandwidth"],
            "latency": min(old["latency"], attributes["latency"]),
        }
    graph.add_edge(u, v, **attributes)
