"""Elastic: joiners are admitted and leavers dropped at round boundaries.

A joiner downloads the state from a random member while the others train, as in PRIME
(INTELLECT-1) and torchft; it is a member from the next round after it has the state. It then
knows what the members know by that time: rounds that ended during its download cost it no bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import simpy

from sim.compute.work import Program
from sim.coordinators.coordinator import Coordinator
from sim.coordinators.state_sync import download_from_donor

if TYPE_CHECKING:
    from sim.simulation import Simulation


@dataclass
class Elastic(Coordinator):
    """Rounds of all nodes that hold the state.

    Args:
        min_nodes: a round does not open with fewer members; it waits for them.
    """

    min_nodes: int = 1
    ready: set[int] = field(default_factory=set, init=False)
    listens: bool = field(default=False, init=False, repr=False)
    _sim: Simulation = field(init=False, repr=False)
    _admitted: simpy.Event = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.min_nodes < 1:
            raise ValueError(f"coordinator.min_nodes={self.min_nodes}: must be >= 1")

    def start(self, sim: Simulation) -> None:
        if self.min_nodes > sim.fleet.n_nodes:
            raise ValueError(
                f"coordinator.min_nodes={self.min_nodes}: at most the {sim.fleet.n_nodes} nodes "
                f"of the topology; {sim.fleet.n_nodes} is the nearest"
            )
        self._sim, self._admitted = sim, sim.event()
        self.ready = set(sim.online)

    def round(self) -> simpy.Event:
        return self._sim.process(self._round())

    def arrive(self, node: int) -> None:
        self._sim.node(node).process(self._welcome(node))

    def depart(self, node: int) -> None:
        self.ready.discard(node)

    def _round(self) -> Program:
        yield self._sim.timeout(0)  # all that happens at this instant comes first
        while len(self.ready) < self.min_nodes:
            yield self._admitted
        return self._sim.open_round(self.ready)

    def _welcome(self, node: int) -> Program:
        if (yield from download_from_donor(self._sim, node, self.ready)):
            self.ready.add(node)
            self._sim.record("session", time=self._sim.now, node=node, event="admitted")
            self._sim.admit(node)
            admitted, self._admitted = self._admitted, self._sim.event()
            admitted.succeed()
