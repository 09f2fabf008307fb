"""Running schedules: as flows, phase by phase, or as one activity of known time alone.

- `SteppedSchedule`: every transfer a flow; the reference.
- `PhasedSchedule`: one coupled activity per phase. Its rate is that of the phase's mean transfer of
  D bytes; link l carries a_l = (bytes over l) / D times that. For regular schedules of equal
  transfers this is the time of the flows, alone and under steady competition.
- `AveragedSchedule`: one coupled activity for the whole, with the load of all phases, D the sum of
  their mean transfers, and a pace such that it takes the time of the flows alone. That time comes
  from running the flows once on a clock of their own. For trees and other irregular schedules.

Legend: D bytes of a mean transfer.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import simpy

from sim.network.coupled import step_latency
from sim.network.fluid import Activity
from sim.network.joint import Joint
from sim.network.routes import Hops, NoRoute, Plan, Routes
from sim.network.schedules import Algorithm, Phase, Schedule

if TYPE_CHECKING:
    from sim.network.network import Network


Flow = tuple[int, int, int]
"""(phase, from, to)."""


class Scheduled(Joint, ABC):
    """A collective that follows the schedule of an algorithm."""

    def __init__(
        self,
        network: Network,
        op: str,
        members: Sequence[int],
        nbytes: float,
        ready: Mapping[int, simpy.Event],
        algorithm: Algorithm,
    ) -> None:
        super().__init__(network, op, members, nbytes)
        self._algorithm = algorithm
        self._schedule = Schedule((), 0)
        self._prepare()
        self._begin(ready)

    @abstractmethod
    def _prepare(self) -> None:
        """Nothing is under way yet."""

    def _takes_along(self, member: int) -> bool:
        return member == self._schedule.root


class SteppedSchedule(Scheduled):
    """A schedule as flows, each of which starts when both of its ends have come to its phase.

    After a loss the survivors do what is left of their own schedule; flows in motion are waste.
    """

    def _prepare(self) -> None:
        self._flights: dict[Flow, Activity] = {}
        self._formed = False
        self._total = 0.0
        self._flows: dict[Flow, float] = {}
        self._done: set[Flow] = set()

    def _form(self) -> None:
        header = self.network.header_bytes
        whole = self._algorithm.schedule(self.network, self.alive, self.nbytes)
        self._total = whole.nbytes
        self._schedule = whole.rest(self._progress)
        self._flows = {}
        self._todo: dict[int, deque[tuple[int, set[Flow]]]] = {m: deque() for m in self.alive}
        self._open = [len(phase.hops) for phase in self._schedule.phases]
        for number, phase in enumerate(self._schedule.phases):
            for (src, dst), nbytes in zip(phase.hops, phase.with_header(header).nbytes):
                flow = number, src, dst
                self._flows[flow] = nbytes
                for end in (src, dst):
                    todo = self._todo[end]
                    if not todo or todo[-1][0] != number:
                        todo.append((number, set()))
                    todo[-1][1].add(flow)
        self._done = set()
        self._formed = True

    def _move(self) -> None:
        if not self._formed:
            self._form()
        for member in self.alive:
            self._try(member)
        if not self._flows and not self.waiting:
            self._succeed()

    def _try(self, member: int) -> None:
        """Start what this member, and the other end, can begin now."""
        if not self._todo[member]:
            return
        number, flows = self._todo[member][0]
        if self._schedule.barrier and any(self._open[:number]):
            return
        for flow in sorted(flows):
            if flow not in self._flights and all(self._has_come(end, number) for end in flow[1:]):
                plan = self._plan([(flow[1], flow[2])])
                if plan is not None:
                    ended = partial(self._ended, flow)
                    self._flights[flow] = self.network.launch(plan, self._flows[flow], ended)

    def _has_come(self, member: int, number: int) -> bool:
        todo = self._todo[member]
        return member not in self.waiting and bool(todo) and todo[0][0] == number

    def _ended(self, flow: Flow, activity: Activity, ok: bool) -> None:
        del self._flights[flow]
        self._credit(activity)
        if not ok:
            self._waste(activity.tag.senders, activity.moved)
            self._broken()
            return
        self._finish_flow(flow)
        if len(self._done) == len(self._flows):
            self._succeed()

    def _finish_flow(self, flow: Flow) -> None:
        number, *ends = flow
        self._done.add(flow)
        self._open[number] -= 1
        for end in ends:
            flows = self._todo[end][0][1]
            flows.discard(flow)
            if not flows:
                self._todo[end].popleft()
        if not self._detecting:
            over = self._schedule.barrier and not self._open[number]
            for member in self.alive if over else ends:
                self._try(member)

    def _halt(self) -> None:
        for flight in self._flights.values():
            self._discard(flight)
        self._flights.clear()
        if self._formed and self._total > 0.0:
            header = self.network.header_bytes
            self._progress += sum(self._flows[f] - header for f in self._done) / self._total
        self._formed = False

    def _has_left(self, member: int) -> bool:
        """Whether it has sent all that it had to in the phases that reduce."""
        reduces = self._schedule.reduces
        own = {flow for flow in self._flows if flow[1] == member and flow[0] < reduces}
        return bool(self._schedule.phases) and own <= self._done


class PhasedSchedule(Scheduled):
    """A schedule phase by phase, each one coupled activity. Starts when every member is ready."""

    def _prepare(self) -> None:
        self._flight: Activity | None = None
        self._phases: deque[Phase] = deque()

    def _move(self) -> None:
        if self.waiting or self._flight is not None:
            return
        if not self._phases:
            self._schedule = self._algorithm.schedule(self.network, self.alive, self.nbytes)
            self._phases.extend(self._schedule.rest(self._progress).phases)
        if self._phases:
            self._run(self._phases[0])
        else:
            self._succeed()

    def _run(self, phase: Phase) -> None:
        wire = phase.with_header(self.network.header_bytes)
        unit = float(np.mean(wire.nbytes))
        try:
            plan = weighted_plan(self.network.routes, [wire], unit)
        except NoRoute:
            self.network.repaired.callbacks.append(self._go_on)
            return
        latency = plan.latency
        if max(wire.nbytes) - min(wire.nbytes) <= 1e-12 * unit:
            latency = step_latency(self.network, self.network.routes.plan(wire.hops), unit)
        self._flight = self.network.launch(plan, unit, self._ended, latency)

    def _ended(self, activity: Activity, ok: bool) -> None:
        self._credit(activity)
        self._flight = None
        if not ok:
            self._note(activity)
            self._broken()
            return
        self._progress += self._part(self._phases.popleft())
        if self._phases:
            self._run(self._phases[0])
        else:
            self._succeed()

    def _part(self, phase: Phase) -> float:
        """Of all bytes; a schedule without any is done with its last phase."""
        total = self._schedule.nbytes
        return sum(phase.nbytes) / total if total > 0.0 else 0.0

    def _note(self, activity: Activity) -> None:
        """Progress in the middle of a phase, of which the rest is to do."""
        phase = self._phases[0]
        unit = float(np.mean(phase.nbytes)) + self.network.header_bytes
        share = activity.moved / unit if unit > 0.0 else 0.0
        self._progress += share * self._part(phase)
        self._phases[0] = phase.scaled(1.0 - share)

    def _halt(self) -> None:
        if self._flight is not None:
            self._stop(self._flight)
            self._note(self._flight)
            self._flight = None
        self._phases.clear()

    def _has_left(self, member: int) -> bool:
        return self._progress >= _reduced(self._schedule) - 1e-12


class AveragedSchedule(Scheduled):
    """A schedule as one coupled activity. Starts when every member is ready."""

    def _prepare(self) -> None:
        self._flight: Activity | None = None
        self._goal = 0.0

    def _move(self) -> None:
        if self.waiting or self._flight is not None:
            return
        network = self.network
        self._schedule = self._algorithm.schedule(network, self.alive, self.nbytes)
        wires = [phase.with_header(network.header_bytes) for phase in self._schedule.phases]
        unit = sum(float(np.mean(wire.nbytes)) for wire in wires)
        try:
            plan = weighted_plan(network.routes, wires, unit)
        except NoRoute:
            network.repaired.callbacks.append(self._go_on)
            return
        left, seconds = 1.0 - self._progress, self._alone_seconds(plan)
        pace = unit / seconds if seconds > 0.0 else np.inf
        latency = 0.0 if unit > 0.0 else left * seconds
        self._goal = left * unit
        plan = replace(plan, cap=np.inf)  # it is in the pace
        self._flight = network.launch(plan, self._goal, self._ended, latency, pace)

    def _alone_seconds(self, plan: Plan) -> float:
        """Of the flows; 0 (no pace of its own) while a link has no capacity."""
        if self.network.links.capacity[plan.links].min(initial=np.inf) <= 0.0:
            return 0.0
        return self.network.alone_seconds(self._algorithm, self.alive, self.nbytes, plan)

    def _ended(self, activity: Activity, ok: bool) -> None:
        self._credit(activity)
        self._flight = None
        if ok:
            self._succeed()
        else:
            self._note(activity)
            self._broken()

    def _note(self, activity: Activity) -> None:
        if self._goal > 0.0:
            self._progress += (1.0 - self._progress) * activity.moved / self._goal

    def _halt(self) -> None:
        if self._flight is not None:
            self._stop(self._flight)
            self._note(self._flight)
            self._flight = None

    def _has_left(self, member: int) -> bool:
        return self._progress >= _reduced(self._schedule) - 1e-12


def weighted_plan(routes: Routes, phases: Sequence[Phase], unit: float) -> Plan:
    """What the transfers of some phases load together, in units of a transfer of `unit` bytes.

    Raises:
        NoRoute: links that are down leave a pair without a path.
    """
    hops: Hops = tuple(hop for phase in phases for hop in phase.hops)
    src, dst = np.array(hops, np.int64).reshape(-1, 2).T
    nbytes = np.array([b for phase in phases for b in phase.nbytes])
    weights = nbytes / unit if unit > 0.0 else np.ones(len(nbytes))
    lengths, crossed, latency, cap = routes.table(src, dst)
    load = np.repeat(weights, lengths)
    links, at = np.unique(crossed[load > 0.0], return_inverse=True)
    senders, sent = np.unique(src, return_inverse=True)
    receivers, received = np.unique(dst, return_inverse=True)
    moves = weights > 0.0
    return Plan(
        hops=hops,
        links=links,
        loads=np.bincount(at, load[load > 0.0], len(links)),
        latency=float(latency.max(initial=0.0)),
        cap=float((cap[moves] / weights[moves]).min(initial=np.inf)),
        senders=senders,
        sent=np.bincount(sent, weights, len(senders)),
        receivers=receivers,
        received=np.bincount(received, weights, len(receivers)),
    )


def alone_seconds(
    network: Network, algorithm: Algorithm, members: Sequence[int], nbytes: float
) -> float:
    """How long the flows of a schedule take with nothing else on the links, as they are now."""
    scratch, env = copy.copy(network), simpy.Environment()
    scratch.attach(env)
    capacity = network.links.capacity[: len(network.routes.bandwidth)]
    for link in np.flatnonzero(capacity != scratch.links.capacity).tolist():
        scratch.links.set_capacity(link, float(capacity[link]))
    env.run(SteppedSchedule(scratch, "alone", members, nbytes, {}, algorithm))
    return env.now


def _reduced(schedule: Schedule) -> float:
    """The progress at which every share has left its member."""
    first = sum(sum(phase.nbytes) for phase in schedule.phases[: schedule.reduces])
    return first / schedule.nbytes if schedule.nbytes > 0.0 else 1.0
