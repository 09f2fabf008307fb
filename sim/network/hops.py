"""A ring whose hops are activities of their own, each at most half a chunk ahead of the one before.

Between the coupled activity, in which every hop waits for the slowest one at once, and the steps,
in which a hop that is slowed for a while holds up those behind it only after so many steps: n rows
instead of one, or of 2 n (n - 1). Under competition the makespan is some 2 to 10 times nearer to
that of the steps; when another hop becomes the slowest for good it is too early.

Legend: n members still there, c bytes of a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import simpy

from sim.network.collectives import ring
from sim.network.coupled import step_latency
from sim.network.fluid import Activity
from sim.network.joint import Joint

if TYPE_CHECKING:
    from sim.network.network import Network

_SLACK = 0.5
"""Chunks that a hop may be ahead of the one before it."""


class HopRing(Joint):
    """Ring reduce-scatter, all-reduce, or all-gather of equal payloads.

    Starts when every member is ready. All latency is in front, as in `RingReduce`.
    """

    def __init__(
        self,
        network: Network,
        op: str,
        members: Sequence[int],
        nbytes: float,
        ready: Mapping[int, simpy.Event],
        passes: int = 2,
    ) -> None:
        super().__init__(network, op, members, nbytes)
        self._passes = passes
        self._goal = 0.0
        self._flights: dict[int, Activity] = {}
        self._moved: list[float] = []
        self._begin(ready)

    def _move(self) -> None:
        if self.waiting or self._flights:
            return
        plan = self._plan(ring(self.alive))
        if plan is None:
            return
        n = len(self.alive)
        chunk = self.nbytes / (1 if self.op == "all_gather" else n) + self.network.header_bytes
        steps = self._passes * (n - 1) * (1.0 - self._progress)
        self._goal, self._moved = steps * chunk, [0.0] * n
        latency = steps * step_latency(self.network, plan, chunk)
        for hop, pair in enumerate(plan.hops):
            alone, ended = self.network.routes.plan([pair]), partial(self._ended, hop)
            self._flights[hop] = self.network.launch(alone, self._goal, ended, latency)
        for hop, flight in self._flights.items():
            self.network.links.follow(flight, self._flights[(hop - 1) % n], _SLACK * chunk)

    def _ended(self, hop: int, activity: Activity, ok: bool) -> None:
        del self._flights[hop]
        self._credit(activity)
        self._moved[hop] = activity.moved
        if not ok:
            self._halt()
            self._broken()
        elif not self._flights:
            self._moved.clear()
            self._succeed()

    def _halt(self) -> None:
        for hop, flight in self._flights.items():
            self._moved[hop] = self._stop(flight)
        self._flights.clear()
        if self._goal > 0.0 and self._moved:
            mean = sum(self._moved) / len(self._moved)
            self._progress += (1.0 - self._progress) * mean / self._goal
        self._moved.clear()

    def _has_left(self, member: int) -> bool:
        return self._progress >= 1.0 / self._passes

    def _takes_along(self, member: int) -> bool:
        return False
