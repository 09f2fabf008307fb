"""Collectives: what all of them share. Members, readiness, losses, and how they end.

A collective is an event. Its members begin to send when they are ready; it is told of losses,
can be cut short, and fires with an `Outcome`. How its bytes move is up to the leaves:
`sim.network.coupled` and `sim.network.gather` (one or a few activities for the whole of it),
`sim.network.hops` (one per hop), `sim.network.stepwise` (every step a flow), and
`sim.network.scheduled` (whatever can be written as phases).

A member that leaves, or a link that goes down, meets one of four rules:

- *shrink*: a member that leaves is gone for good; after the detection delay the survivors go on
  with the remaining bytes, without it. With one survivor a collective ends at once.
- *abort*: everything stops; after the detection delay the collective ends without contributors.
- *wait*: the same, but nothing is noticed before a timeout (`patience`) after the loss.
- *retry*: everything stops; after the detection delay the survivors start over.

A contributor is a member whose share had left it completely. Under the last three rules all that
was sent before is waste.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import simpy

from sim.network.fluid import Activity
from sim.network.routes import Hops, NoRoute, Plan

if TYPE_CHECKING:
    from sim.network.network import Network

OnHeard = Callable[[int, int | None], None]
"""`on_heard(src, dst)`: dst (or everybody, if None) has the payload of src now."""
Shape = Callable[[int, Sequence[int]], Hops]
"""`shape(source, members)`: the hops by which a payload spreads, each after the one it needs."""


def chain(source: int, members: Sequence[int]) -> Hops:
    """Along `members` from the source round to the one before it.

    >>> chain(5, [3, 5, 7])
    ((5, 7), (7, 3))
    """
    at = members.index(source)
    order = [*members[at:], *members[:at]]
    return tuple(pairwise(order))


def star(source: int, members: Sequence[int]) -> Hops:
    """From the source to each other member.

    >>> star(5, [3, 5, 7])
    ((5, 7), (5, 3))
    """
    return tuple((source, member) for _, member in chain(source, members))


def tree(source: int, members: Sequence[int]) -> Hops:
    """A binary tree below the source.

    >>> tree(0, [0, 1, 2, 3])
    ((0, 1), (0, 2), (1, 3))
    """
    at = members.index(source)
    order = [*members[at:], *members[:at]]
    return tuple((order[(i - 1) // 2], order[i]) for i in range(1, len(order)))


def ring(members: Sequence[int]) -> Hops:
    """All n hops from each member to the next.

    >>> ring([3, 5, 7])
    ((3, 5), (5, 7), (7, 3))
    """
    return tuple(zip(members, [*members[1:], members[0]]))


@dataclass(frozen=True)
class Outcome:
    """How a collective ended.

    Attributes:
        contributors: members whose share left them completely, in order; none if nobody is left.
        sent: bytes that each member sent, relayed ones included.
        wasted: bytes of `sent` that are in no result.
        started: seconds; when the first member was ready (when it was issued, if none ever was).
        finished: seconds.
    """

    contributors: list[int]
    sent: dict[int, float]
    wasted: float
    started: float
    finished: float


class Collective(simpy.Event, ABC):
    """A running collective; fires with an `Outcome`, and never fails.

    Attributes:
        op: its name in the trace.
        members: hosts, in ring order, as it was called.
        alive: those of them still there.
        waiting: those alive that are not ready to send yet.
        heard: (src, dst) for each payload that arrived, in order of time; a dst of None stands
            for everybody. Gathers, broadcasts and exchanges only.
    """

    def __init__(
        self,
        network: Network,
        op: str,
        members: Sequence[int],
        nbytes: float,
        senders: Sequence[int],
        on_heard: OnHeard | None = None,
    ) -> None:
        super().__init__(network.env)
        self.network, self.op, self.members, self.nbytes = network, op, tuple(members), nbytes
        self.alive = [m for m in members if network.online[m]]
        self.waiting = {m for m in senders if network.online[m]}
        self.heard: list[tuple[int, int | None]] = []
        self._on_heard = on_heard
        self._issued = self._last = self.env.now
        self._first: float | None = None
        self._sent, self._wasted = np.zeros((2, network.n))
        self._newly_ready: list[int] = []
        self._whose: dict[simpy.Event, int] = {}
        self._joins: Callable[[int], None] | None = None
        """What is told of a member that becomes ready, instead of `_go_on`, while not None."""
        self._detecting = 0
        self._aborted = False

    @abstractmethod
    def _proceed(self) -> None:
        """Launch whatever can go now, end if nothing is left to do; called at every change."""

    @abstractmethod
    def _without(self, member: int) -> None:
        """Stop what a member takes part in; it is in `alive` no more."""

    @abstractmethod
    def _halt(self) -> None:
        """Stop and count what moves now; nothing may be in motion afterwards."""

    @abstractmethod
    def _reset(self) -> None:
        """Forget, after `_halt`, whatever was done: those alive begin again."""

    @abstractmethod
    def _abandon(self) -> None:
        """Stop everything; what was in motion is waste."""

    @abstractmethod
    def _contributors(self) -> set[int]:
        """Members whose share is in the result as it stands."""

    def cut(self) -> None:
        """End now, with what has been delivered."""
        if not self.triggered:
            self._abandon()
            self._finish()

    def leave(self, member: int) -> None:
        """Go on without a member, or not: see the rules at the top of the module."""
        if self.triggered or member not in self.alive:
            return
        self.waiting.discard(member)
        self.alive.remove(member)
        if not self.alive:
            self._halt()
            self._finish()
        elif self.network.failure != "shrink":
            self._stall()
        else:
            self._without(member)
            if len(self.alive) > 1:
                self._pause()
            elif not self.waiting:
                self.cut()

    def _begin(self, ready: Mapping[int, simpy.Event]) -> None:
        """Start to listen; the last thing a constructor does."""
        self.network.follow(self)
        ready_now = self._ready_now
        for member in sorted(self.waiting):
            event = ready.get(member)
            if event is None or event.callbacks is None:
                self._is_ready(member)
                self._newly_ready.append(member)
            elif event in self._whose:  # several wait for the same one
                event.callbacks.append(partial(self._becomes_ready, member))
            else:
                self._whose[event] = member
                event.callbacks.append(ready_now)
        self._go_on()

    def _ready_now(self, event: simpy.Event) -> None:
        self._becomes_ready(self._whose[event], event)

    def _becomes_ready(self, member: int, _: simpy.Event) -> None:
        if member not in self.waiting or self.triggered:
            return
        self._is_ready(member)
        if self._joins is not None:
            self._joins(member)
        else:
            self._newly_ready.append(member)
            self._go_on()

    def _is_ready(self, member: int) -> None:
        self.waiting.discard(member)
        self._last = self.env.now
        if self._first is None:
            self._first = self.env.now

    def _go_on(self, _: simpy.Event | None = None) -> None:
        """`_proceed`, unless it is over or has stalled."""
        if not (self.triggered or (self._detecting and self.network.failure != "shrink")):
            self._proceed()

    def _broken(self) -> None:
        """A link went down under something of ours, which has been counted."""
        if self.network.failure == "shrink":
            self._pause()
        else:
            self._stall()

    def _pause(self) -> None:
        """Let the detection delay pass; then `_proceed`."""
        self._detecting += 1
        self.env.timeout(self.network.detection).callbacks.append(self._resume)

    def _resume(self, _: simpy.Event) -> None:
        self._detecting -= 1
        self._go_on()

    def _stall(self) -> None:
        """A loss under a rule other than *shrink*: nothing moves until it is noticed."""
        self._halt()
        self._detecting += 1
        waits = self.network.failure == "wait"
        delay = self.network.patience if waits else self.network.detection
        self.env.timeout(delay).callbacks.append(self._notice)

    def _notice(self, _: simpy.Event) -> None:
        self._detecting -= 1
        if self.triggered:
            return
        if self.network.failure != "retry":
            self._aborted = True
            self._finish()
        elif not self._detecting:
            self._waste_all()
            self.heard.clear()
            self._reset()
            self._proceed()

    def _plan(self, hops: Sequence[tuple[int, int]]) -> Plan | None:
        """The plan of some hops; None if links are down, then tries again when one is back."""
        try:
            return self.network.routes.plan(hops)
        except NoRoute:
            self.network.repaired.callbacks.append(self._go_on)
            return None

    def _credit(self, activity: Activity) -> None:
        plan: Plan = activity.tag
        self._sent[plan.senders] += activity.moved * plan.sent

    def _stop(self, activity: Activity) -> float:
        """Cancel and count; returns the bytes that each hop moved."""
        self.network.stop(activity)
        self._credit(activity)
        return activity.moved

    def _waste(self, hosts: np.ndarray | int, nbytes: np.ndarray | float) -> None:
        self._wasted[hosts] += nbytes
        self.network.waste(hosts, nbytes)

    def _waste_all(self) -> None:
        self._waste(np.arange(self.network.n), self._sent - self._wasted)

    def _discard(self, activity: Activity) -> None:
        """Cancel; all that it moved is waste."""
        moved, plan = self._stop(activity), activity.tag
        self._waste(plan.senders, moved * plan.sent)

    def _hear(self, src: int, dst: int | None) -> None:
        self.heard.append((src, dst))
        if self._on_heard is not None:
            self._on_heard(src, dst)

    def _finish(self) -> None:
        self.network.forget(self)
        in_vain = self._aborted or not self.alive
        if in_vain:
            self._waste_all()
        inside = set() if in_vain else self._contributors()
        outcome = Outcome(
            contributors=[m for m in self.members if m in inside],
            sent=dict(zip(self.members, self._sent[list(self.members)].tolist())),
            wasted=float(self._wasted.sum()),
            started=self._issued if self._first is None else self._first,
            finished=self.env.now,
        )
        self.network.record(
            "collective",
            time=self.env.now,
            op=self.op,
            n=len(self.members),
            start=outcome.started,
            end=self.env.now,
            nbytes=self.nbytes,
            link_seconds=self.env.now - self._last,
            wasted=outcome.wasted,
            contributors=len(outcome.contributors),
            members=self.members,
        )
        self.succeed(outcome)
