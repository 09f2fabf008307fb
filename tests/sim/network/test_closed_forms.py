"""Closed forms against sums done step by step."""

import numpy as np
import pytest

from sim.network import closed_forms as closed

HOME = 18.9e6 / 8  # bytes/s up, of a home link


def test_a_ring_is_paced_by_its_slowest_hop():
    bandwidths, latencies = [10.0, 20.0, 40.0], [0.1, 2.0, 0.1]
    hops = [30.0 / 3 / b + latency for b, latency in zip(bandwidths, latencies)]
    assert closed.ring_all_reduce_seconds(30.0, 3, bandwidths, latencies) == 4 * max(hops)


def test_one_member_needs_no_time():
    assert closed.ring_all_reduce_seconds(1e9, 1, HOME) == 0.0
    assert closed.all_gather_seconds(1e9, 1, HOME, 0.1) == 0.0


def test_a_billion_parameters_over_home_links_take_half_an_hour():
    assert closed.ring_all_reduce_seconds(2e9, 32, HOME) == pytest.approx(1640, abs=1)
    assert closed.all_gather_seconds(46.9e6, 32, HOME) == pytest.approx(615, abs=1)
    assert closed.all_gather_seconds(16.6e6, 32, HOME) == pytest.approx(218, abs=1)


def test_beyond_the_crossover_the_gather_takes_longer_than_the_ring():
    n = closed.crossover_n(2e9, 46.9e6)
    for members, slower in ((int(n), False), (int(n) + 1, True)):
        ring = closed.ring_all_reduce_seconds(2e9, members, HOME)
        assert (closed.all_gather_seconds(46.9e6, members, HOME) > ring) == slower


@pytest.mark.parametrize("n", [2, 3, 8, 17])
@pytest.mark.parametrize("seed", range(3))
def test_members_of_a_ring_are_done_when_the_steps_say(n, seed):
    rng = np.random.default_rng(seed)
    bandwidths, latencies = 10.0 ** rng.uniform(0, 1, n), rng.uniform(0, 2, n)
    hop = 300.0 / n / bandwidths + latencies
    ends = [0.0] * n
    for step in range(2 * (n - 1)):
        before = list(ends)
        for i in range(n):
            ends[i] = max(before[i], before[i - 1] if step else 0.0) + hop[i]
    expected = [max(ends[i], ends[i - 1]) for i in range(n)]
    assert closed.member_seconds(300.0, n, bandwidths, latencies) == pytest.approx(expected)
    slowest = closed.ring_all_reduce_seconds(300.0, n, bandwidths, latencies)
    assert max(expected) == pytest.approx(slowest)


def test_fewer_members_than_a_full_level_make_a_tree_faster():
    full, one_less = (closed.tree_all_reduce_seconds(10.0, n, 10.0) for n in (7, 6))
    assert full == 8.0
    assert one_less < full
