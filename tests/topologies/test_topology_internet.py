"""Regions with measured round-trip times, and homes behind access lines."""

import itertools
import math

import networkx as nx
import numpy as np
import pytest

from sim.network.routes import Routes
from topologies import AWS, access_lines, aws_regions, homes, hosts, region_names, regions
from topologies.access import quotas
from topologies.internet import Wan, region_latency

MEGABIT = 1e6 / 8
DEFAULT = Wan.read("inf", "83Mbit", "1.15Gbps")


def test_there_are_25_regions():
    assert len(region_names()) == 25


def test_latency_is_half_the_mean_round_trip_of_both_directions():
    # East US -> West US 71 ms, West US -> East US 73 ms in the published table.
    assert region_latency(["East US", "West US"])[0, 1] == pytest.approx(0.036)


def test_latencies_are_symmetric_and_known_for_all_pairs():
    latency = region_latency(region_names())
    off = ~np.eye(25, dtype=bool)
    assert np.array_equal(latency[off], latency.T[off])
    assert np.isfinite(latency[off]).all()


def test_the_direct_link_is_kept_though_a_detour_is_faster():
    names = ["East US", "Central India", "North Europe"]
    graph = regions(3, names)
    east, india, europe = 3, 4, 5
    direct = graph.edges[east, india]["latency"]
    detour = graph.edges[east, europe]["latency"] + graph.edges[europe, india]["latency"]
    assert detour < direct
    assert graph.graph["routing"] == "fewest_hops"
    assert nx.shortest_path(graph, 0, 1) == [0, east, india, 1]


@pytest.mark.parametrize("graph", [regions(25, "all"), aws_regions(10)])
def test_no_route_between_regions_takes_a_detour_though_some_are_faster(graph):
    routes, n = Routes(graph), len(hosts(graph))
    faster = 0
    for src, dst in itertools.permutations(range(n), 2):
        links, latency, cap = routes.route(src, dst)
        direct = graph.edges[n + src, n + dst]
        assert routes.head[links].tolist() == [n + src, n + dst, dst]
        assert latency == pytest.approx(direct["latency"] + 2 * 0.25e-3)
        assert cap == direct["flow_bandwidth"]
        nodes = nx.shortest_path(graph, src, dst, "latency")
        faster += nx.path_weight(graph, nodes, "latency") < latency - 1e-9
    assert faster > 0


def test_aws_connections_get_what_was_measured():
    graph = aws_regions(10)
    router = {region: 10 + i for i, region in enumerate(AWS)}
    # Gbit/s and ms of generate_sim_com_matrices.py in github.com/DS3Lab/DT-FM
    for a, b, gbps, ms in [("Oregon", "Virginia", 0.79, 67), ("Ireland", "Frankfurt", 1.08, 24)]:
        edge = graph.edges[router[a], router[b]]
        assert edge["flow_bandwidth"] == pytest.approx(gbps * 1000 * MEGABIT)
        assert edge["latency"] == pytest.approx(ms / 2 * 1e-3)


def test_several_aws_connections_share_the_backbone():
    graph = aws_regions(2, ["Tokyo", "London"], backbone="1Gbps")
    assert graph.edges[2, 3]["bandwidth"] == 1000 * MEGABIT


def test_an_unknown_aws_region_names_the_nearest():
    with pytest.raises(ValueError, match=r"region='Dublin'.*did you mean"):
        aws_regions(1, "Dublin")


def test_all_pairs_of_regions_are_linked():
    graph = regions(25, "all")
    routers = [node for node in graph if node not in hosts(graph)]
    assert all(graph.has_edge(u, v) for u, v in itertools.combinations(routers, 2))


def test_hosts_fill_regions_in_blocks():
    names = ["East US", "UK South", "Japan East"]
    graph = regions(7, names)
    placed = [graph.nodes[i]["region"] for i in range(7)]
    assert placed == [names[0]] * 3 + [names[1]] * 2 + [names[2]] * 2


def test_regions_without_hosts_have_no_router():
    assert len(regions(2, "all")) == 4


def test_a_near_connection_gets_the_most_a_connection_can():
    assert DEFAULT.flow_bandwidth(0.011) == pytest.approx(1150 * MEGABIT)


def test_a_far_connection_is_limited_by_its_window():
    graph = regions(2, ["East US", "Southeast Asia"])
    round_trip = 2 * graph.edges[2, 3]["latency"]
    assert graph.edges[2, 3]["flow_bandwidth"] == pytest.approx(83 * MEGABIT / round_trip)


def test_the_window_rule_is_near_what_was_measured_between_regions():
    # Round trip (ms) and bandwidth (Gbit/s) of AWS region pairs, github.com/DS3Lab/DT-FM.
    measured = [
        (11, 1.12),  # Virginia - Ohio
        (34, 1.10),  # Tokyo - Seoul
        (76, 1.16),  # Virginia - London
        (100, 0.761),  # Tokyo - Sydney
        (155, 0.535),  # Singapore - Frankfurt
        (199, 0.465),  # Tokyo - Ireland
        (265, 0.328),  # Sydney - Frankfurt
    ]
    for milliseconds, gbps in measured:
        ours = DEFAULT.flow_bandwidth(milliseconds * 1e-3) / (1000 * MEGABIT)
        assert ours == pytest.approx(gbps, rel=0.13)


def test_an_infinite_window_and_flow_lift_the_cap():
    graph = regions(2, window="inf", max_flow="inf", backbone="5Gbps")
    assert graph.edges[2, 3].keys() == {"bandwidth", "latency"}
    assert graph.edges[2, 3]["bandwidth"] == 5000 * MEGABIT


def test_an_unknown_region_names_the_nearest():
    with pytest.raises(ValueError, match=r"region='East UX'.*did you mean 'East US'"):
        regions(2, ["East UX", "UK South"])


def test_a_region_may_not_be_given_twice():
    with pytest.raises(ValueError, match="different names"):
        regions(2, ["UK South", "UK South"])


@pytest.mark.parametrize(
    ("technology", "down", "up", "milliseconds"),
    [("cable", 184.08, 18.88, 14), ("fibre", 171.01, 112.36, 8), ("starlink", 104.71, 14.84, 45)],
)
def test_without_spread_every_home_has_the_published_median(technology, down, up, milliseconds):
    graph = homes(3, technology, spread=0)
    for home in range(3):
        assert graph.edges[3, home]["bandwidth"] == pytest.approx(down * MEGABIT)
        assert graph.edges[home, 3]["bandwidth"] == pytest.approx(up * MEGABIT)
        round_trip = graph.edges[3, home]["latency"] + graph.edges[home, 3]["latency"]
        assert round_trip == pytest.approx(milliseconds * 1e-3)


def test_british_homes_have_the_published_median():
    assert access_lines("GB")["fixed"]["up"] == pytest.approx(18.4 * MEGABIT)


def test_spread_is_log_normal_around_the_median():
    n = 2000
    graph = homes(n, "cable", spread=0.5, seed=1)
    factors = np.log([graph.edges[i, n]["bandwidth"] / (18.88 * MEGABIT) for i in range(n)])
    assert abs(factors.mean()) < 4 * 0.5 / math.sqrt(n)
    assert factors.std() == pytest.approx(0.5, rel=0.1)


def test_a_home_keeps_its_luck_when_others_join():
    few, many = homes(4, "cable", seed=5), homes(40, "cable", seed=5)
    assert [few.edges[i, 4] for i in range(4)] == [many.edges[i, 40] for i in range(4)]


def test_technologies_have_their_quotas_for_every_seed():
    for seed in range(5):
        graph = homes(10, {"cable": 7, "fibre": 3}, seed=seed)
        drawn = [graph.nodes[i]["technology"] for i in range(10)]
        assert (drawn.count("cable"), drawn.count("fibre")) == (7, 3)


def test_the_seed_draws_which_home_has_which_technology():
    drawn = {tuple(dict(homes(10, seed=s).nodes(data="technology")).values()) for s in range(5)}
    assert len(drawn) > 1


def test_quotas_miss_no_share_by_a_whole_home():
    shares = {"a": 0.21, "b": 0.33, "c": 0.46}
    for n in range(1, 40):
        names = quotas(n, shares)
        assert len(names) == n
        assert all(abs(names.count(k) - n * share) < 1 for k, share in shares.items())


def test_homes_in_regions_are_joined_by_measured_latencies():
    graph = homes(4, regions=["East US", "West US"])
    assert graph.graph["routing"] == "fewest_hops"
    assert graph.edges[4, 5]["latency"] == graph.edges[5, 4]["latency"] == pytest.approx(0.036)
    assert nx.shortest_path(graph, 0, 3) == [0, 4, 5, 3]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: homes(0), "n=0"),
        (lambda: homes(4, country="UK"), "country='UK'"),
        (lambda: homes(4, "fiber"), "did you mean 'fibre'"),
        (lambda: homes(4, {"cable": -1}), "technologies.*-1"),
        (lambda: homes(4, {"cable": 0}), "at least one weight"),
        (lambda: homes(4, spread=-0.5), "spread=-0.5"),
    ],
)
def test_a_wrong_argument_of_homes_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
