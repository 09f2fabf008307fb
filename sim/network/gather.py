"""An all-gather on a ring as one coupled activity, whoever is ready when.

The clock V of the ring is the bytes that each hop has moved. A payload of S bytes whose member
becomes ready at V_j is handed on n - 1 times, each time as a whole, and is with everybody when
V = V_j + (n - 1) S, plus the latency of n - 1 steps; earlier if its own hops are faster than the
slowest of the ring, as far as no others keep it waiting. The activity runs while any payload is
on its way, so a member that becomes ready costs a look at the clock, not a solve.

- Alone and with all members ready together this is the time of the steps, and so it is for one
  that is late, but for the wait (less than one payload) until its link is free of others. With
  members that come one by one it is between 12 % early and, on 10x unequal links, 34 % late.
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

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import simpy

from sim.network.collectives import Collective, OnHeard, ring
from sim.network.coupled import step_latency
from sim.network.fluid import Activity
from sim.network.ledger import Ledger
from sim.network.pace import lone_bytes, relay_plan
from sim.network.routes import Plan

if TYPE_CHECKING:
    from sim.network.network import Network


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
        """The plan of a link of our own, for the marker."""
        self._watched = np.inf
        self._reset()
        self._begin(ready)

    def _reset(self) -> None:
        self._clock = 0.0
        """V when the row was launched, or when it ended."""
        self._ledger = Ledger(list(self.alive), self._sizes)
        self._around: Plan | None = None
        self._course: tuple[Plan, float] | None = None
        self._goals: dict[int, float] = {}
        """V at which a payload that is on its way is with everybody."""
        self._began: dict[int, float] = {}
        """V at which it began its way around this ring."""
        self._fresh: list[tuple[int, float, float]] = []
        """Payloads without a goal yet, V at which they begin, and when that was."""
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
        self._latencies: dict[tuple[int, float], float] = {}
        self._newly_ready = [m for m in self.alive if m not in self.waiting]

    # The clock, and going on

    def _now(self) -> float:
        row = self._row
        return self._clock if row is None else self._clock + self.network.links.moved(row)

    def _mark(self, v: float) -> None:
        self._times.append(self.env.now)
        self._marks.append(v)

    def _proceed(self) -> None:
        if self._newly_ready:
            self._take_in()
        if self._row is None:
            if not self._detecting:
                self._land(self._clock)
                self._launch()
            self._check()

    def _take_in(self) -> None:
        """Note when payloads were ready; while the row runs their goals can wait."""
        v, now = self._now(), self.env.now
        self._fresh += [(member, v, now) for member in self._newly_ready]
        self._newly_ready.clear()
        if self._row is None or self._on_heard is not None:
            self._set_off()
            self._watch()

    def _board(self, member: int) -> None:
        """A payload is ready while the row runs and nobody listens: its goal can wait."""
        self._fresh.append((member, self._clock + self._gauge(), self.env.now))

    def _set_off(self) -> None:
        """Give goals to payloads that begin, or go on, with so many hops to make.

        Alone a payload takes the time of its hops. With others it waits for them where its way is
        the slowest, one payload each; but not longer than if each of its hops were as slow.
        """
        if self._ways is None:
            self._ways = self._find_ways()
        ways, sizes, furthest = self._ways, self._sizes, self._furthest
        ring_hops, entered = len(self._ledger.ring) - 1, self._ledger.entered
        goals, began, queue = self._goals, self._began, self._queue
        times, marks = self._times, self._marks
        for member, v, now in self._fresh:
            if member not in entered:
                entered[member] = 0.0
            times.append(now)
            marks.append(v)
            hops, size = ring_hops - entered[member], sizes[member]
            goal, longest = furthest + size, v + hops * size
            shortest = v + hops * ways.get(member, size)
            if goal > longest:
                goal = longest
            if goal < shortest:
                goal = shortest
            if goal > furthest:
                furthest = goal
            goals[member], began[member] = goal, v
            heappush(queue, (goal, member))
        self._fresh.clear()
        self._furthest = furthest

    def _find_ways(self) -> dict[int, float]:
        """Bytes of V that each payload takes per hop when alone; none if sizes differ."""
        around, sizes = self._ledger.ring, {self._sizes[member] for member in self._ledger.ring}
        plan = self._ring_plan() if len(sizes) == 1 < len(around) else None
        if plan is None:
            return {}
        (size,) = sizes
        network, latency = self.network, self._latency(size)
        key = "lone", plan, size
        per_hop = network.known(key, lambda: lone_bytes(network, plan, size, latency).tolist())
        return dict(zip(around, per_hop))

    def _launch(self) -> None:
        """Run until the last goal there is now."""
        if self.triggered or not self._goals:
            return
        if self._course is None:
            plan = self._ring_plan()
            sizes = [self._sizes[member] for member in self._ledger.ring]
            self._course = None if plan is None else relay_plan(self.network, plan, sizes)
        if self._course is not None:
            self._target = max(self._goals.values())
            nbytes = self._target - self._clock
            course, pace = self._course
            self._row = self.network.launch(course, nbytes, self._ended, 0.0, pace)
            self._gauge = self.network.links.gauge(self._row)
            self._joins = self._board if self._on_heard is None else None
            self._watch()

    def _watch(self) -> None:
        """If somebody wants to hear of payloads: have an event when V passes the next goal.

        An activity on a link of its own that follows the row's bytes ends then; that costs no
        solve of the ring, as a row to each goal would.
        """
        row, links = self._row, self.network.links
        if self._on_heard is None or row is None:
            return
        goal = self._queue[0][0] if self._queue else np.inf
        if self._marker is not None and goal < self._watched:
            self._unwatch()
        if self._marker is None and goal < self._target:
            if self._lone is None:
                lone = {"links": np.array(links.add([np.inf])), "loads": np.ones(1)}
                self._lone = replace(row.tag, cap=np.inf, **lone)
            self._watched, moved = goal, links.moved(row)
            nbytes = goal - self._clock - moved
            self._marker = self.network.launch(self._lone, nbytes, self._reached, 0.0)
            links.follow(self._marker, row, -moved)

    def _reached(self, _: Activity, ok: bool) -> None:
        self._marker = None
        self._mark(self._watched)
        self._land(self._watched)
        self._watch()

    def _unwatch(self) -> None:
        if self._marker is not None:
            self.network.stop(self._marker)
            self._marker = None

    def _ring_plan(self) -> Plan | None:
        """Of this ring; None while links are down."""
        if self._around is None:
            self._around = self._plan(ring(self._ledger.ring))
        return self._around

    def _latency(self, size: float) -> float:
        """Of the n - 1 steps of a payload, in seconds; part of the pace already if sizes differ."""
        ring_now = self._ledger.ring
        key = len(ring_now), size  # members only ever leave
        if key not in self._latencies:
            equal = len({self._sizes[member] for member in ring_now}) == 1 < len(ring_now)
            plan = self._ring_plan() if equal else None
            step = 0.0 if plan is None else step_latency(self.network, plan, size)
            self._latencies[key] = (len(ring_now) - 1) * step
        return self._latencies[key]

    def _ended(self, activity: Activity, ok: bool) -> None:
        self._unwatch()
        self._set_off()
        self._row = self._joins = None
        self._clock = self._target if ok else self._clock + activity.moved
        self._mark(self._clock)
        if ok:
            self._land(self._clock)
            self._launch()
            self._check()
        else:
            self._around = self._course = None
            self._broken()

    def _rest(self) -> None:
        self._unwatch()
        self._set_off()
        if self._row is not None:
            self._clock += self.network.stop(self._row)
            self._row = self._joins = None
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
            # When V passed a goal is found linearly between the instants that are known.
            times = np.interp(goals, self._marks, self._times) if goals[0] < v else self.env.now
            arrivals = (times + np.array([latency[size] for size in sizes])).tolist()
        else:
            arrivals = [self.env.now] * len(members)
        for item in zip(arrivals, members):
            heappush(self._landing, item)
        return max(arrivals, default=0.0)

    def _due(self, heap: list[tuple[float, int]], limit: float) -> list[tuple[float, int]]:
        """Take from a heap, in order, what is not beyond a limit."""
        due = []
        if self._on_heard is None:  # rarely, and then many
            heap.sort()
            count = bisect_right(heap, limit, key=itemgetter(0))
            due, heap[:] = heap[:count], heap[count:]
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
        self._set_off()
        v, ledger = self._now(), self._ledger
        hops = float(len(ledger.ring) - 1)
        made = dict.fromkeys(self._sent_off, hops)
        for member, goal in self._goals.items():
            first, began = ledger.entered[member], self._began[member]
            part = (v - began) / (goal - began) if v < goal else 1.0
            made[member] = first + part * (hops - first)
        self._sent_off.clear()
        sent = ledger.count(made)
        self._sent[ledger.ring] += sent
        self.network.count(ledger.ring, sent, np.roll(sent, 1))

    def _drop(self, members: Iterable[int]) -> None:
        """Payloads that will not be with everybody: what was sent of them, counted, is waste."""
        self._waste(*self._ledger.dropped(members))

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
        """The ring of those alive, and new goals of the payloads on it."""
        payloads = list(self._goals)
        for sender, nbytes in zip(*self._ledger.shrink(lost, payloads)):
            self._waste(sender, nbytes)
        self._around = self._course = self._ways = None
        self._furthest = self._clock
        self._queue.clear()
        self._fresh += [(member, self._clock, self.env.now) for member in payloads]
        self._set_off()

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
