"""Messages: their time, their losses and what is counted."""

import networkx as nx
import numpy as np
import pytest

LATENCY, RATE = 0.1, 1000.0


@pytest.fixture
def chain(attach):
    """chain(loss, **options): hosts 0 - 1 - 2, each link losing that part of messages."""

    def make(loss=0.0, rng=None, **options):
        graph = nx.path_graph(3)
        nx.set_node_attributes(graph, "host", "kind")
        for edge in graph.edges:
            graph.edges[edge].update(bandwidth=RATE, latency=LATENCY, loss=loss)
        network = attach(graph, **options)
        network.attach(network.env, rng=rng)
        return network

    return make


def test_it_takes_its_latency_and_its_bytes_over_the_slowest_link(env, chain):
    network = chain(header_bytes=10)
    network.set_bandwidth(1, 2, 100.0)
    assert env.run(network.message(0, 2, 40.0)) is True
    assert env.now == pytest.approx(2 * LATENCY + 50.0 / 100.0)
    assert network.totals().sent.tolist() == [50.0, 0.0, 0.0]
    assert network.totals().received.tolist() == [0.0, 0.0, 50.0]


def test_messages_do_not_share(env, chain):
    network = chain()
    network.transfer(0, 1, 1e6)
    both = [network.message(0, 1, 100.0) for _ in range(2)]
    env.run(env.all_of(both))
    assert env.now == pytest.approx(LATENCY + 0.1)


def test_to_itself_it_takes_no_time_and_no_bytes(env, chain):
    network = chain()
    assert env.run(network.message(1, 1, 40.0)) is True
    assert env.now == 0.0
    assert network.totals().sent.sum() == 0.0


def test_whose_end_is_offline_is_lost_at_once(env, chain):
    network = chain()
    network.leave(1)
    assert env.run(network.message(0, 1, 40.0)) is False
    assert env.run(network.message(1, 0, 40.0)) is False
    assert env.now == 0.0


def test_without_a_path_it_is_lost_at_once(env, chain):
    network = chain()
    network.link_down(0, 1)
    assert env.run(network.message(0, 2, 40.0)) is False


def test_who_leaves_before_it_arrives_does_not_get_it(env, chain):
    network = chain()
    message = network.message(0, 1, 40.0)
    env.timeout(0.05).callbacks.append(lambda _: network.leave(1))
    assert env.run(message) is False
    assert network.totals().wasted[0] == 40.0


def test_a_lost_one_is_sent_again_after_timeouts_that_double(env, chain):
    network, seen = chain(0.5, np.random.default_rng(1), rto="500ms"), set()
    for _ in range(40):
        message, began = network.message(0, 1, 50.0), env.now
        env.run(message)
        waited = 0.5 * (2**message.lost - 1)
        assert env.now - began == pytest.approx(waited + LATENCY + 0.05)
        seen.add(message.lost)
    assert {0, 1, 2} <= seen


def test_the_timeout_is_twice_the_way_there_and_back_if_that_is_longer(env, chain):
    network = chain(0.5, np.random.default_rng(1), rto=0.0)
    while True:
        message, began = network.message(0, 1, 0.0), env.now
        env.run(message)
        if message.lost:
            break
    assert env.now - began == pytest.approx(4 * LATENCY * (2**message.lost - 1) + LATENCY)


def test_attempts_are_lost_as_often_as_the_links_of_the_path_say(env, chain):
    network, lost, tries = chain(0.2, np.random.default_rng(0), attempts=50), 0, 4000
    for _ in range(tries):
        lost += network.message(0, 2, 1.0).lost
    odds = (1 - 0.8**2) / 0.8**2
    assert lost / tries == pytest.approx(odds, abs=4 * np.sqrt(odds / 0.64 / tries))


def test_bytes_of_lost_attempts_are_sent_and_wasted(env, chain):
    network = chain(0.5, np.random.default_rng(2), attempts=3)
    messages = [network.message(0, 1, 10.0) for _ in range(60)]
    env.run()
    delivered = sum(message.value for message in messages)
    attempts = sum(message.lost + message.value for message in messages)
    totals = network.totals()
    assert 0 < delivered < 60
    assert all(message.lost <= 3 for message in messages)
    assert totals.sent[0] == pytest.approx(10.0 * attempts)
    assert totals.received[1] == pytest.approx(10.0 * delivered)
    assert totals.wasted[0] == pytest.approx(totals.sent[0] - totals.received[1])


def test_the_same_generator_loses_the_same_messages(env, chain):
    losses = []
    for _ in range(2):
        network = chain(0.4, np.random.default_rng(7))
        losses.append([network.message(0, 2, 1.0).lost for _ in range(30)])
    assert losses[0] == losses[1]


def test_links_with_a_loss_need_a_generator(chain):
    with pytest.raises(ValueError, match="expected attach"):
        chain(0.4).message(0, 1, 1.0)


def test_send_picks_a_message_up_to_the_threshold(env, chain):
    network = chain(message_bytes=100)
    network.transfer(0, 1, 1000.0)
    began, small = env.now, network.send(0, 1, 100.0)
    assert env.run(small) is True
    assert env.now - began == pytest.approx(LATENCY + 0.1)
    network, began = chain(message_bytes=100), env.now
    network.transfer(0, 1, 1000.0)
    assert env.run(network.send(0, 1, 101.0)) is True
    assert env.now - began == pytest.approx(LATENCY + 2 * 0.101)
    network.leave(1)
    assert env.run(network.send(0, 1, 101.0)) is False
