"""Topologies from GraphML and from latency matrices; untrusted files."""

import networkx as nx
import pytest

from topologies import complete, from_graphml, from_latency_csv, homes, regions

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


@pytest.fixture
def write(tmp_path):
    def to_file(text):
        path = tmp_path / "file"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return to_file


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


MATRIX = "# round trips, ms\nto,a,b,c\na,,10,30\nb,12,0,\nc,30,,0\n"


def test_a_matrix_gives_half_of_each_round_trip(write):
    graph = from_latency_csv(write(MATRIX), "8Mbps")
    assert graph.edges[3, 4]["latency"] == 0.005
    assert graph.edges[4, 3]["latency"] == 0.006
    assert graph.edges[0, 3] == {"bandwidth": 1e6, "latency": 0.0}


def test_a_matrix_may_be_of_one_way_latencies_in_another_unit(write):
    graph = from_latency_csv(write(MATRIX), latency_unit="s", round_trip=False)
    assert graph.edges[3, 4]["latency"] == 10


def test_the_connection_cap_is_that_of_the_whole_round_trip(write):
    graph = from_latency_csv(write(MATRIX), window="1MB", max_flow="inf")
    assert graph.edges[3, 4]["flow_bandwidth"] == pytest.approx(1e6 / 0.011)


def test_an_empty_cell_means_no_direct_link(write):
    graph = from_latency_csv(write(MATRIX))
    assert not graph.has_edge(4, 5)
    assert nx.shortest_path(graph, 1, 2) == [1, 4, 3, 5, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("to,a,b\na,0,1\n", "1 rows for 2 names"),
        ("to,a,b\na,0,1\nb,x,0\n", "line 3, column 'a': 'x' is no number"),
        ("to,a,b\na,0,1\nb,-1,0\n", "line 3, column 'a': -1 must be finite"),
        ("to,a,b\na,0,1\nb,inf,0\n", "line 3"),
        ("to,a,b\na,0,1\nb,1\n", "line 3: 1 values, expected 2"),
        ("to,a,b\nb,0,1\na,1,0\n", "line 2: row 'b' where column 1 is 'a'"),
        ("to,a,a\na,0,1\na,1,0\n", "line 1: 2 names"),
        ("to,a,b\na,0,\nb,,0\n", "host 1: cannot be reached"),
        (b"to,\xff\n", "not UTF-8"),
    ],
)
def test_a_broken_matrix_is_refused_with_its_line(write, text, message):
    with pytest.raises(ValueError, match=message):
        from_latency_csv(write(text))


def test_a_matrix_with_too_many_names_is_refused(write):
    with pytest.raises(ValueError, match="1 to 1024"):
        from_latency_csv(write("to," + ",".join(map(str, range(1025))) + "\n"))
