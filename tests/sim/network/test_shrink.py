"""Members that leave during a collective, deadlines, links that go down."""

import networkx as nx
import numpy as np
import pytest

both = pytest.mark.parametrize("mode", ["coupled", "flows"])
DETECTION = 10.0


def at(env, time, act, *args):
    env.timeout(time).callbacks.append(lambda _: act(*args))


def test_a_ring_goes_on_after_detection_with_the_bytes_that_are_left(env, access):
    network = access([10.0] * 4)  # D = 2 * 3 / 4 * 400 bytes: 60 s
    ring = network.all_reduce(range(4), 400.0)
    at(env, 24.0, network.leave, 2)
    outcome = env.run(ring)
    survivors_alone = 2 * 2 / 3 * 400.0 / 10.0
    assert env.now == pytest.approx(24.0 + DETECTION + (1 - 24.0 / 60.0) * survivors_alone)
    assert outcome.contributors == [0, 1, 3]
    assert outcome.wasted == pytest.approx(240.0)
    assert network.totals().wasted.tolist() == pytest.approx([0.0, 0.0, 240.0, 0.0])


@both
@pytest.mark.parametrize(("fraction", "counts"), [(0.45, False), (0.55, True)])
def test_a_share_counts_once_the_reduce_scatter_is_over(env, access, mode, fraction, counts):
    network = access([10.0] * 5, collectives=mode)
    ring = network.all_reduce(range(5), 500.0)
    at(env, fraction * 80.0, network.leave, 1)
    outcome = env.run(ring)
    assert outcome.contributors == ([0, 1, 2, 3, 4] if counts else [0, 2, 3, 4])


@both
def test_the_steps_of_a_ring_that_shrinks_move_what_the_coupled_one_moves(env, access, mode):
    network = access([10.0] * 5, collectives=mode)
    ring = network.all_reduce(range(5), 500.0)
    at(env, 40.001, network.leave, 1)  # just after a step: next to nothing is lost in flight
    outcome = env.run(ring)
    expected = 40.0 + DETECTION + 0.5 * 2 * 3 / 4 * 500.0 / 10.0
    assert env.now == pytest.approx(expected, abs=0.01)
    assert outcome.sent[0] == pytest.approx(0.5 * 800.0 + 0.5 * 750.0, abs=0.1)


@both
@pytest.mark.parametrize("op", ["all_reduce", "all_gather"])
def test_a_single_survivor_is_done_at_once(env, access, mode, op):
    network = access([10.0] * 2, collectives=mode)
    collective = getattr(network, op)([0, 1], 100.0)
    at(env, 3.0, network.leave, 1)
    outcome = env.run(collective)
    assert env.now == 3.0
    assert outcome.contributors == [0]


@both
@pytest.mark.parametrize("op", ["all_reduce", "all_gather"])
def test_with_nobody_left_there_are_no_contributors_and_all_bytes_are_waste(env, access, mode, op):
    network = access([10.0] * 3, collectives=mode)
    collective = getattr(network, op)(range(3), 100.0, {2: env.event()})
    for member in range(3):
        at(env, 43.0 + member, network.leave, member)
    outcome = env.run(collective)
    assert env.now == 45.0
    assert outcome.contributors == []
    assert outcome.wasted == pytest.approx(sum(outcome.sent.values()))


@both
@pytest.mark.parametrize("op", ["all_reduce", "all_gather"])
def test_a_member_that_leaves_before_it_is_ready_is_not_waited_for(env, access, mode, op):
    network = access([10.0] * 3, collectives=mode)
    collective = getattr(network, op)(range(3), 30.0, {1: env.event()})
    at(env, 20.0, network.leave, 1)
    outcome = env.run(collective)
    assert outcome.contributors == [0, 2]
    assert env.now <= 20.0 + DETECTION + 10.0


@both
def test_who_is_offline_at_the_start_is_left_out(env, access, mode):
    network = access([10.0] * 3, collectives=mode)
    network.leave(1)
    outcome = env.run(network.all_reduce(range(3), 30.0))
    assert env.now == pytest.approx(3.0)
    assert outcome.contributors == [0, 2]


def test_a_gather_drops_the_payload_of_who_left_and_reroutes_the_others(env, access):
    network = access([12.0] * 4)
    gather = network.all_gather(range(4), 40.0)
    at(env, 5.0, network.leave, 3)  # each payload has made one hop and half of the next one
    outcome = env.run(gather)
    # Payload 0 goes on in the middle of its hop, 1 begins its hop to 3 again, now to 0, and 2,
    # which only 3 had, begins anew: 20, 40 and 80 bytes per hop, of which the last counts.
    assert outcome.contributors == [0, 1, 2]
    assert env.now == pytest.approx(5.0 + DETECTION + 80.0 / 12.0)
    dropped, half_hops = 60.0, 20.0 + 20.0
    assert outcome.wasted == pytest.approx(dropped + half_hops)
    assert sum(outcome.sent.values()) == pytest.approx(3 * 2 * 40.0 + dropped + half_hops + 40.0)


def test_a_payload_on_its_way_still_pays_its_latency_when_its_last_receiver_leaves(env, access):
    network = access([10.0] * 4, latency=2.0)
    broadcast = network.broadcast(0, range(4), 10.0)  # 3 hops: 6 s, then 1 s
    at(env, 4.0, network.leave, 3)
    at(env, 6.5, lambda: heard.extend(broadcast.heard))
    at(env, 7.0 + 1e-6, lambda: heard.extend(broadcast.heard))
    heard = []
    env.run(broadcast)
    assert heard == [(0, None)]


@both
def test_a_payload_that_had_left_completely_counts(env, access, mode):
    network = access([12.0] * 4, collectives=mode)
    gather = network.all_gather(range(4), [1.0, 100.0, 100.0, 100.0])
    at(env, 20.0, network.leave, 0)
    assert env.run(gather).contributors == [0, 1, 2, 3]


@both
@pytest.mark.parametrize("algorithm", ["ring", "mesh"])
def test_a_deadline_keeps_what_has_been_delivered(env, access, mode, algorithm):
    network = access([10.0] * 3, collectives=mode)
    ready = {2: env.timeout(25.0)}
    gather = network.all_gather(range(3), 100.0, ready, algorithm=algorithm)
    at(env, 30.0, gather.cut)
    outcome = env.run(gather)
    assert env.now == 30.0
    assert outcome.contributors == [0, 1]
    assert outcome.wasted == pytest.approx(sum(outcome.sent.values()) - 400.0)
    assert outcome.wasted > 0.0


@both
def test_a_ring_that_is_cut_has_no_result(env, access, mode):
    network = access([10.0] * 3, collectives=mode)
    ring = network.all_reduce(range(3), 300.0)
    at(env, 25.0, ring.cut)
    outcome = env.run(ring)
    assert outcome.contributors == []
    assert outcome.wasted == pytest.approx(750.0)


@both
def test_whoever_hears_may_cut_the_gather(env, access, mode):
    network = access([10.0] * 4, collectives=mode)
    gather = network.all_gather(
        range(4), [10.0, 20.0, 30.0, 40.0], on_heard=lambda *_: gather.cut()
    )
    env.run(gather)
    assert len(gather.heard) == 1
    env.run()
    assert network.totals().sent.sum() == pytest.approx(sum(gather.value.sent.values()))


@both
def test_an_exchange_drops_flows_of_who_left_and_ends_after_detection(env, access, mode):
    network = access([10.0] * 4, collectives=mode)
    exchange = network.exchange([(0, 1), (1, 0), (2, 3)], 100.0)
    at(env, 4.0, network.leave, 0)
    outcome = env.run(exchange)
    assert env.now == 4.0 + DETECTION
    assert exchange.heard == [(2, 3)]
    assert outcome.contributors == [1, 2, 3]
    assert outcome.wasted == pytest.approx(80.0)


@both
def test_a_collective_takes_another_way_when_a_link_goes_down(env, attach, mode):
    network = attach(triangle(), collectives=mode)
    ring = network.all_reduce(range(3), 300.0)
    at(env, 15.0, network.link_down, 0, 1)
    outcome = env.run(ring)
    assert outcome.contributors == [0, 1, 2]
    assert 40.0 + DETECTION <= env.now < 40.0 + DETECTION + 10.0


@both
@pytest.mark.parametrize("op", ["all_reduce", "all_gather"])
def test_without_any_way_a_collective_waits_for_the_link(env, attach, mode, op):
    network = attach(triangle(), collectives=mode)
    collective = getattr(network, op)(range(3), 300.0)
    for u, v in ((0, 1), (0, 2)):
        at(env, 15.0, network.link_down, u, v)
        at(env, 500.0, network.link_up, u, v)
    outcome = env.run(collective)
    assert outcome.contributors == [0, 1, 2]
    assert 500.0 < env.now < 600.0


@both
@pytest.mark.parametrize("op", ["all_reduce", "all_gather", "broadcast", "exchange"])
@pytest.mark.parametrize("seed", range(6))
def test_under_any_departures_it_ends_and_bytes_add_up(env, access, mode, op, seed):
    rng = np.random.default_rng(seed)
    n = 7
    network = access(rng.uniform(5, 50, n), latency=0.2, collectives=mode, detection=2.0)
    ready = {member: env.timeout(rng.uniform(0, 5)) for member in range(n)}
    collective = {
        "all_reduce": lambda: network.all_reduce(range(n), 300.0, ready),
        "all_gather": lambda: network.all_gather(range(n), 30.0, ready),
        "broadcast": lambda: network.broadcast(3, range(n), 200.0, ready[3]),
        "exchange": lambda: network.exchange([(i, (i + 2) % n) for i in range(n)], 90.0, ready),
    }[op]()
    for member in rng.choice(n, 4, replace=False).tolist():
        at(env, rng.uniform(0, 40), network.leave, member)
    outcome = env.run(collective)
    env.run()
    totals = network.totals()
    assert totals.sent.sum() == pytest.approx(totals.received.sum())
    assert totals.sent.sum() == pytest.approx(sum(outcome.sent.values()))
    assert totals.wasted.sum() == pytest.approx(outcome.wasted)
    assert (totals.wasted <= totals.sent + 1e-9).all()


def triangle():
    graph = nx.cycle_graph(3)
    nx.set_node_attributes(graph, "host", "kind")
    for u, v in graph.edges:
        graph.edges[u, v].update(bandwidth=10.0, latency=0.0)
    return graph
