"""Round: one membership epoch of a strategy's loop, and who has heard whom in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sim.simulation import Simulation


class Round:
    """One membership epoch of a strategy's loop, ended by its coordinator.

    Args:
        sim: the run.
        number: counts from 0.
        members: ids of the nodes in it.
    """

    def __init__(self, sim: Simulation, number: int, members: list[int]) -> None:
        self._sim, self.number, self.members = sim, number, members
        self.over = sim.event()
        """Its coordinator ends the round: what has not arrived is not in the result."""
        self.heard = sim.event()
        """Somebody heard somebody; made anew each time."""
        self.received = np.zeros(sim.fleet.n_nodes, dtype=np.int64)
        """Of how many members each node holds the contribution, int64 [N]; its own counts."""

    def hear(self, dst: list[int] | np.ndarray, count: int = 1) -> None:
        """More contributions, one unless said otherwise, have reached each of these members."""
        self.received[dst] += count
        heard, self.heard = self.heard, self._sim.event()
        heard.succeed()
