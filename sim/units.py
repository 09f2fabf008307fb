"""Quantities in strings -> seconds, bytes, bytes per second, FLOP, FLOP per second.

Inside the simulator a quantity is a float in its base unit (seconds, bytes, bytes/s, FLOP,
FLOP/s). At constructors and in YAML it may be a string with a unit. Notable choices:

- `bps` counts bits and `Bps` counts bytes: a factor of eight is never guessed.
- Prefixes are decimal (`k M G T P`); `Ki Mi Gi Ti` are binary.
- A bare number is already in the base unit.
"""

from __future__ import annotations

import difflib
import math
import re

Quantity = float | int | str

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_PREFIX = _DECIMAL | _BINARY
_TIME = {
    "ns": 1e-9,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 604800.0,
}
_SIZE = {p + unit: f * b for p, f in _PREFIX.items() for unit, b in (("B", 1.0), ("bit", 0.125))}
_RATE = {
    p + unit: f * b
    for p, f in _PREFIX.items()
    for unit, b in (("Bps", 1.0), ("bps", 0.125), ("B/s", 1.0), ("bit/s", 0.125))
}
_WORK = {p + "FLOP": f for p, f in _DECIMAL.items()}
_SPEED = {p + unit: f for p, f in _DECIMAL.items() for unit in ("FLOPS", "FLOP/s", "FLOPs/s")}
_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?inf)\s*(\S*)\s*")


def seconds(value: Quantity, name: str = "time", *, positive: bool = False) -> float:
    """Read a time: `"50ms"`, `"90s"`, `"2h"`, `"3d"`; a bare number is seconds.

    >>> seconds("50ms"), seconds("2h"), seconds(3)
    (0.05, 7200.0, 3.0)
    """
    return _read(value, name, _TIME, "50ms, 90s, 2h", positive)


def size(value: Quantity, name: str = "size", *, positive: bool = False) -> float:
    """Read a size: `"4MB"`, `"4MiB"`, `"32Mbit"`; a bare number is bytes.

    >>> size("4MB"), size("4MiB"), size("32Mbit")
    (4000000.0, 4194304.0, 4000000.0)
    """
    return _read(value, name, _SIZE, "4MB, 4MiB, 32Mbit", positive)


def bandwidth(value: Quantity, name: str = "bandwidth", *, positive: bool = True) -> float:
    """Read a rate: `"100Mbps"` (bits), `"12.5MBps"` (bytes); a bare number is bytes per second.

    >>> bandwidth("100Mbps"), bandwidth("12.5MBps")
    (12500000.0, 12500000.0)
    """
    return _read(value, name, _RATE, "100Mbps (bits), 12.5MBps (bytes)", positive)


def work(value: Quantity, name: str = "work", *, positive: bool = False) -> float:
    """Read an amount of computation: `"1.5TFLOP"`; a bare number is FLOP.

    >>> work("1.5TFLOP")
    1500000000000.0
    """
    return _read(value, name, _WORK, "1.5TFLOP", positive)


def speed(value: Quantity, name: str = "speed", *, positive: bool = True) -> float:
    """Read a speed of computation: `"100TFLOPS"`; a bare number is FLOP per second.

    >>> speed("100TFLOPS")
    100000000000000.0
    """
    return _read(value, name, _SPEED, "100TFLOPS", positive)


def nearest(choice: str, choices: list[str]) -> str:
    """The choice spelled most like a wrong one, for error messages; `""` when there is none."""
    close = difflib.get_close_matches(choice, choices, n=1, cutoff=0.0)
    return close[0] if close else ""


def _read(
    value: Quantity, name: str, table: dict[str, float], example: str, positive: bool
) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{name}={value!r}: expected a number or a string such as {example}")
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        if match is None:
            raise ValueError(f"{name}={value!r}: expected a quantity such as {example}")
        number, unit = float(match[1]), match[2]
        if unit and unit not in table:
            close = nearest(unit, list(table))
            raise ValueError(
                f"{name}={value!r}: unknown unit {unit!r}; did you mean {close!r}? Write {example}"
            )
        value = number * table.get(unit, 1.0)
    if math.isnan(value):
        raise ValueError(f"{name}={value!r}: not a number")
    if value < 0 or (positive and value == 0):
        bound = "> 0" if positive else ">= 0"
        raise ValueError(f"{name}={value:g}: must be {bound}; write for example {example}")
    return float(value)
