"""Collectives alone: one coupled activity, the steps as flows, and the closed form agree."""

import networkx as nx
import numpy as np
import pytest

from experiments.validate.columns import DATA
from sim.network import closed_forms as closed

GOLDEN = DATA / "network"

both = pytest.mark.parametrize("mode", ["coupled", "flows"])


@both
@pytest.mark.parametrize("n", [2, 5, 16])
def test_a_ring_on_equal_links_takes_its_closed_form(env, access, mode, n):
    network = access([10.0] * n, latency=0.3, collectives=mode)
    env.run(network.all_reduce(range(n), 600.0))
    assert env.now == pytest.approx(closed.ring_all_reduce_seconds(600.0, n, 10.0, 0.3), rel=1e-9)


@both
@pytest.mark.parametrize("seed", range(5))
def test_a_ring_on_unequal_links_is_paced_by_its_slowest_hop(env, access, mode, seed):
    rng = np.random.default_rng(seed)
    up, down, latency = rng.uniform(5, 50, 8), rng.uniform(5, 50, 8), rng.uniform(0, 5, 8)
    network = access(up, down, latency, collectives=mode)
    env.run(network.all_reduce(range(8), 900.0))
    hops = np.minimum(up, np.roll(down, -1))
    expected = closed.ring_all_reduce_seconds(900.0, 8, hops, latency)
    assert env.now == pytest.approx(expected, rel=1e-9)


@both
def test_a_ring_over_one_backbone_shares_it_among_its_hops(env, access, mode):
    network = access([10.0] * 8, latency=0.2, backbone=20.0, collectives=mode)
    env.run(network.all_reduce(range(8), 400.0))
    assert env.now == pytest.approx(closed.ring_all_reduce_seconds(400.0, 8, 2.5, 0.2), rel=1e-9)


@both
def test_a_ring_takes_as_long_as_in_simgrid(env, access, mode):
    data = np.load(GOLDEN / "ring_16_het.npz")
    up, down = data["link_bw"][:16], data["link_bw"][16:]
    network = access(up, down, data["link_lat"][0], collectives=mode)
    env.run(network.all_reduce(range(16), 16.0 * data["flow_bytes"][0]))
    assert env.now == pytest.approx(data["finish"].max(), rel=1e-6)


@both
def test_a_flow_bandwidth_paces_the_ring(env, attach, mode):
    graph = nx.complete_graph(4)
    nx.set_node_attributes(graph, "host", "kind")
    for u, v in graph.edges:
        graph.edges[u, v].update(bandwidth=100.0, latency=0.0, flow_bandwidth=10.0)
    env.run(attach(graph, collectives=mode).all_reduce(range(4), 400.0))
    assert env.now == pytest.approx(closed.ring_all_reduce_seconds(400.0, 4, 10.0))


@both
@pytest.mark.parametrize("n", [2, 5, 16])
def test_a_gather_along_a_ring_takes_its_closed_form(env, access, mode, n):
    network = access([10.0] * n, latency=0.3, collectives=mode)
    env.run(network.all_gather(range(n), 60.0))
    assert env.now == pytest.approx(closed.all_gather_seconds(60.0, n, 10.0, 0.3), rel=1e-9)


@pytest.mark.parametrize("mode", ["coupled", "flows"])
def test_a_gather_keeps_one_connection_per_hop(env, attach, mode):
    graph = nx.Graph()
    graph.add_nodes_from(range(4), kind="host")
    limits = [40.0, 10.0, 50.0, 20.0]
    for i, limit in enumerate(limits):
        graph.add_edge(i, (i + 1) % 4, bandwidth=np.inf, latency=0.5, flow_bandwidth=limit)
    network = attach(graph, collectives=mode)
    env.run(network.all_gather(range(4), [100.0] * 4))
    assert env.now == pytest.approx(3 * (100.0 / 10.0 + 0.5), rel=1e-9)


@both
def test_a_gather_by_mesh_pays_the_latency_once(env, access, mode):
    network = access([10.0] * 6, latency=0.3, collectives=mode)
    env.run(network.all_gather(range(6), 60.0, algorithm="mesh"))
    assert env.now == pytest.approx(5 * 60.0 / 10.0 + 0.3, rel=1e-9)


@both
def test_everybody_hears_everybody_once(env, access, mode):
    network, heard = access([10.0] * 5, collectives=mode), []
    gather = network.all_gather(range(5), 60.0, on_heard=lambda *pair: heard.append(pair))
    env.run(gather)
    everybody = {(i, j) for i in range(5) for j in range(5) if i != j}
    expected = {(i, None) for i in range(5)} if mode == "coupled" else everybody
    assert len(heard) == len(expected)
    assert set(heard) == expected
    assert gather.heard == heard


@both
@pytest.mark.parametrize("algorithm", ["ring", "mesh"])
def test_in_a_gather_each_payload_crosses_all_but_one_member(env, access, mode, algorithm):
    sizes = [10.0, 20.0, 30.0, 40.0]
    network = access([10.0] * 4, latency=0.1, collectives=mode)
    outcome = env.run(network.all_gather(range(4), sizes, algorithm=algorithm))
    totals = network.totals()
    assert totals.sent.sum() == pytest.approx(3 * sum(sizes))
    assert totals.received == pytest.approx([sum(sizes) - size for size in sizes])
    assert [outcome.sent[i] for i in range(4)] == pytest.approx(totals.sent.tolist())
    assert outcome.contributors == [0, 1, 2, 3]
    assert outcome.wasted == 0.0


@both
def test_in_a_ring_each_member_sends_almost_twice_the_bytes(env, access, mode):
    network = access([10.0] * 5, collectives=mode, header_bytes=3)
    outcome = env.run(network.all_reduce(range(5), 100.0))
    each = 2 * 4 * (100.0 / 5 + 3)
    assert network.totals().sent == pytest.approx([each] * 5)
    assert outcome.sent == pytest.approx(dict.fromkeys(range(5), each))


def test_a_broadcast_along_a_chain_is_pipelined(env, access):
    network = access([10.0] * 5, latency=0.5)
    outcome = env.run(network.broadcast(2, range(5), 100.0))
    assert env.now == pytest.approx(100.0 / 10.0 + 4 * 0.5)
    assert outcome.sent == {2: 100.0, 0: 100.0, 1: 100.0, 3: 100.0, 4: 0.0}


def test_a_broadcast_down_a_tree_has_half_the_rate_and_less_latency(env, access):
    network = access([10.0] * 7, latency=0.5)
    env.run(network.broadcast(0, range(7), 100.0, algorithm="tree"))
    assert env.now == pytest.approx(100.0 / 5.0 + 2 * 0.5)


@both
def test_an_exchange_takes_what_its_transfers_take(env, access, mode):
    pairs, sizes = [(0, 1), (0, 2), (1, 0), (3, 2)], [50.0, 20.0, 70.0, 90.0]
    network = access([10.0, 20.0, 30.0, 40.0], latency=0.1, collectives=mode)
    env.run(network.flow_set(pairs, sizes))
    alone, exchange = env.now, network.exchange(pairs, sizes)
    env.run(exchange)
    assert env.now - alone == pytest.approx(alone)
    assert sorted(exchange.heard) == sorted(pairs)


@both
def test_a_competitor_takes_its_share_from_the_ring(env, access, mode):
    network = access([10.0] * 4, collectives=mode)
    ring = network.all_reduce(range(4), 400.0)
    network.transfer(0, 1, 1e9)
    env.run(ring)
    assert env.now == pytest.approx(closed.ring_all_reduce_seconds(400.0, 4, 5.0), rel=1e-9)


@both
def test_one_member_is_done_when_it_is_ready(env, access, mode):
    network, done = access([10.0] * 2, collectives=mode), []
    for start in (network.all_reduce, network.all_gather):
        collective = start([1], 100.0, [env.timeout(3.0)])
        collective.callbacks.append(lambda event: done.append((env.now, event.value)))
    env.run()
    assert [time for time, _ in done] == [3.0, 3.0]
    assert [outcome.contributors for _, outcome in done] == [[1], [1]]
    assert network.totals().sent.sum() == 0.0


def test_a_ring_starts_when_the_last_member_is_ready(env, access):
    network = access([10.0] * 3)
    outcome = env.run(network.all_reduce(range(3), 30.0, [env.timeout(t) for t in (1, 5, 2)]))
    assert env.now == pytest.approx(5.0 + 4.0)
    assert outcome.started == 1.0


def test_step_by_step_a_late_member_holds_up_those_behind_it(env, access):
    network = access([10.0] * 4, collectives="flows")
    network.all_reduce(range(4), 40.0, {1: env.timeout(50.0)})
    env.run(until=49.0)
    assert network.totals().sent == pytest.approx([30.0, 0.0, 10.0, 20.0])


def test_a_ring_knows_of_bandwidths_that_changed(env, access):
    network = access([20.0] * 4, latency=[0.5, 0.0, 0.0, 0.0])
    env.run(network.all_reduce(range(4), 80.0))
    network.set_bandwidth(2, 4, 5.0)
    began = env.now
    env.run(network.all_reduce(range(4), 80.0))
    expected = closed.ring_all_reduce_seconds(80.0, 4, [20, 20, 5, 20], [0.5, 0, 0, 0])
    assert env.now - began == pytest.approx(expected)


@both
def test_in_a_gather_a_late_member_delays_its_own_payload_only(env, access, mode):
    network = access([10.0] * 3, collectives=mode)
    gather = network.all_gather(range(3), 10.0, {2: env.timeout(50.0)})
    env.run(until=49.0)
    complete = {(0, None), (1, None)} if mode == "coupled" else {(0, 1), (0, 2), (1, 2), (1, 0)}
    assert set(gather.heard) == complete
    env.run(gather)
    assert 51.0 <= env.now <= 52.0


@both
def test_each_collective_leaves_a_record(env, access, rows, mode):
    network = access([10.0] * 3, collectives=mode)
    env.run(network.all_reduce(range(3), 30.0, [env.timeout(t) for t in (1, 5, 5)]))
    ((kind, fields),) = rows
    assert kind == "collective"
    assert {k: v for k, v in fields.items() if k not in ("time", "end", "link_seconds")} == {
        "op": "all_reduce",
        "n": 3,
        "start": 1.0,
        "nbytes": 30.0,
        "wasted": 0.0,
        "contributors": 3,
        "members": (0, 1, 2),
    }
    assert fields["time"] == fields["end"] == pytest.approx(9.0)
    assert fields["link_seconds"] == pytest.approx(4.0)
