"""Checks of a task's arguments, with messages that name the argument, its value and its range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real


def at_least(minimum: int, arguments: Mapping[str, int]) -> None:
    """Raise ValueError unless every argument (name -> value) is an integer >= `minimum`."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
            raise ValueError(f"{name}={value!r}: must be an integer >= {minimum}; try {minimum}")


def not_negative(arguments: Mapping[str, float]) -> None:
    """Raise ValueError unless every argument (name -> value) is a finite number >= 0."""
    for name, value in arguments.items():
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise ValueError(f"{name}={value!r}: must be a finite number >= 0; try 0")


def positive(arguments: Mapping[str, float]) -> None:
    """Raise ValueError unless every argument (name -> value) is a finite number > 0."""
    not_negative(arguments)
    for name, value in arguments.items():
        if value == 0:
            raise ValueError(f"{name}={value!r}: must be > 0; try 1")
