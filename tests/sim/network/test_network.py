"""Transfers on a network: times in closed form, losses, counters, changes of links."""

import networkx as nx
import pytest

from sim.network.network import TransferLost
from sim.network.sharing import RttWeighted


def pair(bandwidth=10.0, latency=0.5, **edge):
    graph = nx.Graph()
    graph.add_nodes_from([0, 1], kind="host")
    graph.add_edge(0, 1, bandwidth=bandwidth, latency=latency, **edge)
    return graph


def at(env, time, act, *args):
    env.timeout(time).callbacks.append(lambda _: act(*args))


def test_delivery_takes_latency_and_bytes_over_bandwidth(env, attach):
    env.run(attach(pair()).transfer(0, 1, 100))
    assert env.now == 10.5


def test_the_two_directions_of_a_link_do_not_share(env, attach):
    network = attach(pair())
    network.transfer(1, 0, 100)
    env.run(network.transfer(0, 1, 100))
    assert env.now == 10.5


def test_two_transfers_share_a_link_equally(env, attach):
    network = attach(pair())
    env.run(network.flow_set([(0, 1), (0, 1)], 100))
    assert env.now == 20.5


def test_one_connection_gets_no_more_than_its_flow_bandwidth(env, attach):
    network = attach(pair(flow_bandwidth=2.0))
    env.run(network.transfer(0, 1, 100))
    assert env.now == 50.5


def test_headers_are_added_to_each_message(env, attach):
    network = attach(pair(), header_bytes=20)
    env.run(network.transfer(0, 1, 100))
    assert env.now == 12.5
    assert network.totals().sent.tolist() == [120.0, 0.0]


def test_to_itself_a_host_delivers_at_once(env, attach):
    network = attach(pair())
    env.run(network.transfer(0, 0, 100))
    assert env.now == 0
    assert network.totals().sent.sum() == 0


def test_empty_messages_take_the_latency(env, attach):
    env.run(attach(pair()).transfer(0, 1, 0))
    assert env.now == 0.5


@pytest.mark.parametrize("leaver", [0, 1])
def test_a_transfer_is_lost_when_an_end_leaves(env, attach, leaver):
    network = attach(pair())
    transfer = network.transfer(0, 1, 100)
    at(env, 4.5, network.leave, leaver)
    with pytest.raises(TransferLost, match="40 of 100"):
        env.run(transfer)
    assert env.now == 4.5
    assert network.totals().wasted.tolist() == [40.0, 0.0]


def test_a_loss_that_nobody_waits_for_is_silent(env, attach):
    network = attach(pair())
    network.transfer(0, 1, 100)
    at(env, 4.5, network.leave, 0)
    env.run()
    assert network.totals().wasted[0] > 0


def test_to_a_host_that_is_offline_nothing_is_sent_until_it_is_back(env, attach):
    network = attach(pair())
    network.leave(1)
    with pytest.raises(TransferLost):
        env.run(network.transfer(0, 1, 100))
    network.join(1)
    env.run(network.transfer(0, 1, 100))
    assert network.totals().sent.tolist() == [100.0, 0.0]


def test_a_host_that_left_still_forwards(env, attach):
    graph = nx.path_graph(3)
    nx.set_node_attributes(graph, "host", "kind")
    for u, v in graph.edges:
        graph.edges[u, v].update(bandwidth=10.0, latency=0.0)
    network = attach(graph)
    network.leave(1)
    env.run(network.transfer(0, 2, 100))
    assert env.now == 10.0


def test_a_departure_frees_the_link_for_others(env, access):
    network = access([10.0, 10.0, 10.0])
    network.transfer(0, 2, 100)
    other = network.transfer(1, 2, 100)
    at(env, 4.0, network.leave, 0)
    env.run(other)
    assert env.now == 12.0


def test_counters_are_up_to_date_in_mid_transfer(env, attach):
    network = attach(pair())
    network.transfer(0, 1, 100)
    env.run(until=3.5)
    totals = network.totals()
    assert totals.sent.tolist() == totals.received[::-1].tolist() == [30.0, 0.0]


def test_a_set_of_flows_tells_which_were_delivered(env, access):
    network = access([10.0, 10.0, 10.0])
    flows = network.flow_set([(0, 1), (0, 2)], [10, 100])
    at(env, 5.0, network.leave, 2)
    assert env.run(flows) == [True, False]


def test_bandwidth_may_change_under_way(env, attach):
    network = attach(pair(latency=0.0))
    transfer = network.transfer(0, 1, 100)
    at(env, 5.0, network.set_bandwidth, 1, 0, "40Bps")
    env.run(transfer)
    assert env.now == 6.25


def test_a_link_that_goes_down_loses_its_transfers_and_new_ones_take_another_way(env, attach):
    graph = nx.cycle_graph(3)
    nx.set_node_attributes(graph, "host", "kind")
    for u, v in graph.edges:
        graph.edges[u, v].update(bandwidth=10.0, latency=1.0)
    network = attach(graph)
    first = network.transfer(0, 1, 100)
    at(env, 3.0, network.link_down, 0, 1)
    with pytest.raises(TransferLost):
        env.run(first)
    env.run(network.transfer(0, 1, 100))
    assert env.now == 3.0 + 2.0 + 10.0
    network.link_up(0, 1)
    env.run(network.transfer(0, 1, 100))
    assert env.now == 15.0 + 1.0 + 10.0


def test_each_transfer_leaves_a_record(env, attach, rows):
    network = attach(pair(latency=0.0))
    network.transfer(0, 1, 100)
    network.transfer(1, 0, 200)
    at(env, 12.0, network.leave, 0)
    env.run()
    first = {"time": 10.0, "src": 0, "dst": 1, "nbytes": 100, "delivered": 100, "start": 0}
    second = {"time": 12.0, "src": 1, "dst": 0, "nbytes": 200, "delivered": 120.0, "start": 0}
    assert rows == [
        ("transfer", {**first, "status": "delivered"}),
        ("transfer", {**second, "status": "lost"}),
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: n.transfer(0, 2, 1), r"host 2: expected 0 \.\. 1"),
        (lambda n: n.transfer(0, 1, -1), "nbytes=-1"),
        (lambda n: n.all_reduce([0, 0], 1), "each host once"),
        (lambda n: n.all_gather([0, 1], [1, 2, 3]), "3 values: expected one, or 2"),
        (lambda n: n.all_gather([0, 1], 1, algorithm="rings"), "did you mean 'ring'"),
        (lambda n: n.exchange([(0, 1), (0, 1)], 1), "each pair once"),
        (lambda n: n.set_bandwidth(0, 5, 1), "no link from 0 to 5"),
    ],
)
def test_a_wrong_argument_is_named(attach, call, message):
    with pytest.raises(ValueError, match=message):
        call(attach(pair()))


def test_several_connections_get_several_times_the_limit_of_one(env, attach):
    env.run(attach(pair(flow_bandwidth=2.0), connections=3).transfer(0, 1, 90))
    assert env.now == 15.5


def test_a_transfer_of_several_connections_still_fits_the_link(env, attach):
    env.run(attach(pair(flow_bandwidth=2.0), connections=100).transfer(0, 1, 100))
    assert env.now == 10.5


def test_shares_go_with_the_inverse_of_the_latency_if_asked_for(env, attach):
    graph = nx.DiGraph()
    graph.add_nodes_from([0, 1, 2], kind="host")
    graph.add_node(3, kind="router")
    graph.add_edge(0, 3, bandwidth=1e9, latency=0.125)
    graph.add_edge(1, 3, bandwidth=1e9, latency=0.5)
    graph.add_edge(3, 2, bandwidth=10.0, latency=0.0)
    network = attach(graph, sharing=RttWeighted())
    network.transfer(0, 2, 1e6)
    network.transfer(1, 2, 1e6)
    env.run(until=100.5)
    sent = network.totals().sent
    # Alone for 0.375 s, then 4 parts in 5.
    assert sent[0] == pytest.approx(3.75 + 800.0)
    assert sent[1] == pytest.approx(200.0)


def test_loads_of_links_are_recorded_at_each_change(env, attach, rows):
    network = attach(pair(latency=0.0))
    network.record_loads()
    network.transfer(0, 1, 100)
    env.run()
    loads = [fields for kind, fields in rows if kind == "link"]
    same = {"link": 0, "u": 0, "v": 1, "capacity": 10.0}
    assert loads == [{"time": 0, "load": 10.0, **same}, {"time": 10.0, "load": 0.0, **same}]


@pytest.mark.parametrize("connections", [0, -1, 1001])
def test_a_wrong_number_of_connections_is_named(attach, connections):
    with pytest.raises(ValueError, match=f"connections={connections}: expected 1"):
        attach(pair(), connections=connections)


def test_with_loads_the_steps_of_a_collective_are_recorded_too(env, access, rows):
    network = access([10.0] * 3, collectives="flows")
    network.record_loads()
    env.run(network.all_reduce(range(3), 30.0))
    flows = [fields for kind, fields in rows if kind == "transfer"]
    assert len(flows) == 2 * 2 * 3  # 2 (n - 1) steps of n hops
    assert {(f["src"], f["dst"]) for f in flows} == {(0, 1), (1, 2), (2, 0)}
    assert {(f["nbytes"], f["delivered"], f["status"]) for f in flows} == {
        (10.0, 10.0, "delivered")
    }
    assert sorted({f["start"] for f in flows}) == pytest.approx([0.0, 1.0, 2.0, 3.0])
