"""What a loss does to a collective, by rule: every collective, in every fidelity."""

import networkx as nx
import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.network import closed_forms as closed
from sim.network.network import Network

DETECTION, PATIENCE = 10.0, 100.0
RINGS = ["ring", "reduce_scatter", "all_gather"]
rules = pytest.mark.parametrize("failure", ["shrink", "abort", "wait", "retry"])
OPS = {
    "ring": lambda net, n, ready: net.all_reduce(range(n), 300.0, ready),
    "halving_doubling": lambda net, n, ready: net.all_reduce(
        range(n), 300.0, ready, "halving_doubling"
    ),
    "tree": lambda net, n, ready: net.all_reduce(range(n), 300.0, ready, "tree"),
    "butterfly": lambda net, n, ready: net.all_reduce(range(n), 300.0, ready, "butterfly"),
    "parameter_server": lambda net, n, ready: net.all_reduce(
        range(n), 300.0, ready, "parameter_server"
    ),
    "hierarchical": lambda net, n, ready: net.all_reduce(
        range(n), 300.0, ready, "hierarchical", {i: i % 3 for i in range(n)}
    ),
    "reduce_scatter": lambda net, n, ready: net.reduce_scatter(range(n), 300.0, ready),
    "all_gather": lambda net, n, ready: net.all_gather(range(n), 30.0, ready),
    "heard": lambda net, n, ready: net.all_gather(
        range(n), 30.0, ready, on_heard=lambda src, dst: None
    ),
    "unequal": lambda net, n, ready: net.all_gather(range(n), np.arange(30.0, 30 + n), ready),
    "mesh": lambda net, n, ready: net.all_gather(range(n), 30.0, ready, "mesh"),
    "broadcast": lambda net, n, ready: net.broadcast(3, range(n), 200.0, ready.get(3)),
    "all_to_all": lambda net, n, ready: net.all_to_all(range(n), 30.0, ready),
    "exchange": lambda net, n, ready: net.exchange(
        [(i, (i + 2) % n) for i in range(n)], 90.0, ready
    ),
}


CASES = [(op, mode) for op in OPS for mode in ("coupled", "flows")]
CASES += [(op, "hops") for op in RINGS]
every_case = pytest.mark.parametrize(("op", "mode"), CASES)


def at(env, time, act, *args):
    env.timeout(time).callbacks.append(lambda _: act(*args))


def check_bytes(network, outcome):
    totals = network.totals()
    assert totals.sent.sum() == pytest.approx(totals.received.sum())
    assert totals.sent.sum() == pytest.approx(sum(outcome.sent.values()))
    assert totals.wasted.sum() == pytest.approx(outcome.wasted)
    assert (totals.wasted <= totals.sent + 1e-6).all()
    assert not list(network.links.running())


@rules
@every_case
@pytest.mark.parametrize("seed", range(3))
def test_under_any_departures_and_cuts_it_ends_and_bytes_add_up(
    env, access, failure, op, mode, seed
):
    rng, n = np.random.default_rng(seed), 7
    options = {"collectives": mode, "failure": failure, "detection": 2.0, "patience": 5.0}
    network = access(rng.uniform(5, 50, n), latency=0.2, header_bytes=1, **options)
    ready = {member: env.timeout(rng.uniform(0, 5)) for member in range(n)}
    collective = OPS[op](network, n, ready)
    for member in rng.choice(n, 4, replace=False).tolist():
        at(env, rng.uniform(0, 40), network.leave, member)
    link = int(rng.integers(n))
    at(env, rng.uniform(0, 20), network.link_down, link, n)
    at(env, 30.0, network.link_up, link, n)
    if seed == 2:
        at(env, 25.0, collective.cut)
    outcome = env.run(collective)
    env.run()
    check_bytes(network, outcome)


@every_case
@pytest.mark.parametrize(("failure", "delay"), [("abort", DETECTION), ("wait", PATIENCE)])
def test_a_loss_ends_it_in_vain_after_the_delay(env, access, op, mode, failure, delay):
    network = access([10.0] * 6, collectives=mode, failure=failure, patience=PATIENCE)
    collective = OPS[op](network, 6, {})
    at(env, 7.0, network.leave, 3)
    outcome = env.run(collective)
    assert env.now == pytest.approx(7.0 + delay)
    assert outcome.contributors == []
    assert outcome.wasted == pytest.approx(sum(outcome.sent.values()))
    check_bytes(network, outcome)


@pytest.mark.parametrize(("op", "mode"), [case for case in CASES if case[0] != "broadcast"])
def test_a_retry_takes_what_the_survivors_take_alone(env, access, op, mode):
    network = access([10.0] * 6, collectives=mode, failure="retry")
    collective = OPS[op](network, 6, {})
    at(env, 7.0, network.leave, 5)
    outcome = env.run(collective)
    took = env.now - 7.0 - DETECTION
    assert outcome.contributors == [0, 1, 2, 3, 4]
    check_bytes(network, outcome)
    before, began = network.totals().wasted.sum(), env.now
    env.run(OPS[op](network, 6, {}))
    assert took == pytest.approx(env.now - began)
    assert network.totals().wasted.sum() == pytest.approx(before)


def test_a_retried_ring_wastes_what_it_had_sent(env, access):
    network = access([10.0] * 4, failure="retry")
    ring = network.all_reduce(range(4), 400.0)
    at(env, 24.0, network.leave, 2)
    outcome = env.run(ring)
    assert outcome.wasted == pytest.approx(4 * 240.0)
    expected = 24.0 + DETECTION + closed.ring_all_reduce_seconds(400.0, 3, 10.0)
    assert env.now == pytest.approx(expected)


def test_a_second_loss_prolongs_a_retry(env, access):
    network = access([10.0] * 4, failure="retry")
    ring = network.all_reduce(range(4), 400.0)
    at(env, 24.0, network.leave, 2)
    at(env, 30.0, network.leave, 1)
    assert env.run(ring).contributors == [0, 3]
    assert env.now == pytest.approx(30.0 + DETECTION + 400.0 / 10.0)


def test_without_its_source_a_broadcast_has_nothing_to_retry(env, access):
    network = access([10.0] * 4, failure="retry")
    broadcast = network.broadcast(0, range(4), 400.0)
    at(env, 5.0, network.leave, 0)
    outcome = env.run(broadcast)
    assert outcome.contributors == []
    assert outcome.wasted == pytest.approx(3 * 50.0)


def test_under_abort_a_link_that_goes_down_is_a_loss(env, access):
    network = access([10.0] * 4, failure="abort")
    ring = network.all_reduce(range(4), 400.0)
    at(env, 24.0, network.link_down, 1, 4)
    assert env.run(ring).contributors == []
    assert env.now == 24.0 + DETECTION


@pytest.mark.parametrize("mode", ["coupled", "flows"])
def test_without_its_server_nothing_is_left_of_a_sum(env, access, mode):
    network = access([10.0] * 3, collectives=mode)
    server = network.all_reduce(range(3), 100.0, algorithm="parameter_server")
    at(env, 15.0, network.leave, 0)  # 2 x 75 bytes pushed of 2 x 100
    outcome = env.run(server)
    assert outcome.contributors == [1, 2]
    assert outcome.wasted == pytest.approx(150.0)
    assert env.now == pytest.approx(15.0 + DETECTION + 2 * 100.0 / 10.0)


@pytest.mark.parametrize("mode", ["coupled", "flows"])
def test_a_share_that_is_in_the_sums_stays_when_its_member_leaves(env, access, mode):
    network = access([10.0] * 4, collectives=mode)
    reduce = network.all_reduce(range(4), 80.0, algorithm="halving_doubling")
    at(env, 6.5, network.leave, 3)  # halving took 4 + 2 s
    outcome = env.run(reduce)
    assert outcome.contributors == [0, 1, 2, 3]


def test_a_site_whose_member_is_lost_across_is_served_by_another(env, access):
    network = access([10.0] * 4)
    sites = {0: "a", 1: "a", 2: "b", 3: "b"}
    reduce = network.all_reduce(range(4), 100.0, algorithm="hierarchical", sites=sites)
    at(env, 12.0, network.leave, 2)  # inside 10 s, across 10 s, the second half of it from 15 s on
    outcome = env.run(reduce)
    assert outcome.contributors == [0, 1]
    assert env.now > 12.0 + 10.0
    assert network.totals().received[3] == pytest.approx(100.0 + 100.0)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    op=st.sampled_from(sorted(OPS)),
    mode=st.sampled_from(["coupled", "hops", "flows", "auto"]),
    failure=st.sampled_from(["shrink", "abort", "wait", "retry"]),
)
def test_whatever_members_and_links_do_it_ends_and_bytes_add_up(seed, op, mode, failure):
    rng, env = np.random.default_rng(seed), simpy.Environment()
    n = int(rng.integers(4, 10))
    network = star(rng.uniform(5, 50, n), collectives=mode, failure=failure, detection=2.0)
    network.attach(env)
    collective = OPS[op](network, n, {m: env.timeout(rng.uniform(0, 30)) for m in range(n)})
    for member in rng.choice(n, int(rng.integers(0, n)), replace=False).tolist():
        at(env, rng.uniform(0, 60), network.leave, member)
        at(env, 60.0, network.join, member)
    for link in rng.integers(0, n, int(rng.integers(0, 4))).tolist():
        down = rng.uniform(0, 40)
        at(env, down, network.link_down, link, n)
        at(env, down + rng.uniform(0, 30), network.link_up, link, n)
        at(env, rng.uniform(0, 40), network.set_bandwidth, link, n, rng.choice([0.0, 1.0, 90.0]))
        at(env, 90.0, network.set_bandwidth, link, n, 20.0)
    if rng.random() < 0.3:
        at(env, rng.uniform(0, 50), collective.cut)
    env.run(until=1e6)
    assert collective.triggered
    check_bytes(network, collective.value)


def star(bandwidths, **options):
    """Hosts with private links to a router."""
    n, graph = len(bandwidths), nx.Graph()
    graph.add_nodes_from(range(n), kind="host")
    graph.add_node(n, kind="router")
    for host, bandwidth in enumerate(bandwidths):
        graph.add_edge(host, n, bandwidth=bandwidth, latency=0.1)
    return Network(graph, **options)
