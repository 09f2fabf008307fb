"""Quantities in strings: prefixes, bits and bytes, refusals that say what to write."""

import math

import pytest

from sim import units


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (units.seconds, "50ms", 0.05),
        (units.seconds, "1.5min", 90.0),
        (units.seconds, "3d", 259_200.0),
        (units.seconds, "1e-3 s", 0.001),
        (units.seconds, "inf", math.inf),
        (units.size, "4kB", 4000.0),
        (units.size, "4KiB", 4096.0),
        (units.size, "32Mbit", 4e6),
        (units.bandwidth, "100Mbps", 12.5e6),
        (units.bandwidth, "100MBps", 100e6),
        (units.bandwidth, "1Gbit/s", 125e6),
        (units.work, "1.5TFLOP", 1.5e12),
        (units.speed, "989TFLOPS", 989e12),
    ],
)
def test_a_string_becomes_a_number_in_its_base_unit(read, text, value):
    assert read(text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    "read", [units.seconds, units.size, units.bandwidth, units.work, units.speed]
)
def test_a_bare_number_is_in_the_base_unit_already(read):
    assert read(7) == read("7") == 7.0


@pytest.mark.parametrize("value", ["fast", "", "1 2 s", "ms", None, True, [1], "nan", math.nan])
def test_what_is_no_quantity_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"topology\.latency="):
        units.seconds(value, "topology.latency")


def test_an_unknown_unit_is_answered_with_the_nearest_one():
    with pytest.raises(ValueError, match=r"unknown unit 'mbps'; did you mean 'bps'"):
        units.bandwidth("100mbps")


def test_a_time_is_not_a_size():
    with pytest.raises(ValueError, match="unknown unit 'ms'"):
        units.size("5ms")


def test_negative_quantities_are_refused():
    with pytest.raises(ValueError, match="must be >= 0"):
        units.seconds("-1s")


@pytest.mark.parametrize("read", [units.bandwidth, units.speed])
def test_rates_must_be_positive(read):
    with pytest.raises(ValueError, match="must be > 0"):
        read(0)


def test_zero_seconds_are_fine_unless_something_must_take_time():
    assert units.seconds(0) == 0.0
    with pytest.raises(ValueError, match="must be > 0"):
        units.seconds(0, positive=True)


def test_nearest_of_nothing_is_nothing():
    assert units.nearest("ring", []) == ""
