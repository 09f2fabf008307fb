"""Rings as an activity per hop: alone as the others, and nearer to the steps under competition."""

import numpy as np
import pytest

from sim.network import closed_forms as closed

OPS = {
    "all_reduce": lambda net, n: net.all_reduce(range(n), 900.0),
    "reduce_scatter": lambda net, n: net.reduce_scatter(range(n), 900.0),
    "all_gather": lambda net, n: net.all_gather(range(n), 90.0),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backbone", [None, 30.0])
@pytest.mark.parametrize("seed", range(3))
def test_alone_the_fidelities_agree(env, access, op, backbone, seed):
    rng, n, times = np.random.default_rng(seed), 8, []
    up, down, latency = 10.0 ** rng.uniform(1, 2, (2, n)), 10.0 ** rng.uniform(1, 2, n), 0.3
    for mode in ("hops", "coupled", "flows"):
        network, began = access(up[0], down, latency, backbone=backbone, collectives=mode), env.now
        env.run(OPS[op](network, n))
        times.append(env.now - began)
    assert times == pytest.approx([times[2]] * 3, rel=1e-9)


def test_a_hop_that_is_slowed_for_a_while_is_absorbed_up_to_the_slack(env, access):
    times = {}
    for mode in ("hops", "coupled"):
        network, began = access([10.0, 20.0, 20.0, 20.0], collectives=mode), env.now
        ring = network.all_reduce(range(4), 400.0)
        network.set_bandwidth(2, 4, 5.0)
        env.timeout(3.0).callbacks.append(lambda _, net=network: net.set_bandwidth(2, 4, 20.0))
        env.run(ring)
        times[mode] = env.now - began
    alone = closed.ring_all_reduce_seconds(400.0, 4, 10.0)
    assert times["coupled"] == pytest.approx(alone + 1.5)
    assert alone - 1e-9 <= times["hops"] < alone + 1.5


@pytest.mark.parametrize("seed", range(3))
def test_under_competition_it_is_nearer_to_the_steps(env, access, seed):
    rng, n, times = np.random.default_rng(seed), 12, {}
    up = 10.0 ** rng.uniform(1, 2, n)
    rivals = [(*rng.choice(n, 2, replace=False).tolist(), rng.uniform(50, 600)) for _ in range(40)]
    starts = rng.uniform(0, 120, 40)
    for mode in ("hops", "coupled", "flows"):
        network, began = access(up, collectives=mode), env.now
        ring = network.all_reduce(range(n), 2400.0)
        for rival, start in zip(rivals, starts):
            env.timeout(start).callbacks.append(lambda _, r=rival, net=network: net.transfer(*r))
        env.run(ring)
        times[mode] = env.now - began
        env.run()
    error = {mode: abs(times[mode] / times["flows"] - 1) for mode in times}
    assert error["hops"] <= error["coupled"] + 1e-9
    assert error["hops"] < 0.1


def test_auto_uses_flows_for_few_and_one_activity_for_many(env, access):
    small, large = (access([10.0] * n, collectives="auto") for n in (32, 33))
    for network, n, kind in ((small, 32, "SteppedReduce"), (large, 33, "RingReduce")):
        assert type(network.all_reduce(range(n), 10.0)).__name__ == kind
