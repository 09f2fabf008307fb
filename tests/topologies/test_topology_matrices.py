"""Topologies from latency and bandwidth matrices; untrusted files."""

import math

import networkx as nx
import pytest

from sim.network.routes import Routes
from topologies import from_latency_csv, from_matrices

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
        ("to,a,b\na,0,1\n", "1 rows for 2 names, none for 'b'"),
        ("to,a,b\nb,0,1\n", "none for 'a'"),
        ("to,a,b\na,0,1\nb,1,0\na,0,1\n", "line 4: row 'a', .*expected no more rows"),
        ("to,a,b\na,0,1\nc,1,0\nb,1,0\n", "line 3: row 'c', which is no column"),
        ("to,a,b\na,0,1\nb,nan,0\n", "line 3, column 'a': nan must be finite"),
        ("to,a,b\na,0,1\nb,x,0\n", "line 3, column 'a': 'x' is no number"),
        ("to,a,b\na,0,1\nb,-1,0\n", "line 3, column 'a': -1 must be finite"),
        ("to,a,b\na,0,1\nb,inf,0\n", "line 3"),
        ("to,a,b\na,0,1\nb,1\n", "line 3: 1 values, expected 2"),
        (
            "to,a,b\nb,0,1\na,1,0\n",
            "line 2: row 'b', which is column 2 of the header; expected row 'a'",
        ),
        ("to,a,a\na,0,1\na,1,0\n", "line 1: 'a' twice in the header"),
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


RATES = "Mbps,a,b,c\na,0,80,8\nb,40,,\nc,16,,0\n"
ACCESS = "name,up,down\nb,1,2\na,3,4\nc,5,6\n"


@pytest.fixture
def matrices(write, tmp_path):
    """matrices(rates, access, **options) -> graph, with the latencies of `MATRIX`."""

    def make(rates=RATES, access=None, **options):
        rtt, rate = write(MATRIX).rename(tmp_path / "rtt.csv"), write(rates)
        rate = rate.rename(tmp_path / "rate.csv")
        if access is not None and access.startswith("name"):
            access = write(access).rename(tmp_path / "access.csv")
        options |= {} if access is None else {"access": access}
        return from_matrices(rtt, rate, **options)

    return make


def test_both_directions_of_a_pair_have_their_own_bandwidth(matrices):
    graph = matrices()
    assert graph.edges[3, 4] == {"bandwidth": 1e7, "latency": 0.005}
    assert graph.edges[4, 3] == {"bandwidth": 5e6, "latency": 0.006}
    assert graph.edges[0, 3]["bandwidth"] == math.inf


def test_a_bandwidth_may_be_that_of_each_connection(matrices):
    graph = matrices(per_connection=True)
    assert graph.edges[3, 4] == {"bandwidth": math.inf, "latency": 0.005, "flow_bandwidth": 1e7}
    assert Routes(graph).route(0, 1)[2] == 1e7


def test_a_pair_without_a_cell_goes_through_another_host(matrices):
    routes = Routes(matrices())
    links = routes.route(1, 2)[0]
    assert routes.head[links].tolist() == [4, 3, 5, 2]


def test_access_links_are_read_by_name(matrices):
    graph = matrices(access=ACCESS)
    assert [graph.edges[i, i + 3]["bandwidth"] * 8 / 1e6 for i in range(3)] == [3, 1, 5]
    assert [graph.edges[i + 3, i]["bandwidth"] * 8 / 1e6 for i in range(3)] == [4, 2, 6]


def test_access_links_may_be_all_the_same(matrices):
    graph = matrices(access="8Mbps", bandwidth_unit="kbps")
    assert graph.edges[1, 4]["bandwidth"] == graph.edges[4, 1]["bandwidth"] == 1e6
    assert graph.edges[3, 4]["bandwidth"] == 1e4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("80", "0", "rate.csv, line 2, column 'b': 0 must be finite and > 0"),
        ("80", "-1", "rate.csv, line 2, column 'b': -1 must be"),
        ("80", "nan", "rate.csv, line 2, column 'b': nan must be"),
        ("80", "fast", "rate.csv, line 2, column 'b': 'fast' is no number"),
        ("80", "", r"rate.csv, row 'a', column 'b': empty, but not so in .*rtt.csv"),
        ("40,,", "40,,1", r"rtt.csv, row 'b', column 'c': empty, but not so in .*rate.csv"),
        ("c,16,,0\n", "", "2 rows for 3 names, none for 'c'"),
        (RATES, RATES.replace("c", "d"), r"rate.csv: column 3 is 'd', not 'c' as in .*rtt.csv"),
        (RATES, "Mbps,a,b\na,,1\nb,1,\n", r"rate.csv: 2 names, not 3 as in .*rtt.csv"),
    ],
)
def test_a_broken_bandwidth_matrix_is_refused_with_its_place(matrices, old, new, message):
    with pytest.raises(ValueError, match=message):
        matrices(RATES.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("up,", ",", "header `name,up,down`"),
        ("c,5,6\n", "", "no row for 'c'"),
        ("c,5,6", "a,5,6", "line 4: 'a,5,6'.*did you mean 'c'"),
        ("c,5,6", "cc,5,6", "line 4: 'cc,5,6'.*did you mean 'c'"),
        ("c,5,6", "c,5", "line 4: 'c,5'"),
        ("c,5,6", "c,0,6", "line 4, column 'up'.*must be > 0"),
        ("c,5,6", "c,5,x", "line 4, column 'down'"),
        ("c,5,6", "c,5,", "line 4, column 'down'"),
    ],
)
def test_a_broken_access_file_is_refused_with_its_line(matrices, old, new, message):
    with pytest.raises(ValueError, match=message):
        matrices(access=ACCESS.replace(old, new))


def test_units_of_matrices_are_checked(matrices):
    with pytest.raises(ValueError, match=r"bandwidth_unit='1Mb': unknown unit 'Mb'; did you mean"):
        matrices(bandwidth_unit="Mb")
    with pytest.raises(ValueError, match=r"access='1Gb': unknown unit 'Gb'; did you mean"):
        matrices(access="1Gb")


def test_measured_detours_are_not_taken(write):
    rtt = "ms,a,b,c\na,,90,10\nb,90,,10\nc,10,10,\n"
    routes = Routes(from_latency_csv(write(rtt)))
    assert routes.route(0, 1)[1] == pytest.approx(0.045)  # by c it would be 0.01
