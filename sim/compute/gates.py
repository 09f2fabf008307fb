"""Gates: what the forward pass of a step waits for, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import simpy

from sim.compute.layout import Fragment

if TYPE_CHECKING:
    from sim.simulation import Simulation


class Gates:
    """Events that a step's forward pass waits for, each before it enters a fragment.

    Args:
        sim: the run.
        gates: by fragment; its first layer waits.
        on_open: called once when the last event has fired, unless all had fired before.
    """

    def __init__(
        self, sim: Simulation, gates: Mapping[Fragment, simpy.Event], on_open: Callable[[], None]
    ) -> None:
        self._sim = sim
        needed = sim.workload.timeline.needed
        self._waits = sorted((needed(f.charged.shapes), i) for i, f in enumerate(gates))
        self._opened = [-np.inf] * len(gates)
        self._closed = 0
        for i, event in enumerate(gates.values()):
            if not event.processed:
                self._closed += 1
                event.callbacks.append(partial(self._fired, i, on_open))

    @property
    def open(self) -> bool:
        """All events have fired, so it is known how long each node waits."""
        return self._closed == 0

    def delays(self, start: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Seconds that each node's step is longer than `step`, when it begins at `start`: [n]."""
        delay = np.zeros_like(start)
        for share, i in self._waits:
            delay += np.maximum(self._opened[i] - (start + share * step + delay), 0.0)
        return delay

    def _fired(self, i: int, on_open: Callable[[], None], _: simpy.Event) -> None:
        self._opened[i] = self._sim.now
        self._closed -= 1
        if self.open:
            on_open()
