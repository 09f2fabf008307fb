"""All-reduce algorithms and other collectives in their fidelities, beside closed forms."""

import networkx as nx
import numpy as np
import pytest

from sim.network import closed_forms as closed
from sim.network.schedules import Algorithm, Butterfly, Phase, Schedule

modes = pytest.mark.parametrize("mode", ["coupled", "flows", "auto"])
S, B, LATENCY = 840.0, 10.0, 0.3


def alone(env, network, start):
    began = env.now
    outcome = env.run(start(network))
    totals = network.totals()
    assert totals.sent.sum() == pytest.approx(totals.received.sum())
    assert totals.sent.sum() == pytest.approx(sum(outcome.sent.values()))
    assert outcome.wasted == 0.0
    return env.now - began


def reduced(algorithm, n, nbytes=S, **options):
    return lambda network: network.all_reduce(range(n), nbytes, algorithm=algorithm, **options)


CLOSED = {
    "halving_doubling": closed.halving_doubling_seconds,
    "tree": closed.tree_all_reduce_seconds,
    "butterfly": closed.butterfly_seconds,
    "parameter_server": closed.parameter_server_seconds,
}


@modes
@pytest.mark.parametrize("latency", [0.0, LATENCY])
@pytest.mark.parametrize("n", [2, 3, 7, 8, 13])
@pytest.mark.parametrize("algorithm", CLOSED)
def test_on_equal_links_it_takes_its_closed_form(env, access, mode, algorithm, n, latency):
    network = access([B] * n, latency=latency, collectives=mode)
    expected = CLOSED[algorithm](S, n, B, latency)
    assert alone(env, network, reduced(algorithm, n)) == pytest.approx(expected, rel=1e-9)


@modes
@pytest.mark.parametrize("latency", [0.0, LATENCY])
def test_the_other_collectives_take_their_closed_forms(env, access, mode, latency):
    network, n = access([B] * 7, latency=latency, collectives=mode), 7
    cases = [
        (lambda net: net.reduce_scatter(range(n), S), closed.reduce_scatter_seconds),
        (lambda net: net.all_gather(range(n), S), closed.all_gather_seconds),
        (lambda net: net.all_gather(range(n), S, algorithm="mesh"), closed.mesh_seconds),
        (lambda net: net.all_to_all(range(n), S), closed.mesh_seconds),
        (lambda net: net.broadcast(0, range(n), S), closed.chain_seconds),
        (lambda net: net.broadcast(0, range(n), S, algorithm="tree"), closed.tree_seconds),
    ]
    for start, form in cases:
        began = env.now
        env.run(start(network))
        assert env.now - began == pytest.approx(form(S, n, B, latency), rel=1e-9)


@modes
def test_a_hierarchy_is_a_ring_of_rings_and_a_chain(env, attach, mode):
    sizes, inside, across = [3, 4, 1], 20.0, 5.0
    network = attach(sites(sizes, inside, across), collectives=mode)
    took = alone(env, network, reduced("hierarchical", sum(sizes)))
    expected = closed.hierarchical_seconds(S, sizes, inside, across)
    assert took == pytest.approx(expected, rel=1e-9)


@modes
def test_sites_may_be_given(env, access, mode):
    network, n = access([B] * 6, collectives=mode), 6
    took = alone(env, network, reduced("hierarchical", n, sites={i: i % 2 for i in range(n)}))
    assert took == pytest.approx(closed.hierarchical_seconds(S, [3, 3], B, B), rel=1e-9)
    with pytest.raises(ValueError, match="no site of member 5"):
        network.all_reduce(range(n), S, algorithm="hierarchical", sites=dict.fromkeys(range(5), 0))


@pytest.mark.parametrize("latency", [0.0, LATENCY])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "algorithm", ["ring", "halving_doubling", "tree", "parameter_server", "hierarchical"]
)
@pytest.mark.parametrize("backbone", [None, "quarter"])
def test_fidelities_agree_on_unequal_links(env, access, algorithm, seed, latency, backbone):
    rng, n = np.random.default_rng(seed), 8
    up, down = 10.0 ** rng.uniform(1, 2, (2, n))
    times = {}
    for mode in ("coupled", "flows"):
        shared = up.sum() / 4 if backbone else None
        network = access(up, down, latency, backbone=shared, collectives=mode)
        times[mode] = alone(env, network, reduced(algorithm, n))
    assert times["coupled"] == pytest.approx(times["flows"], rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("op", ["butterfly", "all_to_all", "mesh"])
def test_all_to_all_agrees_on_unequal_private_links(env, access, op, seed):
    rng, n, times = np.random.default_rng(seed), 8, []
    up, down = 10.0 ** rng.uniform(1, 2, (2, n))
    start = {
        "butterfly": reduced("butterfly", n),
        "all_to_all": lambda net: net.all_to_all(range(n), S),
        "mesh": lambda net: net.all_gather(range(n), S, algorithm="mesh"),
    }[op]
    for mode in ("coupled", "flows"):
        times.append(alone(env, access(up, down, 0.3, collectives=mode), start))
    assert times[0] == pytest.approx(times[1], rel=1e-9)


def test_shards_are_in_proportion_to_bandwidth_unless_given(env, access):
    rates, shares = [10.0, 20.0, 30.0], [1 / 6, 2 / 6, 3 / 6]
    expected = closed.butterfly_seconds(S, 3, rates, LATENCY, shares)
    for algorithm in ("butterfly", Butterfly({0: 1.0, 1: 2.0, 2: 3.0})):
        network = access(rates, latency=LATENCY)
        assert alone(env, network, reduced(algorithm, 3)) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_unequal_shards_on_a_shared_backbone_deviate_by_two_percent(env, access, seed):
    rng, n, times = np.random.default_rng(seed), 8, []
    up, down = 10.0 ** rng.uniform(1, 2, (2, n))
    for mode in ("coupled", "flows"):
        network = access(up, down, backbone=up.sum() / 4, collectives=mode)
        times.append(alone(env, network, reduced("butterfly", n)))
    assert 0.98 <= times[0] / times[1] <= 1.0 + 1e-9


@pytest.mark.parametrize("mode", ["coupled", "flows"])
@pytest.mark.parametrize("algorithm", ["ring", *CLOSED])
def test_each_hop_may_open_several_connections(env, attach, mode, algorithm):
    graph, n = nx.complete_graph(4), 4
    nx.set_node_attributes(graph, "host", "kind")
    for edge in graph.edges:
        graph.edges[edge].update(bandwidth=100.0, latency=0.0, flow_bandwidth=10.0)
    times = []
    for connections in (1, 3):
        network = attach(graph, collectives=mode, connections=connections)
        times.append(alone(env, network, reduced(algorithm, n)))
    assert times[0] == pytest.approx(3 * times[1])


class Pairs(Algorithm):
    """Everybody swaps with a partner: not a sum, but a schedule of one's own."""

    def schedule(self, network, members, nbytes):
        hops = [(a, b) for a, b in zip(members, members[::-1])]
        return Schedule((Phase.equal(hops, nbytes),), 1)


@modes
def test_an_algorithm_of_ones_own_is_a_schedule(env, access, mode):
    network = access([B] * 4, latency=LATENCY, collectives=mode)
    assert alone(env, network, reduced(Pairs(), 4)) == pytest.approx(S / B + LATENCY)


def sites(sizes, inside, across):
    graph = nx.Graph()
    n = sum(sizes)
    graph.add_nodes_from(range(n), kind="host")
    graph.add_nodes_from(range(n, n + len(sizes) + 1), kind="router")
    host = 0
    for site, size in enumerate(sizes):
        graph.add_edge(n + 1 + site, n, bandwidth=across, latency=0.0)
        for _ in range(size):
            graph.add_edge(host, n + 1 + site, bandwidth=inside, latency=0.0)
            host += 1
    return graph
