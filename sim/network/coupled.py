"""A whole collective as one or a few coupled activities.

A coupled activity has one rate r, that of each of its simultaneous transfers, and loads link l
with a_l * r, where a_l counts the transfers that cross l. A ring all-reduce is one activity, a
broadcast one, an all-gather by mesh one per member. Alone, and under steady competition, its time
is that of the steps (`sim.network.stepwise`); when contention wanders from hop to hop it is
conservative, since a real ring absorbs what slows one hop for a while.

Legend: n members still there, c bytes of a chunk, D bytes of one transfer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import simpy

from sim.network.collectives import Collective, Hops, OnHeard, Shape, ring, star
from sim.network.fluid import Activity
from sim.network.joint import Joint
from sim.network.routes import Plan

if TYPE_CHECKING:
    from sim.network.network import Network


class RingReduce(Joint):
    """Reduce-scatter on a ring, and an all-gather after it if `passes` is 2, as one activity.

    D = passes (n - 1) c with c = nbytes / n; each hop moves D. In front comes the latency
    passes (n - 1) (max_i (c / r_i + l_i) - c / min_i r_i) over the hops i, with their rates r_i
    alone and latencies l_i: then the time alone is passes (n - 1) max_i (c / r_i + l_i), that of
    the steps.

    Starts when every member is ready. A share has left once the reduce-scatter is over: from then
    on it is in the sums of others.
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
        self._flight: Activity | None = None
        self._begin(ready)

    def _move(self) -> None:
        if self.waiting or self._flight is not None:
            return
        plan = self._plan(ring(self.alive))
        if plan is not None:
            n = len(self.alive)
            chunk = self.nbytes / n + self.network.header_bytes
            steps = self._passes * (n - 1) * (1.0 - self._progress)
            self._goal = steps * chunk
            latency = steps * step_latency(self.network, plan, chunk)
            self._flight = self.network.launch(plan, self._goal, self._ended, latency)

    def _ended(self, activity: Activity, ok: bool) -> None:
        self._credit(activity)
        if ok:
            self._flight = None
            self._succeed()
        else:
            self._note_progress(activity)
            self._broken()

    def _halt(self) -> None:
        if self._flight is not None:
            self._stop(self._flight)
            self._note_progress(self._flight)

    def _note_progress(self, activity: Activity) -> None:
        if self._goal > 0.0:
            self._progress += (1.0 - self._progress) * activity.moved / self._goal
        self._flight = None

    def _has_left(self, member: int) -> bool:
        return self._progress >= 1.0 / self._passes

    def _takes_along(self, member: int) -> bool:
        return False


class Multicasts(Collective):
    """Payloads of some members, each handed to all others: broadcast, and all-gather by mesh.

    One activity per payload, over the hops of `shape`. In front comes the latency of the
    pipeline, which sends small chunks on as they come in. All hops of a payload go at one pace,
    that of the slowest.

    After a loss the payload of the lost member is dropped unless it was through; those that it
    was relaying wait for the detection delay and go on over the survivors with the bytes that
    are left.
    """

    def __init__(
        self,
        network: Network,
        op: str,
        members: Sequence[int],
        sizes: Mapping[int, float],
        ready: Mapping[int, simpy.Event],
        shape: Shape,
        on_heard: OnHeard | None = None,
    ) -> None:
        mean = sum(sizes.values()) / max(len(sizes), 1)
        super().__init__(network, op, members, mean, list(sizes), on_heard)
        self._shape = shape
        self._sizes = {m: size + network.header_bytes for m, size in sizes.items()}
        self._hops: dict[int, Hops] = {}
        self._flights: dict[int, Activity] = {}
        self._reset()
        self._begin(ready)

    def _reset(self) -> None:
        self._left = {m: self._sizes[m] for m in self.alive if m in self._sizes}
        self._earlier: dict[int, list[Activity]] = {source: [] for source in self._left}
        self._through: set[int] = set()

    def _proceed(self) -> None:
        held = self._detecting and self._shape is not star  # a star relays nothing
        for source in [] if held else list(self._left):
            if source not in self.waiting and source not in self._flights:
                self._send(source)
        if not self._left and not self._detecting and not self.triggered:
            self._finish()

    def _send(self, source: int, latency: float | None = None) -> None:
        self._hops[source] = self._shape(source, self.alive)
        plan = self._plan(self._hops[source])
        if plan is not None:
            ended = partial(self._ended, source)
            left = self._left[source]
            self._flights[source] = self.network.launch(plan, left, ended, latency)

    def _ended(self, source: int, activity: Activity, ok: bool) -> None:
        del self._flights[source]
        self._credit(activity)
        if not ok:
            self._keep(source, activity)
            self._broken()
            return
        del self._left[source]
        self._through.add(source)
        if len(self.alive) > 1:
            self._hear(source, None)
        if not self.triggered:  # whoever heard may have cut it
            self._proceed()

    def _keep(self, source: int, activity: Activity) -> None:
        """Remember what an activity moved before it was stopped: the next one moves the rest."""
        self._left[source] -= activity.moved
        self._earlier[source].append(activity)

    def _without(self, member: int) -> None:
        if member in self._left:
            self._drop(member)
        for source, flight in list(self._flights.items()):
            relays = any(src == member for src, _ in self._hops[source])
            self._stop(self._flights.pop(source))
            self._keep(source, flight)
            if not relays:  # only the hop to it goes away, the others run on
                self._send(source, max(flight.begins - self.env.now, 0.0))

    def _halt(self) -> None:
        for source, flight in self._flights.items():
            self._stop(flight)
            self._keep(source, flight)
        self._flights.clear()

    def _drop(self, source: int) -> None:
        del self._left[source]
        if source in self._flights:
            flight = self._flights.pop(source)
            self._stop(flight)
            self._earlier[source].append(flight)
        for activity in self._earlier[source]:
            plan: Plan = activity.tag
            self._waste(plan.senders, activity.moved * plan.sent)

    def _abandon(self) -> None:
        if len(self.alive) == 1:  # nobody is left to hear the survivor: its share is complete
            self._through |= set(self._left)
        for source in list(self._left):
            self._drop(source)

    def _contributors(self) -> set[int]:
        return self._through


def step_latency(network: Network, plan: Plan, chunk: float) -> float:
    """What a step alone, `chunk` bytes over each hop, takes longer than its slowest bytes do."""
    rates, latencies = network.alone(plan)
    if rates.min() <= 0.0:  # a link of capacity 0: the bytes wait, whatever the latency
        return float(latencies.max())
    slowest = (chunk / rates + latencies).max()
    return max(float(slowest - chunk / rates.min()), 0.0)
