"""Collectives step by step: every chunk is a flow of its own, with its latency in front.

The reference for `sim.network.coupled`, and the form to use when single flows matter: expensive,
since a ring of n members is 2 n (n - 1) flows.

Legend: n members still there, c bytes of a chunk.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import simpy

from sim.network.collectives import Collective, OnHeard, ring
from sim.network.fluid import Activity

if TYPE_CHECKING:
    from sim.network.network import Network


class SteppedReduce(Collective):
    """Ring reduce-scatter, and an all-gather after it if `passes` is 2, of chunks of nbytes / n.

    Hop i goes from member i to the next. Its step k needs its own step k - 1 sent and step k - 1
    of the hop before received; step 0 needs its member ready.

    After a loss the survivors form a ring whose steps carry the fraction of the bytes that was
    left, in as many steps as that fraction of passes (n - 1), rounded up. A member lost before the
    first n - 1 of its own steps is no contributor, and what it sent is waste.
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
        super().__init__(network, op, members, nbytes, members)
        self._passes = passes
        self._flights: dict[int, Activity] = {}
        self._reset()
        self._begin(ready)

    def _reset(self) -> None:
        self._progress = 0.0
        self._kept: set[int] = set()
        self._complete = self._formed = False

    def _proceed(self) -> None:
        if len(self.alive) < 2:
            if not self.waiting:
                self._complete = True
                self._finish()
        elif not self._detecting:
            if not self._formed:
                self._form()
            for hop in range(len(self._ring)):
                self._step(hop)

    def _form(self) -> None:
        n, left = len(self.alive), 1.0 - self._progress
        self._ring = ring(self.alive)
        self._steps = max(1, math.ceil(self._passes * (n - 1) * left - 1e-9))
        chunk = self.nbytes / n + self.network.header_bytes
        self._chunk = self._passes * (n - 1) * left * chunk / self._steps
        self._sent_steps = [0] * n
        self._formed = True

    def _step(self, hop: int) -> None:
        """Start the next step of a hop if it may."""
        step = self._sent_steps[hop]
        if hop in self._flights or step == self._steps or self._ring[hop][0] in self.waiting:
            return
        if step and self._sent_steps[hop - 1] < step:
            return
        plan = self._plan([self._ring[hop]])
        if plan is not None:
            ended = partial(self._ended, hop)
            self._flights[hop] = self.network.launch(plan, self._chunk, ended)

    def _ended(self, hop: int, activity: Activity, ok: bool) -> None:
        del self._flights[hop]
        self._credit(activity)
        if not ok:
            self._waste(activity.tag.senders, activity.moved)
            self._broken()
            return
        self._sent_steps[hop] += 1
        if not self._detecting:
            self._step(hop)
            self._step((hop + 1) % len(self._ring))
        if not self._flights and min(self._sent_steps) == self._steps:
            self._complete = True
            self._finish()

    def _halt(self) -> None:
        for flight in self._flights.values():
            self._discard(flight)
        self._flights.clear()

    def _without(self, member: int) -> None:
        self._halt()
        own = self._progress
        if self._formed:
            left = (1.0 - self._progress) / self._steps
            own += left * self._sent_steps[[src for src, _ in self._ring].index(member)]
            self._progress += left * sum(self._sent_steps) / len(self._ring)
        if own >= 1.0 / self._passes - 1e-9:
            self._kept.add(member)
        else:
            self._waste(member, self._sent[member] - self._wasted[member])
        self._formed, self._complete = False, len(self.alive) < 2

    def _abandon(self) -> None:
        self._halt()
        if not self._complete:
            self._waste_all()

    def _contributors(self) -> set[int]:
        return self._kept | set(self.alive) if self._complete else set()


class RelayGather(Collective):
    """Ring all-gather: each member hands on what it gets, in order of arrival, its own first.

    With all members ready these are the n - 1 steps of the textbook; one that is late delays its
    own payload only. After a loss each member sends its new successor what that one lacks; a
    payload that nobody else had is gone with its owner, others stay in the round.
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
        self._flights: dict[int, tuple[int, Activity]] = {}
        self._reset()
        self._begin(ready)

    def _reset(self) -> None:
        self._has: dict[int, dict[int, None]] = {m: {} for m in self.alive}
        self._queue: dict[int, deque[int]] = {m: deque() for m in self.alive}
        self._next = dict(ring(self.alive)) if self.alive else {}

    def _proceed(self) -> None:
        if not self._detecting:
            self._relink()
        for member in self.alive:
            if member not in self.waiting and member not in self._has[member]:
                self._get(member, member)
            self._forward(member)
        self._check()

    def _relink(self) -> None:
        """Give those whose successor left a new one, and what this one lacks to send."""
        for member, successor in ring(self.alive) if self.alive else ():
            if self._next[member] != successor:
                self._next[member] = successor
                lacks = (s for s in self._has[member] if s not in self._has[successor])
                self._queue[member] = deque(lacks)

    def _get(self, member: int, source: int) -> None:
        """A payload is with a member: queue it if its successor lacks it."""
        self._has[member][source] = None
        successor = self._next[member]
        if successor in self._has and source not in self._has[successor]:
            self._queue[member].append(source)

    def _forward(self, member: int) -> None:
        queue, successor = self._queue[member], self._next[member]
        if not queue or member in self._flights or successor not in self._has:
            return
        plan = self._plan([(member, successor)])
        if plan is not None:
            source, ended = queue.popleft(), partial(self._ended, member)
            flight = self.network.launch(plan, self._sizes[source], ended)
            self._flights[member] = source, flight

    def _ended(self, member: int, activity: Activity, ok: bool) -> None:
        source, _ = self._flights.pop(member)
        self._credit(activity)
        if not ok:
            self._waste(member, activity.moved)
            self._queue[member].appendleft(source)
            self._broken()
            return
        successor = self._next[member]
        self._get(successor, source)
        self._hear(source, successor)
        if not self.triggered:
            self._forward(member)
            self._forward(successor)
            self._check()

    def _check(self) -> None:
        """End when nothing moves, and nothing will."""
        busy = self._flights or self.waiting or self._detecting or self.triggered
        if not busy and not any(self._queue[member] for member in self.alive):
            self._finish()

    def _without(self, member: int) -> None:
        for sender, (_, flight) in list(self._flights.items()):
            if member in (sender, self._next[sender]):
                del self._flights[sender]
                self._discard(flight)
        del self._has[member], self._queue[member]

    def _halt(self) -> None:
        for _, flight in self._flights.values():
            self._discard(flight)
        self._flights.clear()

    def _abandon(self) -> None:
        self._halt()

    def _contributors(self) -> set[int]:
        """Those whose payload everybody has who is still there."""
        return set.intersection(*(set(self._has[member]) for member in self.alive))


class Exchange(Collective):
    """Independent flows between directed pairs: neighbour exchange, and the full mesh in flows.

    A flow starts when its sender is ready and is dropped if an end of it leaves; one whose link
    goes down starts again after the detection delay. A contributor is a member none of whose
    flows to survivors was dropped.
    """

    def __init__(
        self,
        network: Network,
        op: str,
        members: Sequence[int],
        pairs: Mapping[tuple[int, int], float],
        ready: Mapping[int, simpy.Event],
        on_heard: OnHeard | None = None,
    ) -> None:
        senders = dict.fromkeys(src for src, _ in pairs)
        mean = sum(pairs.values()) / max(len(pairs), 1)
        super().__init__(network, op, members, mean, list(senders), on_heard)
        self._pairs = {pair: nbytes + network.header_bytes for pair, nbytes in pairs.items()}
        self._flights: dict[tuple[int, int], Activity] = {}
        self._order = {pair: place for place, pair in enumerate(self._pairs)}
        self._reset()
        self._begin(ready)

    def _reset(self) -> None:
        here = set(self.alive)
        self._left = {pair: b for pair, b in self._pairs.items() if here.issuperset(pair)}
        self._short = set(self.members) - here
        self._idle: dict[int, set[tuple[int, int]]] = {}
        self._rest(self._left)

    def _rest(self, pairs: Iterable[tuple[int, int]]) -> None:
        """These have something left to send and are not under way."""
        for pair in pairs:
            self._idle.setdefault(pair[0], set()).add(pair)

    def _proceed(self) -> None:
        senders = [src for src in self._idle if src not in self.waiting]
        pairs = [pair for src in senders for pair in self._idle.pop(src) if pair in self._left]
        for pair in sorted(pairs, key=self._order.__getitem__):
            plan = self._plan([pair])
            if plan is None:
                self._rest([pair])
            if plan is not None:
                ended = partial(self._ended, pair)
                self._flights[pair] = self.network.launch(plan, self._left[pair], ended)
        if not self._left and not self.waiting and not self._detecting:
            self._finish()

    def _ended(self, pair: tuple[int, int], activity: Activity, ok: bool) -> None:
        del self._flights[pair]
        self._credit(activity)
        if not ok:
            self._waste(pair[0], activity.moved)
            self._rest([pair])
            self._broken()
            return
        del self._left[pair]
        self._hear(*pair)
        if not self.triggered and not self._left:
            self._proceed()

    def _without(self, member: int) -> None:
        if any(src == member for src, _ in self._left):
            self._short.add(member)
        for pair in [p for p in self._left if member in p]:
            self._drop(pair)

    def _halt(self) -> None:
        for flight in self._flights.values():
            self._discard(flight)
        self._rest(self._flights)
        self._flights.clear()

    def _drop(self, pair: tuple[int, int]) -> None:
        del self._left[pair]
        if pair in self._flights:
            self._discard(self._flights.pop(pair))

    def _abandon(self) -> None:
        for pair in list(self._left):
            self._short.add(pair[0])
            self._drop(pair)

    def _contributors(self) -> set[int]:
        return set(self.members) - self._short
