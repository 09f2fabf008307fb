"""Topologies from GraphML files, which are untrusted; matrices are in `topologies.matrices`."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat

import networkx as nx

from sim import units
from topologies.links import link, unlinked, validate
from topologies.tables import read_bytes

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
        kept as `name`. Parallel edges become one with the sum of bandwidths, the least latency, and
        the largest `flow_bandwidth` and `loss`.

    Notes
    -----
    A node is a host unless it has the attribute `kind` with the value "router". The edge attribute
    `flow_bandwidth` (in `bandwidth_unit`), the edge attribute `loss` and the graph attribute
    `routing` are read if present, so that a topology written by `networkx.write_graphml` comes
    back.

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


def _link(data: Mapping[str, Any], fields: Sequence[_Field], where: str) -> dict[str, float]:
    """The attributes of one edge of a file: bandwidth, latency and what else there is."""
    bandwidth, latency, flow_bandwidth = (field.read(data) for field in fields)
    if bandwidth is None or latency is None:
        key = fields[0 if bandwidth is None else 1].key
        raise ValueError(
            f"{where}: the edge has no {key!r} but {sorted(data)}; "
            "name another attribute or give a default"
        )
    loss = data.get("loss")
    try:
        return link(bandwidth, latency, flow_bandwidth, None if loss is None else float(loss))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _merge(graph: nx.Graph, u: int, v: int, attributes: dict[str, float]) -> None:
    """Add an edge, or add it to the one that is there."""
    old = graph.get_edge_data(u, v)
    if old:
        caps = [edge.get("flow_bandwidth", math.inf) for edge in (old, attributes)]
        losses = [edge.get("loss", 0.0) for edge in (old, attributes)]
        attributes = {
            "bandwidth": old["bandwidth"] + attributes["bandwidth"],
            "latency": min(old["latency"], attributes["latency"]),
        }
        attributes |= {"flow_bandwidth": max(caps)} if min(caps) < math.inf else {}
        attributes |= {"loss": max(losses)} if max(losses) > 0.0 else {}
    graph.add_edge(u, v, **attributes)
