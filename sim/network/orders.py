"""Orders: in which order the members of a collective form its ring, and how that became known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import simpy
from numpy import ndarray

from sim.network.idle import hop_seconds
from sim.network.probe import Probe, run_probe
from sim.network.ring_order import find_order
from sim.network.routes import NoRoute

if TYPE_CHECKING:
    from sim.network.network import Network

_REMEMBERED = 1000
"""Orders before starting over: memberships come and go."""


class Orders:
    """The ring orders of a network's memberships, found once for each.

    Args:
        network: whose members.
        objective: `"given"`, or what `find_order` takes.
        probe_bytes: 0 reads the platform's bandwidths for free. Otherwise the first ring of a
            membership goes in the given order, and beside it, on the same links, transfers of so
            many bytes between all pairs measure the bandwidths; rings after that have the order.
    """

    def __init__(self, network: Network, objective: str, probe_bytes: float) -> None:
        self._network, self._objective, self._probe_bytes = network, objective, probe_bytes
        self._orders: dict[tuple[int, ...], list[int]] = {}
        self._probing: set[tuple[int, ...]] = set()

    def of(self, members: Sequence[int], nbytes: float) -> list[int]:
        """Members as the objective wants them, for hops of `nbytes`; as they are if unknown."""
        key = tuple(members)
        if self._objective == "given" or len(members) < 3 or key in self._probing:
            return list(members)
        if key in self._orders:
            return self._orders[key]
        if self._probe_bytes > 0.0:
            self._probing.add(key)
            probe = self._network.env.process(run_probe(self._network, members, self._probe_bytes))
            probe.callbacks.append(partial(self._measured, nbytes))
            return list(members)
        try:
            self._find(key, hop_seconds(self._network, members, nbytes))
        except NoRoute:  # links are down: another time
            return list(members)
        return self._orders[key]

    def _measured(self, nbytes: float, process: simpy.Event) -> None:
        probe = process.value
        assert isinstance(probe, Probe)
        self._probing.discard(tuple(probe.members))
        if (probe.bandwidth > 0.0).all():  # else somebody left: another membership comes
            self._find(tuple(probe.members), nbytes / probe.bandwidth)

    def _find(self, key: tuple[int, ...], costs: ndarray) -> None:
        if len(self._orders) >= _REMEMBERED:
            self._orders.clear()
        self._orders[key] = [key[i] for i in find_order(np.asarray(costs), self._objective)]
