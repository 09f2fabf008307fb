"""What callers of the network may pass, and its checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import simpy

from sim import units

Ready = Mapping[int, simpy.Event] | Sequence[simpy.Event] | None
"""When members may send: an event for each one, in their order or by id; None: now."""


def check_choice(name: str, value: str, choices: list[str]) -> None:
    """Raise unless `value` is one of the choices."""
    if value not in choices:
        close = units.nearest(str(value), choices)
        raise ValueError(
            f"{name}={value!r}: expected {' or '.join(choices)}; did you mean {close!r}?"
        )


def check_approximate(approximate: float) -> None:
    """Raise unless it is a relative tolerance."""
    if not 0.0 <= approximate < 1.0:
        raise ValueError(f"approximate={approximate}: must lie in [0, 1); 0 is exact, try 2e-4")


def check_connections(connections: int) -> None:
    """Raise unless it is a number of connections that a transfer may open."""
    if not 1 <= connections <= 1000:
        raise ValueError(f"connections={connections}: expected 1 .. 1000 per transfer, try 1")


def per_item(value: float | Sequence[float], count: int, name: str) -> list[float]:
    """One number for all, or a sequence of `count`, as a list."""
    values = np.asarray(value, float)
    if values.ndim and len(values) != count:
        raise ValueError(f"{name} has {len(values)} values: expected one, or {count}")
    return np.broadcast_to(values, count).tolist()


def by_member(ready: Ready, members: list[int]) -> dict[int, simpy.Event]:
    """Events by member, from a mapping or from a sequence in the order of `members`."""
    if ready is None:
        return {}
    if isinstance(ready, Mapping):
        return {member: ready[member] for member in members if member in ready}
    if len(ready) != len(members):
        raise ValueError(f"ready has {len(ready)} events: expected {len(members)}")
    return dict(zip(members, ready))
