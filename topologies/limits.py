"""Limits of structural arguments: a value in range comes back, any other raises ValueError.

Every message names the key, the value, the range and the nearest valid choice.
"""

from __future__ import annotations

from numbers import Integral, Real


def whole(key: str, value: int, what: str, low: int, high: int | None = None) -> int:
    """A whole number in [low, high]; `what` is the noun the limit belongs to ("a ring").

    >>> whole("n", 8, "a ring", low=2)
    8
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{key}={value!r}: {what} needs a whole number {key} >= {low}")
    return int(_within(key, value, what, low, high))


def real(key: str, value: float, what: str, low: float, high: float | None = None) -> float:
    """A number in [low, high], as a float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{key}={value!r}: {what} needs a number {key} >= {low:g}")
    return float(_within(key, value, what, low, high))


def _within(key: str, value: Real, what: str, low: Real, high: Real | None) -> Real:
    above = high is not None and value > high
    if above or not value >= low:  # `not >=` also refuses NaN
        span = f"{key} >= {low}" if high is None else f"{low} <= {key} <= {high}"
        close = high if above else low
        raise ValueError(f"{key}={value}: {what} needs {span}; nearest valid choice: {key}={close}")
    return value
