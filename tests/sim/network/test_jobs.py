"""Several jobs on one network, and what callers may get wrong."""

from itertools import pairwise

import numpy as np
import pytest

from sim.network.schedules import Butterfly

modes = pytest.mark.parametrize("mode", ["coupled", "hops", "flows", "auto"])
STARTS = {
    "all_reduce": lambda net, ids, b: net.all_reduce(ids, b),
    "halving_doubling": lambda net, ids, b: net.all_reduce(ids, b, algorithm="halving_doubling"),
    "tree": lambda net, ids, b: net.all_reduce(ids, b, algorithm="tree"),
    "butterfly": lambda net, ids, b: net.all_reduce(ids, b, algorithm="butterfly"),
    "parameter_server": lambda net, ids, b: net.all_reduce(ids, b, algorithm="parameter_server"),
    "hierarchical": lambda net, ids, b: net.all_reduce(ids, b, algorithm="hierarchical"),
    "reduce_scatter": lambda net, ids, b: net.reduce_scatter(ids, b),
    "all_gather": lambda net, ids, b: net.all_gather(ids, b),
    "mesh": lambda net, ids, b: net.all_gather(ids, b, algorithm="mesh"),
    "broadcast": lambda net, ids, b: net.broadcast(ids[0], ids, b),
    "all_to_all": lambda net, ids, b: net.all_to_all(ids, b),
    "exchange": lambda net, ids, b: net.exchange(list(pairwise(ids)), b),
}
starts = pytest.mark.parametrize("op", STARTS)


@modes
def test_two_jobs_share_links_and_each_counts_its_own_bytes(env, access, mode):
    network = access([10.0] * 8, backbone=20.0, collectives=mode)
    first = network.all_reduce(range(4), 400.0)
    second = network.all_reduce(range(4, 8), 400.0)
    network.transfer(0, 7, 50.0)
    env.run(first & second)
    totals = network.totals()
    for ring, hosts in ((first, range(4)), (second, range(4, 8))):
        assert ring.value.sent == pytest.approx(dict.fromkeys(hosts, 600.0))
    assert totals.sent.sum() == pytest.approx(2 * 4 * 600.0 + 50.0)
    assert env.now == pytest.approx(totals.sent.sum() / 20.0, rel=0.02)  # the backbone was full


@modes
@starts
def test_no_bytes_take_the_latency_alone(env, access, mode, op):
    network = access([10.0] * 4, latency=0.5, collectives=mode)
    outcome = env.run(STARTS[op](network, [0, 1, 2, 3], 0.0))
    assert 0.5 <= env.now <= 6 * 0.5
    assert sum(outcome.sent.values()) == 0.0


@modes
@starts
def test_a_petabyte_takes_a_million_times_as_long_as_a_gigabyte(env, access, mode, op):
    times = []
    for nbytes in (1e9, 1e15):
        network, began = access([1e6] * 4, collectives=mode), env.now
        outcome = env.run(STARTS[op](network, [0, 1, 2, 3], nbytes))
        times.append(env.now - began)
        assert network.totals().sent.sum() == pytest.approx(sum(outcome.sent.values()))
    assert times[1] == pytest.approx(1e6 * times[0])


@modes
@starts
@pytest.mark.parametrize("nbytes", [-1.0, np.nan, np.inf])
def test_bytes_that_are_none_are_refused(access, mode, op, nbytes):
    network = access([10.0] * 4, collectives=mode)
    with pytest.raises(ValueError, match="expected a finite number >= 0"):
        STARTS[op](network, [0, 1, 2, 3], nbytes)


@starts
def test_unknown_hosts_are_refused(access, op):
    with pytest.raises(ValueError, match=r"host 9: expected 0 \.\. 3"):
        STARTS[op](access([10.0] * 4), [0, 1, 9], 1.0)


@pytest.mark.parametrize("op", [op for op in STARTS if op not in ("broadcast", "exchange")])
def test_members_are_given_once(access, op):
    with pytest.raises(ValueError, match="each host once"):
        STARTS[op](access([10.0] * 4), [0, 1, 1], 1.0)


@modes
@starts
def test_alone_one_is_done_at_once(env, access, mode, op):
    network = access([10.0] * 4, latency=0.5, collectives=mode)
    outcome = env.run(STARTS[op](network, [2], 100.0))
    assert env.now == 0.0
    assert sum(outcome.sent.values()) == 0.0


@modes
@starts
def test_with_everybody_offline_it_ends_at_once_with_nothing(env, access, mode, op):
    network = access([10.0] * 4, collectives=mode)
    for host in range(4):
        network.leave(host)
    outcome = env.run(STARTS[op](network, [0, 1, 2, 3], 100.0))
    assert env.now == 0.0
    assert outcome.contributors == []
    assert outcome.sent == dict.fromkeys(range(4), 0.0)


def test_an_exchange_with_oneself_takes_no_time_and_no_bytes(env, access):
    network = access([10.0] * 4, latency=0.5)
    exchange = network.exchange([(1, 1)], 100.0)
    env.run(exchange)
    assert env.now == 0.0
    assert exchange.heard == [(1, 1)]
    assert network.totals().sent.sum() == 0.0


@pytest.mark.parametrize(
    ("option", "wrong", "close"),
    [
        ("collectives", "flow", "flows"),
        ("failure", "shrinks", "shrink"),
        ("ring_order", "minmax", "min_max"),
    ],
)
def test_a_wrong_choice_names_the_nearest_one(access, option, wrong, close):
    with pytest.raises(ValueError, match=f"{wrong!r}.*did you mean {close!r}"):
        access([10.0] * 2, **{option: wrong})


def test_a_wrong_algorithm_names_the_nearest_one(access):
    network = access([10.0] * 4)
    with pytest.raises(ValueError, match="did you mean 'halving_doubling'"):
        network.all_reduce(range(4), 1.0, algorithm="halving")
    with pytest.raises(ValueError, match="did you mean 'mesh'"):
        network.all_gather(range(4), 1.0, algorithm="mash")


@pytest.mark.parametrize("share", [-1.0, np.nan, np.inf])
def test_shards_that_are_none_are_refused(share):
    with pytest.raises(ValueError, match=r"shards\[1\].*expected a finite number >= 0"):
        Butterfly({0: 1.0, 1: share})


@pytest.mark.parametrize("attempts", [0, -3])
def test_a_message_is_tried_at_least_once(access, attempts):
    with pytest.raises(ValueError, match="attempts"):
        access([10.0] * 2, attempts=attempts)
