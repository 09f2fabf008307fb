"""Static: everybody who is online, always; a joiner has the state at once and for free.

The idealised baseline: it shows what churn costs apart from moving the state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import simpy

from sim.compute.work import Program
from sim.coordinators.coordinator import Coordinator

if TYPE_CHECKING:
    from sim.simulation import Simulation


@dataclass
class Static(Coordinator):
    """Rounds of all nodes that are online; begins again from the start if all were gone."""

    ready: set[int] = field(default_factory=set, init=False)
    listens: bool = field(default=False, init=False, repr=False)
    _sim: Simulation = field(init=False, repr=False)

    def start(self, sim: Simulation) -> None:
        self._sim = sim
        self.ready = set(sim.online)

    def round(self) -> simpy.Event:
        return self._sim.process(self._round())

    def arrive(self, node: int) -> None:
        if not self.ready:
            self._sim.restart()
        else:
            self._sim.fleet.copy_params(min(self.ready), node)
        self.ready.add(node)
        self._sim.admit(node)

    def depart(self, node: int) -> None:
        self.ready.discard(node)

    def _round(self) -> Program:
        yield self._sim.timeout(0)  # all that happens at this instant comes first
        while not self.ready:
            yield self._sim.membership_changed
        return self._sim.open_round(self.ready)
