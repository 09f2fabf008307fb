"""Random streams: independent by name, pure functions of who and when."""

import zlib

import numpy as np
import pytest

from sim.streams import Streams, hashes, name_key, uniforms

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def _split_mix(z):
    """SplitMix64's finaliser, with Python's integers."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def test_the_same_arguments_give_the_same_draws():
    first, again = (Streams(7).rng("churn", 3).random(5) for _ in range(2))
    assert (first == again).all()


@pytest.mark.parametrize("other", [(8, "churn", 3), (7, "donor", 3), (7, "churn", 4), (7, "churn")])
def test_seed_name_and_key_each_give_another_stream(other):
    seed, name, *key = other
    assert (Streams(seed).rng(name, *key).random(5) != Streams(7).rng("churn", 3).random(5)).all()


@pytest.mark.parametrize("seed", [-1, 1.0, "1", True, None])
def test_a_seed_is_a_whole_number_from_0(seed):
    with pytest.raises(ValueError, match="must be an integer >= 0"):
        Streams(seed)


def test_names_have_keys_that_outlive_the_process():
    assert name_key("123456789") == 0xCBF43926  # the check value of CRC-32


def test_the_mixer_is_the_finaliser_of_split_mix_64():
    assert _split_mix(GOLDEN) == 0xE220A8397B1DCDAF  # first output of seed 0 in its reference code
    base = _split_mix((5 * GOLDEN + zlib.crc32(b"data")) & MASK)
    row = _split_mix((_split_mix((base + 2 * GOLDEN) & MASK) + 10 * GOLDEN) & MASK)
    wanted = [_split_mix((row + i * GOLDEN) & MASK) for i in (1, 2, 3)]
    assert hashes(5, "data", np.array([2]), np.array([9]), 3)[0].tolist() == wanted


def test_draws_do_not_depend_on_who_shares_the_call():
    nodes, steps = np.array([4, 0, 9, 4]), np.array([1, 1, 7, 2])
    together = uniforms(3, "data", nodes, steps, 6)
    for i in range(4):
        alone = uniforms(3, "data", nodes[i : i + 1], steps[i : i + 1], 2)
        assert (together[i, :2] == alone[0]).all()


def test_draws_are_uniform_and_uncorrelated_between_nodes_and_steps():
    nodes, steps = (axis.ravel() for axis in np.meshgrid(np.arange(100), np.arange(100)))
    draws = uniforms(0, "data", nodes, steps, 1)[:, 0].reshape(100, 100)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert draws.mean() == pytest.approx(0.5, abs=4 * 12**-0.5 / 100)
    assert draws.var() == pytest.approx(1 / 12, rel=0.05)
    for a, b in ((draws[1:], draws[:-1]), (draws[:, 1:], draws[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.04


def test_huge_seeds_work_for_both_kinds_of_streams():
    assert Streams(2**70).rng("churn").random() < 1
    assert uniforms(2**70, "data", np.array([0]), np.array([0]), 1) < 1
