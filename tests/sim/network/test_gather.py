"""The all-gather as one activity, with members that are late, beside the relay in flows."""

import numpy as np
import pytest

from sim.network import closed_forms as closed

S, B = 60.0, 10.0


def gathered(env, access, mode, late, n=6, latency=0.0, sizes=S, heard=None):
    """Seconds until the end of a gather, `late` saying from when members are ready."""
    network, began = access([B] * n, latency=latency, collectives=mode), env.now
    ready = {member: env.timeout(at) for member, at in late.items()}
    env.run(network.all_gather(range(n), sizes, ready, on_heard=heard))
    return env.now - began


@pytest.mark.parametrize("latency", [0.0, 0.5])
@pytest.mark.parametrize("late", [0.4, 1.0, 5.0, 6.0, 17.0])
def test_one_that_is_late_is_as_late_as_in_the_relay(env, access, late, latency):
    step = S / B + latency
    coupled, flows = (
        gathered(env, access, mode, {2: late * step}, latency=latency)
        for mode in ("coupled", "flows")
    )
    beyond = late >= 5.0
    assert coupled == pytest.approx((late + 5) * step, rel=1e-9)
    if latency == 0.0 or beyond:
        assert coupled == pytest.approx(flows, rel=1e-9)


@pytest.mark.parametrize("late", [1.5, 2.25, 4.9])
def test_one_that_comes_amid_the_others_waits_less_than_a_payload_more_in_the_relay(
    env, access, late
):
    step = S / B
    coupled, flows = (
        gathered(env, access, mode, {2: late * step}) for mode in ("coupled", "flows")
    )
    assert coupled == pytest.approx((late + 5) * step, rel=1e-9)
    assert coupled <= flows < coupled + step


@pytest.mark.parametrize("latency", [0.0, 0.3])
@pytest.mark.parametrize("backbone", [None, 30.0])
@pytest.mark.parametrize("seed", range(3))
def test_one_that_comes_when_the_ring_is_idle_takes_its_own_hops(
    env, access, seed, backbone, latency
):
    rng, n, times = np.random.default_rng(seed), 8, []
    up, down = 10.0 ** rng.uniform(1, 2, (2, n))
    for mode in ("coupled", "flows"):
        network, began = access(up, down, latency, backbone, collectives=mode), env.now
        env.run(network.all_gather(range(n), S, {2: env.timeout(200.0)}))
        times.append(env.now - began)
    assert times[0] == pytest.approx(times[1], rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_when_members_come_one_by_one_the_deviation_is_what_is_documented(env, access, seed):
    rng, n = np.random.default_rng(seed), 8
    for spread in (0.1, 0.5, 1.0):
        up, down, times = *10.0 ** rng.uniform(1, 2, (2, n)), []
        late = rng.uniform(0, spread * (n - 1) * 840.0 / 10.0, n)
        for mode in ("coupled", "flows"):
            network, began = access(up, down, collectives=mode), env.now
            env.run(network.all_gather(range(n), 840.0, [env.timeout(at) for at in late]))
            times.append(env.now - began)
        assert -0.13 < times[0] / times[1] - 1 < 0.35


@pytest.mark.parametrize("seed", range(4))
def test_payloads_of_unequal_size_take_the_time_of_the_relay(env, access, seed):
    rng, n = np.random.default_rng(seed), 7
    up, down, latency = rng.uniform(5, 50, n), rng.uniform(5, 50, n), rng.uniform(0, 2, n)
    sizes, times = rng.uniform(10, 500, n).tolist(), []
    for mode in ("coupled", "flows"):
        network, began = access(up, down, latency, collectives=mode), env.now
        env.run(network.all_gather(range(n), sizes))
        times.append(env.now - began)
    hops = np.minimum(up, np.roll(down, -1))
    assert times == pytest.approx([closed.relay_seconds(sizes, hops, latency)] * 2, rel=1e-9)


def test_members_hear_a_payload_when_it_has_been_all_round(env, access):
    heard = []
    late = {0: 0.0, 1: 7.0, 2: 100.0, 3: 1.0}
    gathered(
        env, access, "coupled", late, 4, 0.5, heard=lambda *pair: heard.append((env.now, pair))
    )
    whole = 3 * (S / B + 0.5)
    expected = {member: (at + whole, (member, None)) for member, at in late.items()}
    assert [pair for _, pair in heard] == [(0, None), (3, None), (1, None), (2, None)]
    assert [time for time, _ in heard] == pytest.approx(
        [expected[member][0] for _, (member, _) in heard]
    )


def test_to_listen_changes_nothing(env, access):
    late = {i: float(i % 3) for i in range(6)}
    alone = gathered(env, access, "coupled", late, latency=0.2)
    listened = gathered(env, access, "coupled", late, latency=0.2, heard=lambda src, dst: None)
    assert listened == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("heard", [None, lambda src, dst: None])
def test_a_competitor_delays_the_payloads_that_are_on_their_way(env, access, heard):
    network = access([B] * 4)
    gather = network.all_gather(range(4), S, on_heard=heard)
    network.transfer(0, 1, 45.0)  # both at half of the link until it is done, after 9 s
    env.run(gather)
    assert env.now == pytest.approx(3 * S / B + 4.5)
    assert sorted(gather.heard) == [(i, None) for i in range(4)]


def test_totals_are_exact_in_the_middle(env, access):
    network = access([B] * 4)
    network.all_gather(range(4), S, {0: env.timeout(3.0)})
    env.run(until=9.0)  # 1, 2 and 3 have made a hop and a half, 0 one: all began at V = 0 or 30
    totals = network.totals()
    assert totals.sent.tolist() == pytest.approx([S + S / 2, S, S + S / 2, S + S / 2])
    assert totals.received.tolist() == pytest.approx(np.roll(totals.sent, 1).tolist())


def test_a_cut_counts_what_has_been_everywhere_by_then(env, access):
    network = access([B] * 4, latency=0.5)  # latency 1.5 s in all, behind the bytes
    gather = network.all_gather(range(4), S, {3: env.timeout(2.0)})
    env.timeout(20.0).callbacks.append(lambda _: gather.cut())
    outcome = env.run(gather)
    assert outcome.contributors == [0, 1, 2]
    assert gather.heard == [(0, None), (1, None), (2, None)]
    assert outcome.wasted == pytest.approx(3 * S)


def test_two_losses_one_after_the_other_leave_the_payloads_of_the_others(env, access):
    network = access([B] * 5, detection=1.0)
    gather = network.all_gather(range(5), S)
    for time, member in ((7.0, 1), (7.5, 4), (12.0, 3)):
        env.timeout(time).callbacks.append(lambda _, member=member: network.leave(member))
    outcome = env.run(gather)
    totals = network.totals()
    assert outcome.contributors == [0, 2]
    assert totals.sent.sum() == pytest.approx(totals.received.sum())
    useful = totals.sent.sum() - outcome.wasted
    assert useful >= 2 * S  # each of the two has the other's payload, lost ones may have them too
