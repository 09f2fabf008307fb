"""Topologies from GraphML; untrusted files."""

import networkx as nx
import pytest

from topologies import complete, from_graphml, homes, regions, set_links
from topologies.files import _merge
from topologies.links import link

GRAPHML = """<?xml version="1.0" encoding="utf-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
  <key id="d0" for="edge" attr.name="LinkSpeedRaw" attr.type="double"/>
  <key id="d1" for="edge" attr.name="delay" attr.type="double"/>
  <graph edgedefault="undirected">
    <node id="Seattle"/><node id="Denver"/><node id="Houston"/>
    <edge source="Seattle" target="Denver"><data key="d0">1e9</data><data key="d1">13</data></edge>
    <edge source="Houston" target="Denver"><data key="d0">8e9</data><data key="d1">9</data></edge>
  </graph>
</graphml>
"""
ATTRIBUTES = {
    "bandwidth": "LinkSpeedRaw",
    "bandwidth_unit": "bps",
    "latency": "delay",
    "latency_unit": "ms",
}


def test_attributes_are_read_in_their_units(write):
    graph = from_graphml(write(GRAPHML), **ATTRIBUTES)
    assert graph.edges[0, 1] == pytest.approx({"bandwidth": 1.25e8, "latency": 0.013})
    assert [graph.nodes[i]["name"] for i in range(3)] == ["Seattle", "Denver", "Houston"]


@pytest.mark.parametrize("graph", [complete(4), regions(5), homes(4, regions=["UK South"])])
def test_a_topology_written_by_networkx_comes_back(graph, tmp_path):
    nx.write_graphml(graph, tmp_path / "graph")
    back = from_graphml(tmp_path / "graph")
    assert nx.utils.edges_equal(back.edges(data=True), graph.edges(data=True))
    assert dict(back.nodes(data="kind")) == dict(graph.nodes(data="kind"))
    assert back.graph.get("routing") == graph.graph.get("routing")


def test_routers_are_numbered_after_hosts(write):
    key = '<key id="k" for="node" attr.name="kind" attr.type="string"/>'
    text = GRAPHML.replace("<graph edge", key + "<graph edge").replace(
        '<node id="Denver"/>', '<node id="Denver"><data key="k">router</data></node>'
    )
    graph = from_graphml(write(text), **ATTRIBUTES)
    assert graph.nodes[2] == {"kind": "router", "name": "Denver"}


def test_parallel_edges_add_up(write):
    edge = '<edge source="Denver" target="Seattle"><data key="d0">3e9</data>'
    text = GRAPHML.replace("</graph>", edge + '<data key="d1">11</data></edge></graph>')
    graph = from_graphml(write(text), **ATTRIBUTES)
    assert graph.edges[0, 1] == {"bandwidth": 5e8, "latency": 0.011}


def test_parallel_edges_keep_the_largest_cap_and_loss():
    graph = set_links(nx.Graph([(0, 1)]), 1, 0.1, 5)
    _merge(graph, 0, 1, link(2, 0.2, 7, loss=0.1))
    assert graph.edges[0, 1] == {"bandwidth": 3, "latency": 0.1, "flow_bandwidth": 7, "loss": 0.1}
    _merge(graph, 0, 1, link(2, 0.2))  # a connection over this one has no limit
    assert graph.edges[0, 1]["flow_bandwidth"] == float("inf")


def test_loss_comes_back(tmp_path):
    graph = set_links(nx.path_graph(3), 1, 0.1)
    graph.edges[0, 1]["loss"] = 0.25
    nx.write_graphml(graph, tmp_path / "graph")
    assert from_graphml(tmp_path / "graph").edges[0, 1]["loss"] == 0.25


def test_defaults_fill_in_for_missing_attributes(write):
    graph = from_graphml(write(GRAPHML), default_bandwidth="8Mbps", default_latency="1ms")
    assert graph.edges[0, 1] == {"bandwidth": 1e6, "latency": 0.001}


def test_values_may_carry_their_own_unit(write):
    text = GRAPHML.replace('"double"', '"string"').replace("1e9", "100Mbps").replace("8e9", "1Gbps")
    graph = from_graphml(write(text), **(ATTRIBUTES | {"bandwidth_unit": ""}))
    assert graph.edges[0, 1]["bandwidth"] == 1.25e7


BILLION_LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_document_type_is_refused_in_any_encoding(write, encoding):
    text = GRAPHML.replace("<graphml", BILLION_LAUGHS + "<graphml").replace("utf-8", encoding)
    with pytest.raises(ValueError, match=r"line 2: has a document type"):
        from_graphml(write(text.encode(encoding)), **ATTRIBUTES)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("8e9", "-8e9", "line 8: bandwidth=.*must be > 0"),
        ("8e9", "fast", "not a GraphML graph"),
        ("8e9", "0", "line 8: bandwidth=0: must be > 0"),
        ("8e9", "NaN", "line 8: bandwidth='nanbps'"),
        (">9<", ">-9<", "line 8: latency=-0.009: must be >= 0"),
        ("LinkSpeedRaw", "loss", "line 7: the edge has no 'LinkSpeedRaw'"),
        ('<node id="Houston"/>', '<node id="Houston"/><node id="Alone"/>', "host 3: cannot be"),
        ('<data key="d0">8e9</data>', "", "line 8: the edge has no 'LinkSpeedRaw' but"),
        ("</graph>", "", "line 10: not XML"),
        ('key="d0"', 'key="d7"', "not a GraphML graph"),
        ("graphml", "svg", "not a GraphML graph"),
        ('source="Houston"', 'source="Denver"', r"edge \(1, 1\)"),
        ('<edge source="Houston" target="Denver">', '<edge source="Houston" target="X">', "X|host"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(write, old, new, message):
    with pytest.raises(ValueError, match=message):
        from_graphml(write(GRAPHML.replace(old, new)), **ATTRIBUTES)


def test_a_large_file_is_refused_before_it_is_parsed(write):
    with pytest.raises(ValueError, match="larger than max_size=100"):
        from_graphml(write(GRAPHML), **ATTRIBUTES, max_size="100B")
