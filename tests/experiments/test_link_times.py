"""Closed forms of link time beside the simulator's, on the places of the main job."""

from itertools import pairwise

import networkx as nx
import pytest

from experiments import cells, report
from experiments.assemble import assemble
from experiments.closed_forms import Exchange, link_time, ring_hops
from optimizers import DPSGD, AllReduce, DeMo, DiLoCo, Subset
from optimizers.compression import TopK
from sim.network.options import NetworkOptions
from sim.payload import Dense
from sim.reduction import Hierarchical
from topologies import datacenter, homes, regions
from topologies import ring as circle

EXCHANGES = {
    "all_reduce": Exchange("all_reduce", Dense("bfloat16")),
    "demo": Exchange.of(DeMo()),
}
PLACES = {"datacenter": datacenter(32), "regions": regions(32), "homes": homes(32)}


@pytest.fixture(scope="module")
def workload():
    return assemble(cells.read(["workload=1b", "task=quadratic"]).cells[0].cfg).workload


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", EXCHANGES)
def test_simulated_link_time_agrees_with_the_closed_form(method, place, workload):
    time = link_time(PLACES[place], workload, EXCHANGES[method])
    assert abs(time.deviation) < report.TOLERANCE


def test_a_hop_is_as_fast_as_its_slowest_link():
    graph = circle(4, bandwidth="8Mbps", latency="1ms")
    graph.edges[1, 2]["bandwidth"] = 1e5
    assert ring_hops(graph, 4) == [(1e6, 1e-3), (1e5, 1e-3), (1e6, 1e-3), (1e6, 1e-3)]


def test_a_gather_of_demo_loses_to_a_dense_ring_beyond_two_dense_over_sparse(workload):
    time = link_time(PLACES["homes"], workload, EXCHANGES["demo"])
    dense = 2 * workload.layout.numel
    assert time.crossing == pytest.approx(2 * dense / time.nbytes)
    assert round(time.crossing) == 85


def test_the_exchange_of_a_strategy_is_what_its_codec_allows():
    assert Exchange.of(AllReduce()).op == "all_reduce"
    assert Exchange.of(AllReduce(compressor=TopK(k=3))).op == "all_gather"
    assert Exchange.of(DiLoCo(inner_steps=7)).steps == 7
    assert Exchange.of(DPSGD()) is None
    assert Exchange.of(AllReduce(reduction=Hierarchical())) is None
    assert Exchange.of(DiLoCo(nodes=Subset(fastest=2))) is None


def test_one_node_has_no_link_time(workload):
    assert link_time(homes(1), workload, EXCHANGES["demo"]) is None


@pytest.mark.parametrize("method", EXCHANGES)
def test_with_several_connections_the_closed_form_still_holds(method, workload):
    several = NetworkOptions(connections=4)
    time = link_time(PLACES["regions"], workload, EXCHANGES[method], several)
    assert time.closed_form < link_time(PLACES["regions"], workload, EXCHANGES[method]).closed_form
    assert abs(time.deviation) < report.TOLERANCE


@pytest.mark.parametrize(
    "options", [{"all_reduce": "tree"}, {"ring_order": "min_max"}, {"header_bytes": 40}], ids=repr
)
def test_what_is_no_plain_ring_has_no_closed_form_here(options, workload):
    given = PLACES["regions"], workload, EXCHANGES["all_reduce"], NetworkOptions(**options)
    assert link_time(*given) is None


@pytest.mark.parametrize("place", PLACES)
def test_hops_are_those_of_the_shortest_paths(place):
    graph, hosts = PLACES[place], [*range(32), 0]
    for hop, (i, j) in zip(ring_hops(graph, 32), pairwise(hosts), strict=True):
        path = nx.shortest_path(graph, i, j, weight="latency")
        assert hop[1] == pytest.approx(sum(graph.edges[e]["latency"] for e in pairwise(path)))
