"""An all-gather on a ring as one coupled activity, whoever is ready when.

The clock V of the ring is the bytes that each hop has moved. A payload of S bytes whose member
becomes ready at V_j is handed on n - 1 times, each time as a whole, and is with everybody when
V = V_j + (n - 1) S, plus the latency of n - 1 steps. The activity runs while any payload is on
its way, so a member that becomes ready costs a look at the clock, not a solve.

- Alone and with all members ready together this is the time of the steps, and so it is for one
  that is late, but for the wait (less than one payload) until its link is free of others.
- Every hop is loaded all the time: others on the links see the ring's full load also while few
  payloads are on their way.
- Payloads of unequal size go at the mean pace of the steps, whose time alone is the recursion of
  `closed_forms.relay_seconds`; a small payload then arrives earlier than in the steps, where
  it waits behind large ones.
- Bytes sent are counted per payload and hop from its progress.

Legend: n members still there, m payloads, V and goals in bytes per hop, x hops that a payload has
made (a payload in the middle of a hop has a fraction).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

import numpy as np
import simpy
from numpy import ndarray

from sim.network.closed_forms import relay_seconds
from sim.network.collectives import Collective, OnHeard, ring
from sim.network.coupled import step_latency
from sim.network.fluid import Activity
from sim.network.idle import idle_hops
from sim.network.routes import Plan
from sim.network.scheduled import weighted_plan
from sim.network.schedules import Phase

if TYPE_CHECKING:
    from sim.network.network import Network

_NOBODY = np.zeros(0, np.int64)


class RingGather(Collective):
    """Ring all-gather. After a loss everything waits for the detection delay.

    The payload of the lost member is dropped unless it was through; of the others each survivor
    gets what it lacks, over the ring of survivors. What was in the middle of a hop from or to the
    lost member is waste.
    """

    def __init__(
        self,
        network: Network,
        members: Sequence[int],
        sizes: Mapping[int, float],
        ready: Mapping[int, simpy.Event],
        on_heard: OnHeard | None = None,
    ) -> None:
        mean = sum(sizes.values()) / max(len(sizes), 1)
        super().__init__(network, "all_gather", members, mean, members, on_heard)
        self._sizes = {m: size + network.header_bytes for m, size in sizes.items()}
        self._row: Activity | None = None
        self._marker: Activity | None = None
        self._lone: Plan | None = None
        """A link of our own, for the marker."""
        self._reset()
        self._begin(ready)

    def _reset(self) -> None:
        self._clock = 0.0
        """V when the row was launched, or when it ended."""
        self._ring = list(self.alive)
        self._course: Plan | None = None
        self._goals: dict[int, float] = {}
        """V at which a payload that is on its way is with everybody."""
        self._began: dict[int, float] = {}
        """V at which it began its way around this ring."""
        self._furthest = 0.0
        """The largest goal so far."""
        self._ways: dict[int, float] | None = None
        self._queue: list[tuple[float, int]] = []
        """The same as a heap: (goal, member)."""
        self._landing: list[tuple[float, int]] = []
        """A heap of the payloads whose last byte is sent: seconds of its arrival, and member."""
        self._sent_off: list[int] = []
        """Of these, and of those that have arrived, the ones whose bytes are not counted yet."""
        self._through: set[int] = set()
        self._times: list[float] = []
        self._marks: list[float] = []
        """Seconds and V at some instants, to find when V passed a goal."""
        self._entered: dict[int, float] = {}
        """x of each payload when this ring was formed, or the payload was ready."""
        self._counted: dict[int, float] = {}
        """x up to which its bytes have been counted."""
        self._epochs: list[tuple[list[int], dict[int, float], dict[int, float]]] = []
        """Earlier rings: members, and x of payloads when it was formed and when it ended."""
        self._latencies: dict[tuple[int, float], float] = {}
        self._newly_ready = [m for m in self.alive if m not in self.waiting]

    # The clock

    def _now(self) -> float:
        """V."""
        row = self._row
        return self._clock if row is None else self._clock + self.network.links.moved(row)

    def _mark(self, v: float) -> None:
        self._times.append(self.env.now)
        self._marks.append(v)

    def _passed(self, goals: list[float]) -> list[float]:
        """The seconds at which V passed some goals; linear between the instants known."""
        return np.interp(goals, self._marks, self._times).tolist()

    # Going on

    def _proceed(self) -> None:
        if self._newly_ready:
            self._take_in()
        if self._row is None:
            if not self._detecting:
                self._land(self._clock)
                self._launch()
            self._check()

    def _take_in(self) -> None:
        """Payloads that are ready begin their way."""
        v, hops = self._now(), float(len(self._ring) - 1)
        self._mark(v)
        for member in self._newly_ready:
            self._entered[member] = self._counted[member] = 0.0
            goal = self._set_off(member, v, hops)
            heappush(self._queue, (goal, member))
            if self._marker is not None and goal < self._watched:
                self._unwatch()
        self._newly_ready.clear()
        self._watch()

    def _set_off(self, member: int, v: float, hops: float) -> float:
        """Begin, or go on, with so many hops to make; the goal of the payload.

        Alone it takes the time of its hops. With others it waits for them where its way is the
        slowest, one payload each; but not longer than if each of its hops were as slow.
        """
        size = self._sizes[member]
        longest = hops * size
        if self._ways is None:
            self._ways = self._find_ways()
        shortest = self._ways[member] * hops if member in self._ways else longest
        goal = v + max(shortest, min(longest, self._furthest + size - v))
        self._furthest = max(self._furthest, goal)
        self._goals[member], self._began[member] = goal, v
        return goal

    def _find_ways(self) -> dict[int, float]:
        """Bytes of V that each payload takes per hop when alone; none if sizes differ."""
        sizes = {self._sizes[member] for member in self._ring}
        hops = len(self._ring) - 1
        plan = self._plan(ring(self._ring)) if len(sizes) == 1 <= hops else None
        if plan is None:
            return {}
        (size,) = sizes
        rates, latencies = idle_hops(self.network, plan.hops)
        seconds = size / np.maximum(rates, 1e-300) + latencies
        own = (seconds.sum() - np.roll(seconds, 1) - self._latency(size)) / hops
        pace = float(self.network.alone(plan)[0].min())
        return dict(zip(self._ring, np.clip(own * pace, 0.0, size).tolist()))

    def _launch(self) -> None:
        """Run until the last goal there is now."""
        if self.triggered or not self._goals:
            return
        if self._course is None:
            plan = self._plan(ring(self.alive))
            self._course = None if plan is None else self._paced(plan)
        if self._course is not None:
            self._target = max(self._goals.values())
            nbytes = self._target - self._clock
            self._row = self.network.launch(self._course, nbytes, self._ended, 0.0)
            self._watch()

    def _watch(self) -> None:
        """If somebody wants to hear of payloads: have an event when V passes the next goal.

        An activity on a link of its own that follows the row's bytes ends then; that costs no
        solve of the ring, as a row to each goal would.
        """
        row, course = self._row, self._course
        if self._on_heard is None or row is None or course is None or self._marker is not None:
            return
        self._watched = self._queue[0][0] if self._queue else np.inf
        if self._watched < self._target:
            if self._lone is None:
                link = self.network.links.add([np.inf])
                self._lone = replace(course, links=np.array(link), loads=np.ones(1), cap=np.inf)
            moved = self.network.links.moved(row)
            nbytes = self._watched - self._clock - moved
            self._marker = self.network.launch(self._lone, nbytes, self._reached, 0.0)
            self.network.links.follow(self._marker, row, -moved)

    def _reached(self, _: Activity, ok: bool) -> None:
        self._marker = None
        self._mark(self._watched)
        self._land(self._watched)
        self._watch()

    def _unwatch(self) -> None:
        if self._marker is not None:
            self.network.stop(self._marker)
            self._marker = None

    def _paced(self, plan: Plan) -> Plan:
        """With the load and pace of the payloads, whose bytes are ours to count."""
        sizes = [self._sizes[member] for member in self._ring]
        unit, n = (len(sizes) - 1) * max(sizes), len(sizes)
        if min(sizes) < max(sizes):
            carried = tuple(sum(sizes) - sizes[(i + 1) % n] for i in range(n))
            seconds = relay_seconds(sizes, *idle_hops(self.network, plan.hops))
            pace = unit / seconds if np.isfinite(seconds) else np.inf
            plan = weighted_plan(self.network.routes, [Phase(plan.hops, carried)], unit)
            plan = replace(plan, cap=min(plan.cap, pace))
        return replace(plan, senders=_NOBODY, sent=_NOBODY, receivers=_NOBODY, received=_NOBODY)

    def _latency(self, size: float) -> float:
        """Of the n - 1 steps of a payload, in seconds; part of the pace already if sizes differ."""
        key = len(self._ring), size  # members only ever leave
        if key not in self._latencies:
            sizes = {self._sizes[member] for member in self._ring}
            plan = self._plan(ring(self._ring)) if len(sizes) == 1 < len(self._ring) else None
            step = 0.0 if plan is None else step_latency(self.network, plan, size)
            self._latencies[key] = (len(self._ring) - 1) * step
        return self._latencies[key]

    def _ended(self, activity: Activity, ok: bool) -> None:
        self._unwatch()
        self._row = None
        self._clock = self._target if ok else self._clock + activity.moved
        self._mark(self._clock)
        if ok:
            self._land(self._clock)
            self._launch()
            self._check()
        else:
            self._course = None
            self._broken()

    def _rest(self) -> None:
        """Stop the row."""
        self._unwatch()
        if self._row is not None:
            self._clock += self.network.stop(self._row)
            self._row = None
            self._mark(self._clock)

    def _land(self, v: float) -> None:
        """The last bytes of payloads whose goal V has passed are sent; soon they arrive."""
        if not self._queue or self._queue[0][0] > v:
            return
        last = self._send_off(v)
        if last <= self.env.now:
            self._arrive(self.env.now)
        else:
            timer = self.env.timeout(last - self.env.now)
            timer.callbacks.append(lambda _: self._arrive(last))

    def _send_off(self, v: float) -> float:
        """Move payloads from the goals to the landing; when the last of them arrives, seconds."""
        passed = self._due(self._queue, v)
        goals, members = [goal for goal, _ in passed], [member for _, member in passed]
        for member in members:
            del self._goals[member]
        self._sent_off += members
        sizes = [self._sizes[member] for member in members]
        latency = {size: self._latency(size) for size in set(sizes)}
        if any(latency.values()):
            times = self._passed(goals) if goals[0] < v else [self.env.now] * len(goals)
            arrivals = [at + latency[size] for at, size in zip(times, sizes)]
        else:
            arrivals = [self.env.now] * len(members)
        for item in zip(arrivals, members):
            heappush(self._landing, item)
        return max(arrivals, default=0.0)

    def _due(self, heap: list[tuple[float, int]], limit: float) -> list[tuple[float, int]]:
        """Take from a heap, in order, what is not beyond a limit."""
        due = []
        if self._on_heard is None:  # rarely, and then many
            due = sorted(item for item in heap if item[0] <= limit)
            heap[:] = [item for item in heap if item[0] > limit] if len(due) < len(heap) else ()
            heapify(heap)
        while heap and heap[0][0] <= limit:
            due.append(heappop(heap))
        return due

    def _arrive(self, until: float) -> None:
        """Payloads whose latency is over are everywhere."""
        if not self.triggered:
            self._hear_landed(until)
            self._check()

    def _hear_landed(self, until: float) -> None:
        landed = [member for _, member in self._due(self._landing, until)]
        self._through.update(landed)
        if self._on_heard is None and len(self.alive) > 1:
            self.heard += [(member, None) for member in landed]
        elif len(self.alive) > 1:
            for member in landed:
                if not self.triggered:  # whoever heard may have cut it
                    self._hear(member, None)

    def _check(self) -> None:
        """End when nothing moves, and nothing will."""
        busy = self._goals or self._landing or self.waiting or self._detecting
        if not (busy or self.triggered):
            self.count()
            self._forget_link()
            self._finish()

    def _forget_link(self) -> None:
        if self._lone is not None:
            self.network.links.remove(self._lone.links.tolist())
            self._lone = None

    # Bytes

    def count(self) -> None:
        """Count the bytes sent up to now."""
        v, hops = self._now(), float(len(self._ring) - 1)
        made = dict.fromkeys(self._sent_off, hops)
        for member, goal in self._goals.items():
            first, began = self._entered[member], self._began[member]
            part = (v - began) / (goal - began) if v < goal else 1.0
            made[member] = first + part * (hops - first)
        self._sent_off.clear()
        sent = self._bytes(self._ring, list(made), self._counted, made)
        self._counted.update(made)
        self._sent[self._ring] += sent
        self.network.count(self._ring, sent, np.roll(sent, 1))

    def _bytes(
        self,
        hosts: list[int],
        members: list[int],
        start: Mapping[int, float],
        end: Mapping[int, float],
    ) -> ndarray:
        """What each of a ring sent while payloads went from x = start to x = end; float64 [n]."""
        position = dict(zip(hosts, range(len(hosts))))
        first = np.array([position[m] for m in members], np.int64)
        sizes = np.array([self._sizes[m] for m in members])
        ends = np.array([end[m] for m in members]), np.array([start[m] for m in members])
        done, before = (_up_to(first, hops, sizes, len(hosts)) for hops in ends)
        return done - before

    def _drop(self, members: Iterable[int]) -> None:
        """Payloads that will not be with everybody: what was sent of them, counted, is waste."""
        members = list(members)
        for hosts, start, end in [*self._epochs, (self._ring, self._entered, self._counted)]:
            there = [member for member in members if member in start]
            self._waste(np.array(hosts, np.int64), self._bytes(hosts, there, start, end))

    # Losses

    def _halt(self) -> None:
        self._rest()
        self._forget_link()
        self.count()

    def _without(self, member: int) -> None:
        self._rest()
        self._land(self._clock)
        if self.triggered:
            return
        self.count()
        if member in self._goals:
            self._drop([member])
            del self._goals[member]
        self._newly_ready = [m for m in self._newly_ready if m != member]
        self._form_ring(member)

    def _form_ring(self, lost: int) -> None:
        """The ring of those alive: x of each payload on it, and its new goal."""
        n, position = len(self._ring), {member: i for i, member in enumerate(self._ring)}
        ends, entered = dict(self._counted), {}
        for member in self._goals:
            made = self._counted[member]
            whole = int(made + 1e-9)
            behind = (position[lost] - position[member]) % n
            if behind in (whole, whole + 1):  # in the middle of a hop from or to the lost one
                sender = self._ring[(position[member] + whole) % n]
                self._waste(sender, max(made - whole, 0.0) * self._sizes[member])
                ends[member] = made = float(whole)
            entered[member] = made - (behind <= whole)
        self._epochs.append((self._ring, self._entered, ends))
        self._ring, self._course = list(self.alive), None
        self._entered, self._counted = entered, dict(entered)
        self._ways, self._furthest = None, self._clock
        for member, made in entered.items():
            self._set_off(member, self._clock, max(n - 2 - made, 0.0))
        self._queue = [(goal, member) for member, goal in self._goals.items()]
        heapify(self._queue)

    def _abandon(self) -> None:
        self._rest()
        self._forget_link()
        self._send_off(self._clock)
        self.count()
        if self._on_heard is None:  # otherwise they were told when it arrived
            self._hear_landed(self.env.now)
        on_its_way = [*self._goals, *(member for _, member in self._landing)]
        if len(self.alive) == 1:  # nobody is left to hear the survivor: its share is complete
            self._through.update(on_its_way)
        else:
            self._drop(on_its_way)

    def _contributors(self) -> set[int]:
        return self._through


def _up_to(first: ndarray, hops: ndarray, sizes: ndarray, n: int) -> ndarray:
    """Bytes that each of n members of a ring sends while payloads make their first hops.

    Args:
        first: position of the member each payload begins at, int64 [m].
        hops: how many hops each one makes, < n, float64 [m].
        sizes: bytes of each, [m].
    """
    whole = (hops + 1e-9).astype(np.int64)
    edges = np.bincount(first, sizes, 2 * n) - np.bincount(first + whole, sizes, 2 * n)
    on = np.cumsum(edges)
    part = np.bincount((first + whole) % n, sizes * (hops - whole), n)
    return on[:n] + on[n : 2 * n] + part
