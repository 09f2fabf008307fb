"""Links and the activities on them: a fluid model driven by one simpy timer.

- Latency first, then bytes: an activity uses no capacity until its latency is over.
- All arrivals, departures and changes of capacity of one instant are solved together, in one
  event that comes after every other event of this instant.
- One timer, armed at the next end of a latency or of an activity. SimPy cannot cancel: a timer
  that has been overtaken is ignored, one that comes too early is armed again.
- Every solve covers all activities: at up to some hundreds of them finding the ones that share
  links, directly or not, costs more than it saves. O(F + rounds * (E + L)) per instant.

Legend: F activities, E elements (activity, link), L links.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import simpy
from simpy.events import EventPriority

from sim.network.sharing import MaxMin, Sharing

LATENCY, SHARING, ENDED = "latency", "sharing", "ended"
_LAST = EventPriority(2)
"""SimPy's priorities are 0 (urgent) and 1 (normal); this one is after both."""
_UNLIMITED = 1e30
"""Capacity in bytes/s of a link without a limit: finite, so that no inf - inf can arise."""


OnEnd = Callable[["Activity", bool], None]
"""`on_end(activity, ok)`: its last byte is there, or (not ok) a link of its went down."""


class Activity:
    """Bytes in motion over some links, at one rate.

    Attributes:
        nbytes: bytes of one of its transfers.
        moved: how many of them are through; final once `phase` is ENDED, see `Links.moved`.
        begins: the time in seconds at which its latency is over.
        tag: whatever the caller wants to find again.
    """

    __slots__ = ("begins", "cap", "links", "loads", "moved", "nbytes", "on_end", "phase", "tag")

    def __init__(
        self,
        links: np.ndarray,
        loads: np.ndarray,
        nbytes: float,
        begins: float,
        cap: float,
        on_end: OnEnd | None,
        tag: Any,
    ) -> None:
        self.links, self.loads, self.nbytes, self.cap = links, loads, nbytes, cap
        self.begins, self.on_end, self.tag = begins, on_end, tag
        self.moved, self.phase = 0.0, LATENCY


class _SameInstant(simpy.Event):
    """Fires at the current time, after everything else that happens then."""

    def __init__(self, env: simpy.Environment, callback: Callable) -> None:
        super().__init__(env)
        self._ok, self._value = True, None
        self.callbacks.append(callback)
        env.schedule(self, priority=_LAST)


class Links:
    """L links, and the activities that share them.

    Args:
        env: the clock.
        capacity: bytes/s of each link, >= 0 or inf; shape [L].
        sharing: who gets how much; max-min unless given.
    """

    def __init__(
        self, env: simpy.Environment, capacity: Iterable[float], sharing: Sharing | None = None
    ) -> None:
        self.env, self.sharing = env, sharing or MaxMin()
        self.capacity = np.minimum(np.array(capacity, float), _UNLIMITED)
        self.solve_seconds = 0.0
        """Wall-clock seconds spent in the model of sharing."""
        self.solves = 0
        self._down = np.zeros(len(self.capacity), bool)
        self._free: list[int] = []
        self._rows: list[Activity] = []
        self._remaining, self._rate, self._caps, self._finish = np.zeros((4, 0))
        self._lengths, self._links = np.zeros((2, 0), np.int64)
        self._loads = np.zeros(0)
        self._since = env.now
        self._arrivals: list[Activity] = []
        self._starts: list[tuple[float, int, Activity]] = []
        self._order = count()
        self._settling = self._changed = False
        self._timer: simpy.Event | None = None
        self._timer_at = np.inf

    def activity(
        self,
        links: np.ndarray,
        nbytes: float,
        latency: float = 0.0,
        loads: np.ndarray | None = None,
        cap: float = np.inf,
        on_end: OnEnd | None = None,
        tag: Any = None,
    ) -> Activity:
        """Start to move `nbytes` over `links` now; `latency` seconds pass before the first one.

        `on_end(activity, ok)` is called at the end; `ok` is False if a link went down. Without
        links the bytes are there when the latency is over.
        """
        links = np.asarray(links, np.int64)
        loads = np.ones(len(links)) if loads is None else loads
        begins = self.env.now + latency
        activity = Activity(links, loads, float(nbytes), begins, cap, on_end, tag)
        if latency > 0.0:
            heapq.heappush(self._starts, (begins, next(self._order), activity))
            self._arm(begins)
        else:
            self._arrivals.append(activity)
            self._settle_now()
        return activity

    def cancel(self, activity: Activity) -> float:
        """End an activity; returns the bytes it moved. `on_end` is not called."""
        if activity.phase != ENDED:
            activity.moved, activity.phase = self.moved(activity), ENDED
            self._settle_now()
        return activity.moved

    def moved(self, activity: Activity) -> float:
        """Bytes that one of its transfers has moved until now."""
        if activity.phase != SHARING:
            return activity.moved
        self._advance()
        return activity.nbytes - max(self._remaining[self._rows.index(activity)], 0.0)

    def running(self) -> Iterator[tuple[Activity, float]]:
        """Each activity that shares links now, and the bytes it has moved."""
        self._advance()
        for activity, left in zip(self._rows, self._remaining.tolist()):
            if activity.phase == SHARING:
                yield activity, activity.nbytes - max(left, 0.0)

    def add(self, capacities: Sequence[float]) -> list[int]:
        """New links of these capacities (bytes/s), until `remove`; their numbers."""
        reused = [self._free.pop() for _ in range(min(len(self._free), len(capacities)))]
        first, new = len(self.capacity), len(capacities) - len(reused)
        self.capacity = np.append(self.capacity, np.zeros(new))
        self._down = np.append(self._down, np.zeros(new, bool))
        numbers = [*reused, *range(first, first + new)]
        self.capacity[numbers] = np.minimum(capacities, _UNLIMITED)
        return numbers

    def remove(self, links: Iterable[int]) -> None:
        """Forget links that `add` made; no activity is on them any more."""
        self._free += links

    def set_capacity(self, link: int, capacity: float) -> None:
        """Change a capacity (bytes/s, >= 0) from now on; at 0 the bytes wait."""
        self.capacity[link] = min(capacity, _UNLIMITED)
        self._changed = True
        self._settle_now()

    def down(self, link: int) -> None:
        """Cut a link: what crosses it fails now, what would begin to cross it fails then."""
        self._down[link] = True
        self._advance()
        hit = np.repeat(np.arange(len(self._rows)), self._lengths)[self._links == link]
        for row in hit.tolist():
            if self._rows[row].phase == SHARING:
                self._end(self._rows[row], self._rows[row].nbytes - self._remaining[row], False)
        self._settle_now()

    def up(self, link: int) -> None:
        """Bring a link back."""
        self._down[link] = False

    def _advance(self) -> None:
        """Move every activity's bytes up to now; rates are constant since the last solve."""
        elapsed, self._since = self.env.now - self._since, self.env.now
        if elapsed > 0.0:
            self._remaining -= self._rate * elapsed

    def _end(self, activity: Activity, moved: float, ok: bool) -> None:
        activity.moved, activity.phase = moved, ENDED
        if activity.on_end is not None:
            activity.on_end(activity, ok)

    def _settle_now(self) -> None:
        if not self._settling:
            self._settling = True
            _SameInstant(self.env, self._settle)

    def _settle(self, _: simpy.Event) -> None:
        self._settling = False
        self._advance()
        self._drop()
        self._attach()
        if self._changed:
            self._solve()
        self._rearm()

    def _drop(self) -> None:
        stays = np.array([a.phase == SHARING for a in self._rows], bool)
        if stays.all():
            return
        kept = np.repeat(stays, self._lengths)
        self._links, self._loads = self._links[kept], self._loads[kept]
        self._remaining, self._caps = self._remaining[stays], self._caps[stays]
        self._lengths = self._lengths[stays]
        self._rows = [a for a in self._rows if a.phase == SHARING]
        self._changed = True

    def _attach(self) -> None:
        arrivals, self._arrivals = [a for a in self._arrivals if a.phase == LATENCY], []
        cut = [bool(self._down[a.links].any()) for a in arrivals]
        idle = [a.nbytes <= 0.0 or not len(a.links) for a in arrivals]
        new = [a for a, down, done in zip(arrivals, cut, idle) if not (down or done)]
        if new:
            self._append(new)
        for activity, down, done in zip(arrivals, cut, idle):  # last: callbacks come back here
            if (down or done) and activity.phase == LATENCY:
                self._end(activity, 0.0 if down else activity.nbytes, not down)

    def _append(self, new: list[Activity]) -> None:
        self._rows += new
        for activity in new:
            activity.phase = SHARING
        self._remaining = np.append(self._remaining, [a.nbytes for a in new])
        self._caps = np.append(self._caps, [a.cap for a in new])
        self._lengths = np.append(self._lengths, [len(a.links) for a in new])
        self._links = np.concatenate([self._links, *(a.links for a in new)])
        self._loads = np.concatenate([self._loads, *(a.loads for a in new)])
        self._changed = True

    def _solve(self) -> None:
        began, self._changed = time.perf_counter(), False
        rows = self._lengths, self._links, self._loads, self._caps
        self._rate = self.sharing.rates(self.capacity, *rows) if self._rows else np.zeros(0)
        never = np.full(len(self._rows), np.inf)  # a link of capacity 0 stops its activities
        wait = np.divide(self._remaining, self._rate, out=never, where=self._rate > 0.0)
        self._finish = self.env.now + wait
        self.solves += 1
        self.solve_seconds += time.perf_counter() - began

    def _rearm(self) -> None:
        while self._starts and self._starts[0][2].phase == ENDED:
            heapq.heappop(self._starts)
        at = self._starts[0][0] if self._starts else np.inf
        self._arm(min(at, float(self._finish.min(initial=np.inf))))

    def _arm(self, at: float) -> None:
        if at < self._timer_at:
            self._timer_at = at
            self._timer = self.env.timeout(max(at - self.env.now, 0.0))
            self._timer.callbacks.append(self._wake)

    def _wake(self, timer: simpy.Event) -> None:
        if timer is not self._timer:
            return
        self._timer, self._timer_at = None, np.inf
        # Within a nanosecond is the same instant; the second term is the clock's own rounding.
        limit = self.env.now * (1.0 + 1e-15) + 1e-9
        while self._starts and self._starts[0][0] <= limit:
            self._arrivals.append(heapq.heappop(self._starts)[2])
        done = [self._rows[i] for i in np.flatnonzero(self._finish <= limit).tolist()]
        if not (done or self._arrivals):
            self._rearm()
            return
        for activity in done:
            if activity.phase == SHARING:
                self._end(activity, activity.nbytes, True)
        self._settle_now()
