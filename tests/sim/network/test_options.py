"""What a network may be asked for: wrong values are named, with the nearest right one."""

import pytest

from sim.network.options import CHOICES, NetworkOptions


def test_quantities_become_seconds_and_bytes():
    options = NetworkOptions(detection="2min", rto="5ms", header_bytes="1KiB", message_bytes="2kB")
    assert (options.detection, options.rto) == (120.0, 0.005)
    assert (options.header_bytes, options.message_bytes) == (1024, 2000)


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_is_accepted_and_another_is_not(name):
    for choice in CHOICES[name]:
        assert getattr(NetworkOptions(**{name: choice}), name) == choice
    with pytest.raises(ValueError, match=f"{name}='{CHOICES[name][1]}s': .*'{CHOICES[name][1]}'"):
        NetworkOptions(**{name: f"{CHOICES[name][1]}s"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"approximate": 1.5}, "approximate=1.5: must lie in"),
        ({"connections": 0}, "connections=0: expected 1"),
        ({"attempts": 0}, "attempts=0: expected 1 or more"),
        ({"detection": "-1s"}, "detection=-1: must be >= 0"),
        ({"message_bytes": "3 apples"}, "message_bytes"),
    ],
)
def test_a_wrong_value_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        NetworkOptions(**options)
