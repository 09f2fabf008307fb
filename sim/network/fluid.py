"""Links and the activities on them: a fluid model driven by one simpy timer.

- Latency first, then bytes: an activity uses no capacity until its latency is over.
- All arrivals, departures and changes of capacity of one instant are solved together, in one
  event that comes after every other event of this instant.
- One timer, armed at the next end of a latency or of an activity. SimPy cannot cancel: a timer
  that has been overtaken is ignored.
- The arithmetic is in `sim.network.solver`; what an instant costs depends on the activities that
  share links with what changed, not on how many there are.

Legend: F activities, L links.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import simpy
from simpy.events import EventPriority

from sim.network.arguments import check_approximate
from sim.network.solver import kernels
from sim.network.solver import layout as s
from sim.network.store import UNLIMITED, Mover, Store

_LAST = EventPriority(2)
"""SimPy's priorities are 0 (urgent) and 1 (normal); this one is after both."""

OnEnd = Callable[["Activity", bool], None]
"""`on_end(activity, ok)`: its last byte is there, or (not ok) a link of its went down."""
OnLoad = Callable[[np.ndarray, np.ndarray], None]
"""`on_load(links, loads)`: these links carry that many bytes/s from now on."""


class Activity:
    """Bytes in motion over some links, at one rate.

    Attributes:
        row: its slot in the solver while it lasts; -1 afterwards.
        moved: bytes of one of its transfers that are through, once it has ended; see `Links.moved`.
        begins: the time in seconds at which its latency is over.
        tag: whatever the caller wants to find again.
    """

    __slots__ = ("begins", "moved", "on_end", "row", "tag")

    def __init__(self, begins: float, on_end: OnEnd | None, tag: Any) -> None:
        self.begins, self.on_end, self.tag = begins, on_end, tag
        self.row, self.moved = -1, 0.0

    def conclude(self, moved: float, ok: bool) -> None:
        """It has ended; called by the links."""
        self.row, self.moved = -1, moved
        if self.on_end is not None:
            self.on_end(self, ok)


class Links:
    """L links, and the activities that share them, max-min fairly by weight.

    Args:
        env: the clock.
        capacity: bytes/s of each link, >= 0 or inf; shape [L].
        approximate: q >= 0; 0 is exact. An activity that would soon end, ends together with
            another one if its end is at most q times the age of the youngest activity on its links
            away: nobody's time in sharing is cut by more than the fraction q at a time, and shared
            bottlenecks are solved less often. At 2e-4 the finish of every flow measured so far,
            knock-on effects included, was within 1e-3 of the exact one.
    """

    def __init__(
        self, env: simpy.Environment, capacity: Iterable[float], approximate: float = 0.0
    ) -> None:
        check_approximate(approximate)
        self.env, self.approximate = env, approximate
        self.solve_seconds = 0.0
        """Wall-clock seconds spent in the solver."""
        self.solves = 0
        """Instants at which something was solved."""
        self.on_load: OnLoad | None = None
        """Told of every change of the load of a link; comparing all of them costs O(L)."""
        self._store = Store(np.array(capacity, float))
        self._told = np.zeros(0)
        self._settling = False
        self._timer: simpy.Event | None = None
        self._timer_at = np.inf
        self._instant = _fired(env)

    @property
    def capacity(self) -> np.ndarray:
        """Bytes/s of each link, [L]; to be read only."""
        return self._store.lf[: self._store.n_links, s.CAPACITY]

    @property
    def load(self) -> np.ndarray:
        """Bytes/s that each link carries, [L], as of the last solve; to be read only."""
        return self._store.lf[: self._store.n_links, s.LOAD]

    @property
    def core(self) -> np.ndarray:
        """Links of the pieces of routes that `flow` names, int64; assign to give others."""
        return self._store.core()

    @core.setter
    def core(self, links: np.ndarray) -> None:
        self._store.set_core(links, self._now())

    def _now(self) -> float:
        """The clock as a float: simpy's begins as an int, and kernels are compiled by type."""
        return float(self.env.now)

    # What callers start, change and end

    def activity(
        self,
        links: np.ndarray | Sequence[int],
        nbytes: float,
        latency: float = 0.0,
        loads: np.ndarray | None = None,
        cap: float = np.inf,
        on_end: OnEnd | None = None,
        tag: Any = None,
        weight: float = 1.0,
    ) -> Activity:
        """Start to move `nbytes` over `links` now; `latency` seconds pass before the first one.

        `on_end(activity, ok)` is called at the end; `ok` is False if a link went down. Without
        links the bytes are there when the latency is over.

        Args:
            loads: what one byte/s of the activity's rate takes of each link; 1 if None.
            cap: the highest rate, bytes/s.
            weight: > 0; rates of activities on the same bottleneck are proportional to it.
        """
        now, crossed = self._now(), np.asarray(links, np.int64)
        loads = np.ones(len(crossed)) if loads is None else np.asarray(loads, float)
        activity = Activity(now + latency, on_end, tag)
        row = self._store.slot(activity, len(crossed), now)
        size = float(nbytes), float(latency), float(cap), float(weight)
        if not kernels.place(row, now, crossed, loads, *size, self._store.book):
            raise IndexError(f"links {crossed.tolist()}: there are {self._store.n_links}")
        if latency > 0.0:
            self._arm(activity.begins)
        else:
            self._settle_now()
        return activity

    def flow(
        self,
        mover: Mover,
        route: tuple[int, int, int, int],
        nbytes: float,
        latency: float,
        cap: float,
        weight: float,
    ) -> None:
        """Start one plain flow, cheaply: it is made together with all others of this instant.

        Args:
            route: a link or -1, then `core[first : first + count]`, then a link or -1, given as
                (link, first, count, link).
        """
        now, store = self._now(), self._store
        row = store.slot(mover, route[2] + 2, now)
        store.post(row, route, nbytes, latency, cap, weight, now)
        if not self._settling:
            self._settle_now()

    def cancel(self, mover: Mover) -> float:
        """End an activity; returns the bytes it moved. `conclude` and `on_end` are not called."""
        row = mover.row
        if row < 0:
            return self.moved(mover)
        moved = self.moved(mover)
        state = self._store.ri[row, s.STATE]
        if state != s.UNUSED:  # else it has ended in this instant, and is about to be told
            kernels.detach(row, self._now(), self._store.book)
        self._store.release(row, bool(state == s.WAITING))
        mover.row = -1
        if isinstance(mover, Activity):
            mover.moved = moved
        self._settle_now()
        return moved

    def moved(self, mover: Mover) -> float:
        """Bytes that one of its transfers has moved until now."""
        if mover.row < 0:
            return mover.moved if isinstance(mover, Activity) else 0.0
        self._store.take_in(self._now())
        return float(kernels.moved(mover.row, self._now(), self._store.book))

    def gauge(self, activity: Activity) -> Callable[[], float]:
        """`moved` of an activity that has not ended, for those who look often while it lasts."""
        env, store, row, moved = self.env, self._store, activity.row, kernels.moved

        def read() -> float:
            return moved(row, float(env.now), store.book)

        return read

    def rate(self, mover: Mover) -> float:
        """Bytes/s at which its transfers move; 0 before its latency is over and after its end."""
        return self._store.rate(mover.row) if mover.row >= 0 else 0.0

    def extend(self, activity: Activity, nbytes: float) -> None:
        """More bytes for an activity that has not ended."""
        assert activity.row >= 0, "extend() of an activity that has ended"
        kernels.extend(activity.row, self._now(), float(nbytes), self._store.book)
        self._settle_now()

    def follow(self, activity: Activity, leader: Activity, slack: float) -> None:
        """Keep an activity within `slack` bytes of another one, until that one has ended.

        Each has at most one leader, and leads at most one.
        """
        f, g, ri = activity.row, leader.row, self._store.ri
        assert f >= 0, "follow() of an activity that has ended"
        if g < 0:
            return
        assert ri[f, s.LEADER] < 0, "an activity has one leader"
        assert ri[g, s.FOLLOWER] < 0, "an activity leads one other"
        kernels.follow(f, g, self._now(), float(slack), self._store.book)
        self._settle_now()

    def running(self) -> Iterator[tuple[Mover, float]]:
        """Each activity that shares links now, and the bytes it has moved."""
        rows, moved = self.sharing()
        for row, nbytes in zip(rows.tolist(), moved.tolist()):
            yield self.mover(row), nbytes

    def sharing(self) -> tuple[np.ndarray, np.ndarray]:
        """Slots of the activities that share links now, int64 [F], and bytes moved, [F]."""
        return self._store.sharing(self._now())

    def mover(self, row: int) -> Any:
        """What has this slot; None if nothing."""
        return self._store.movers[row] if row < len(self._store.movers) else None

    # Links

    def add(self, capacities: Sequence[float]) -> list[int]:
        """New links of these capacities (bytes/s), until `remove`; their numbers."""
        return self._store.add_links(capacities)

    def remove(self, links: Iterable[int]) -> None:
        """Forget links that `add` made; no activity is on them any more."""
        self._store.remove_links(links)

    def set_capacity(self, link: int, capacity: float) -> None:
        """Change a capacity (bytes/s, >= 0) from now on; at 0 the bytes wait."""
        self._store.lf[link, s.CAPACITY] = min(capacity, UNLIMITED)
        kernels.note(link, self._store.book)
        self._settle_now()

    def down(self, link: int) -> None:
        """Cut a link: what crosses it fails now, what would begin to cross it fails then."""
        store = self._store
        store.li[link, s.DOWN] = 1
        hit = store.out[: kernels.crossing(link, store.book)].tolist()
        for mover in [store.movers[row] for row in hit]:
            assert mover is not None
            if mover.row >= 0:  # else it ended by what another one's end set off
                moved = self.cancel(mover)
                mover.conclude(moved, False)
        self._settle_now()

    def up(self, link: int) -> None:
        """Bring a link back."""
        self._store.li[link, s.DOWN] = 0

    # The instant

    def _settle_now(self) -> None:
        if not self._settling:
            self._settling = True
            self._instant.callbacks = [self._settle]
            self.env.schedule(self._instant, priority=_LAST)

    def _settle(self, _: simpy.Event) -> None:
        began, store = time.perf_counter(), self._store
        counts, self._settling = store.counts, False
        store.hand_over()
        at = kernels.settle(self._now(), store.book)
        store.end_instant()
        self.solves += counts[s.N_LINKS] > 0
        if self.on_load is not None:
            self._tell_loads()
        ended = self._ended(counts[s.N_OUT])
        self._arm(at)
        self.solve_seconds += time.perf_counter() - began
        self._conclude(ended)

    def _wake(self, timer: simpy.Event) -> None:
        if timer is not self._timer:
            return
        began, now, store = time.perf_counter(), self._now(), self._store
        self._timer, self._timer_at = None, np.inf
        # Within a nanosecond is the same instant; the second term is the clock's own rounding.
        limit = now * (1.0 + 1e-15) + 1e-9
        ended = self._ended(kernels.due(now, limit, self.approximate, store.book))
        self._settle_now()
        self.solve_seconds += time.perf_counter() - began
        self._conclude(ended)

    def _ended(self, count: int) -> list[tuple[int, Mover | None]]:
        """Rows that the kernels have detached, as they name them, and whose they are."""
        movers, out = self._store.movers, self._store.out
        rows = out[:count].tolist() if count else ()
        return [(row, movers[row & (s.FAILED - 1)]) for row in rows]

    def _conclude(self, ended: list[tuple[int, Mover | None]]) -> None:
        """Tell what has ended; the end of one may cancel another of them."""
        store, movers = self._store, self._store.movers
        for row, mover in ended:
            ok, row = row < s.FAILED, row & (s.FAILED - 1)
            if mover is None or mover is not movers[row]:
                continue
            nbytes = float(store.rf[row, s.NBYTES]) if ok else 0.0
            store.release(row)
            mover.conclude(nbytes, ok)

    def _arm(self, at: float) -> None:
        if at < self._timer_at:
            self._timer_at = at
            timer = self._timer = _fired(self.env)
            timer.callbacks = [self._wake]
            self.env.schedule(timer, delay=max(at - self.env.now, 0.0))

    def _tell_loads(self) -> None:
        """Report the links whose load is another than at the last report."""
        load = self.load
        if len(self._told) < len(load):
            self._told = np.append(self._told, np.zeros(len(load) - len(self._told)))
        differ = np.abs(load - self._told[: len(load)]) > 1e-9 * np.maximum(load, 1.0)
        changed = np.flatnonzero(differ)
        if len(changed):
            self._told[changed] = load[changed]
            assert self.on_load is not None
            self.on_load(changed, load[changed])


def _fired(env: simpy.Environment) -> simpy.Event:
    """An event with a value, which only has to be scheduled."""
    event = simpy.Event(env)
    event._ok, event._value = True, None
    return event
