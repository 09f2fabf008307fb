"""How many coefficients a codec keeps, and the checks that their options share."""

from __future__ import annotations

from sim.units import nearest


def amount(k: int | None, ratio: float | None, e: int) -> int:
    """Coefficients kept of e: k, or max(1, round(ratio e)); at most all of them."""
    return min(k if k is not None else max(1, round((ratio or 0) * e)), e)


def check_amount(k: int | None, ratio: float | None) -> None:
    """Exactly one of both is given, and in its range."""
    if (k is None) == (ratio is None):
        raise ValueError(f"k={k!r}, ratio={ratio!r}: give exactly one of them")
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise ValueError(f"k={k!r}: must be an integer >= 1")
    if ratio is not None:
        check_fraction("ratio", ratio)


def check_fraction(name: str, value: float) -> None:
    """A fraction of something that is not nothing."""
    if not 0 < value <= 1:
        raise ValueError(f"{name}={value!r}: must be above 0 and at most 1, for example 0.01")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """One of the words that an option knows."""
    if value not in choices:
        close = nearest(str(value), list(choices))
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(choices)}; try {close!r}")
