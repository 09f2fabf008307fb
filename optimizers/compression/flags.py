"""Flags of codecs that are made of codecs: properties that look at `self.codecs`."""

from __future__ import annotations

from typing import Any


def of_all(flag: str) -> Any:
    """A property: whether every one of `self.codecs` has the flag."""
    return property(lambda self: all(getattr(codec, flag) for codec in self.codecs))


def of_any(flag: str) -> Any:
    """A property: whether some of `self.codecs` have the flag."""
    return property(lambda self: any(getattr(codec, flag) for codec in self.codecs))


def of_sum(cost: str, extra: float = 0.0) -> Any:
    """A property: the sum of a cost over `self.codecs`, and `extra`."""
    return property(lambda self: extra + sum(getattr(codec, cost) for codec in self.codecs))
