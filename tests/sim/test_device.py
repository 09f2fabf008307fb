"""Devices: closed forms without jitter, moments with it, common random numbers."""

import math

import numpy as np
import pytest

from sim.compute.device import GPUS, Device
from sim.streams import Streams


def _bind(n=4, seed=0, **options):
    return Device(**options).bind(n, Streams(seed))


def test_a_step_takes_flops_over_reached_speed():
    devices = _bind(speed="100TFLOPS", mfu=0.5, jitter=0)
    assert devices.seconds(1e14, [0, 3], [0, 9]).tolist() == [2.0, 2.0]


def test_an_h100_reaches_its_share_of_the_published_peak():
    assert _bind(gpus="h100", mfu=0.4).speed.tolist() == [0.4 * 989e12] * 4


def test_sharding_multiplies_every_quantity():
    one, eight = _bind(gpus="a100"), _bind(gpus="a100", gpus_per_node=8)
    for name in ("speed", "memory", "memory_bandwidth", "price"):
        assert (getattr(eight, name) == 8 * getattr(one, name)).all()


def test_memory_takes_bytes_over_bandwidth():
    devices = _bind(memory_bandwidth="2TBps")
    assert devices.memory_seconds(np.array([2e12, 4e12]), [0, 1]).tolist() == [1.0, 2.0]


def test_a_list_names_the_nodes_in_turn():
    assert _bind(3, gpus=["h100", "rtx4090"]).gpu == ("h100", "rtx4090", "h100")


def test_shares_are_met_on_average():
    devices = _bind(20_000, gpus={"rtx4090": 3, "rtx3090": 1})
    share = np.mean([name == "rtx4090" for name in devices.gpu])
    assert share == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 20_000))


def test_each_node_has_the_memory_and_price_of_its_card():
    devices = _bind(50, gpus={"rtx5090": 1, "a100": 1})
    assert devices.memory.tolist() == [GPUS[name].memory for name in devices.gpu]
    assert devices.price.tolist() == [GPUS[name].price for name in devices.gpu]


def test_a_node_is_the_same_machine_in_a_larger_fleet():
    options = {"gpus": {"rtx5090": 1, "rtx3090": 1}, "spread": 0.3}
    small, large = _bind(5, **options), _bind(500, **options)
    assert small.gpu == large.gpu[:5]
    assert (small.speed == large.speed[:5]).all()


def test_spread_is_log_normal_with_mean_one():
    factor = _bind(40_000, spread=0.3, speed=1.0, mfu=1.0).speed
    assert factor.mean() == pytest.approx(1, abs=0.01)
    assert np.log(factor).std() == pytest.approx(0.3, rel=0.02)


def test_jitter_is_log_normal_with_mean_one():
    devices = _bind(1, jitter=0.2, speed=1.0, mfu=1.0)
    times = devices.seconds(1.0, np.zeros(40_000, int), np.arange(40_000))
    assert times.mean() == pytest.approx(1, abs=0.005)
    assert np.log(times).std() == pytest.approx(0.2, rel=0.02)


def test_stragglers_are_as_rare_and_as_slow_as_asked():
    devices = _bind(1, jitter=0, stragglers=(0.1, 5), speed=1.0, mfu=1.0)
    times = devices.seconds(1.0, np.zeros(20_000, int), np.arange(20_000))
    assert set(times) == {1.0, 5.0}
    assert (times == 5).mean() == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 20_000))


def test_a_request_of_many_steps_takes_the_sum_of_its_steps():
    devices = _bind(spread=0.2, jitter=0.3, stragglers=(0.2, 3))
    together = devices.seconds(1e15, [2, 0], [7, 100], count=150)
    for i, (node, first) in enumerate([(2, 7), (0, 100)]):
        alone = sum(devices.seconds(1e15, [node], [first + k])[0] for k in range(150))
        assert together[i] == pytest.approx(alone, rel=1e-12)


def test_times_do_not_depend_on_who_shares_the_call():
    devices = _bind(300, jitter=0.3, stragglers=(0.2, 3))
    together = devices.seconds(1e15, np.arange(300), np.arange(300) * 3, count=100)
    alone = [devices.seconds(1e15, [node], [3 * node], count=100)[0] for node in range(300)]
    assert together.tolist() == alone


def test_seeds_give_other_times():
    times = [_bind(seed=seed).seconds(1e15, [0], [0])[0] for seed in (0, 1)]
    assert times[0] != times[1]


def test_a_number_of_flops_per_node_is_charged_to_that_node():
    devices = _bind(speed=1e12, mfu=1.0, jitter=0)
    assert devices.seconds(np.array([1e12, 3e12]), [0, 1], 0).tolist() == [1.0, 3.0]


def test_every_card_of_the_table_is_plausible():
    for gpu in GPUS.values():
        assert 1e13 < gpu.speed < 1e16
        assert 1e10 < gpu.memory < 1e12
        assert 1e11 < gpu.memory_bandwidth < 1e13
        assert 0.1 < gpu.price < 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": "h10"}, "did you mean 'h100'"),
        ({"gpus": []}, "at least one"),
        ({"gpus": {"h100": 0}}, "one of them > 0"),
        ({"gpus_per_node": 0}, "gpus_per_node=0"),
        ({"mfu": 1.5}, "mfu=1.5"),
        ({"jitter": -1}, "jitter=-1"),
        ({"spread": math.nan}, "spread=nan"),
        ({"stragglers": (0.1, 0.5)}, "stragglers"),
        ({"stragglers": (0.1,)}, r"\(probability, factor\)"),
        ({"speed": "100Mbps"}, "unknown unit"),
        ({"memory": 0}, "memory=0"),
        ({"price": -1}, "price=-1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Device(**options)
