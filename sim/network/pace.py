"""How fast payloads go around a ring on which each member hands them on as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray

from sim.network.closed_forms import relay_seconds
from sim.network.idle import idle_hops
from sim.network.routes import Plan
from sim.network.scheduled import weighted_plan
from sim.network.schedules import Phase

if TYPE_CHECKING:
    from sim.network.transport import Transport

_NOBODY = np.zeros(0, np.int64)


def relay_plan(network: Transport, plan: Plan, sizes: Sequence[float]) -> tuple[Plan, float]:
    """The load and pace of payloads on the hops of a ring, in units of (n - 1) times the largest.

    Equal payloads take what the ring gives. Unequal ones load each hop with the bytes that cross
    it, at a pace that takes as long as the steps do on idle links. It names no hosts: whoever
    launches it counts the bytes.

    Args:
        sizes: bytes of each member's payload, in order of the ring.

    Returns:
        The plan, and the highest rate in bytes/s.
    """
    n, largest, pace = len(sizes), max(sizes), np.inf
    if min(sizes) < largest:
        unit = (n - 1) * largest
        carried = tuple(sum(sizes) - sizes[(i + 1) % n] for i in range(n))
        seconds = relay_seconds(sizes, *idle_hops(network, plan.hops))
        pace = unit / seconds if np.isfinite(seconds) else np.inf
        plan = weighted_plan(network.routes, [Phase(plan.hops, carried)], unit)
    uncounted = replace(plan, senders=_NOBODY, sent=_NOBODY, receivers=_NOBODY, received=_NOBODY)
    return uncounted, pace


def lone_bytes(network: Transport, plan: Plan, size: float, latency: float) -> ndarray:
    """How far the slowest hop would get, per hop, while each payload goes around alone.

    Alone it takes the sum of its hops, of which `latency` seconds come on top; the slowest hop of
    a full ring moves that many bytes meanwhile. At most `size`: on equal links that is what it is.

    Returns:
        Bytes per hop of the payload of each member, float64 [n].
    """
    rates, latencies = idle_hops(network, plan.hops)
    seconds = size / np.maximum(rates, 1e-300) + latencies
    own = (seconds.sum() - np.roll(seconds, 1) - latency) / (len(plan.hops) - 1)
    slowest = float(network.alone(plan)[0].min())
    return np.clip(own * slowest, 0.0, size)
