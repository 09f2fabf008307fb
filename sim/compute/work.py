"""Work: the event of a computation on one node or on a group.

It fires when the last living member is done. Its value is computed then, together with all else
that is queued, and never seen before.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import simpy
import torch
from torch import Tensor

from sim.compute.fleet import Request
from sim.compute.gates import Gates
from sim.compute.layout import Fragment

if TYPE_CHECKING:
    from sim.payload import Payload
    from sim.simulation import Simulation


Program = Generator[simpy.Event, Any, Any]
"""What a process runs: it yields events and is sent their values."""


class Watcher(Protocol):
    """Something that must be told when a node leaves."""

    def leave(self, node: int) -> None: ...


class Work(simpy.Event):
    """Computation in progress.

    Its value, once it has fired: gradients [n, P] of the members that are still here, in order of
    `members` (what `then` made of them, if it was called), or None for local steps.

    Args:
        sim: the run.
        request: what is computed.
        finish: the simulated time at which each node of the request is done, float64 [n].
        useful: seconds of forward and backward passes of each node, float64 [n].
        single: the request is of one node, and the value is its row [P].
        gates: what the first step waits for; then the request is held (`Fleet.request`), and
            `finish` is without waiting. None is no gate and a request that is queued.
    """

    def __init__(
        self,
        sim: Simulation,
        request: Request,
        finish: np.ndarray,
        useful: np.ndarray,
        *,
        single: bool = False,
        gates: Mapping[Fragment, simpy.Event] | None = None,
    ) -> None:
        super().__init__(sim)
        self._sim, self._request, self.single, self._held = sim, request, single, gates is not None
        self.finish = dict(zip(request.ids.tolist(), finish.tolist()))
        """When each member is done, s, as far as is known; a member that left is not in it."""
        self.started = sim.now
        self.steps = request.steps
        self.useful = dict(zip(request.ids.tolist(), useful.tolist()))
        """Seconds of that which each node spends on gradients."""
        self._gates = Gates(sim, gates or {}, self._open)
        self._later: list[tuple[dict[int, simpy.Event], Mapping[int, float]]] = []
        self._steps: dict[int, dict[int, float]] = {}
        sim.watch(self)
        self._arm()

    @property
    def loss(self) -> float | None:
        """Mean training loss of the members, before their last step; None under `meta`."""
        losses = self._request.losses
        if losses is None or losses.is_meta or not self.finish:
            return None
        if len(losses) > len(self.finish):  # a member left after its part had been computed
            losses = losses[torch.from_numpy(np.isin(self._request.ids, self.members))]
        return float(losses.mean())

    @property
    def members(self) -> list[int]:
        """The nodes that take part and have not left, ascending."""
        return list(self.finish)

    def ready(
        self, delay: Mapping[int, float], tensors: Iterable[str] | None = None
    ) -> dict[int, simpy.Event]:
        """Per member an event `delay[node]` seconds after its own part is done.

        Args:
            delay: what the member does before it can send, such as encoding.
            tensors: of the workload; only their gradients must have been released.
        """
        offset = dict(delay)
        if tensors is not None:
            share = self._sim.workload.timeline.remaining(tensors)
            for node, seconds in self._step_seconds(self.steps - 1).items():
                offset[node] -= share * seconds
        return self._events(offset)

    def released(self, fragment: Fragment) -> simpy.Event:
        """When every living member's last step has let go of a fragment's gradients."""
        each = self.ready(dict.fromkeys(self.finish, 0.0), fragment.charged.shapes)
        return self._sim.all_of(list(each.values()))

    @property
    def function(self) -> Callable[[Any, Tensor], Tensor | Payload] | None:
        """What `then` applies to the gradients; None if nothing."""
        return self._request.then

    def then(self, fn: Callable[[Any, Tensor], Tensor | Payload]) -> Work:
        """Apply `fn(rows, block)` to the gradients, in blocks, inside the flush.

        `rows` gives the same nodes' named rows; `fn` may write them, and the block too. Pass a
        bound method rather than a lambda: blocks of different nodes are batched when their
        functions are equal. Other rows are read when the flush runs, so let nobody else write
        those that `fn` reads.
        """
        assert not self._request.executed, "then() comes before the work is computed"
        self._request.then = fn
        return self

    def keep_sums(self) -> bool:
        """Ask that only sums of gradients are kept, if that can be; whether it can.

        It can if the nodes share their parameters and a gradient leaves nothing behind: then a sum
        without a node that was lost can be computed again.
        """
        plain = self._request.then is None and not self._sim.fleet.task.buffers.numel
        self._request.summed = plain and self._request.shared is not None
        return self._request.summed

    def total(self, ids: list[int]) -> Tensor:
        """The sum of the values of some of its members, [P]; after `keep_sums`."""
        return self._sim.fleet.total(self._request, np.array(ids, dtype=np.int64))

    def rows(self, ids: list[int]) -> Any:
        """The value restricted to some of its members; for collectives, which end when due."""
        return self._sim.fleet.result(self._request, np.array(ids, dtype=np.int64))

    def leave(self, node: int) -> None:
        """A member left: what it computed is lost, and the others are not kept waiting."""
        if node not in self.finish:
            return
        if self._is_done(node) and not self._held:  # it may have been delivered: keep its value
            self.rows([])
        else:
            self._sim.fleet.abandon(self._request, node)
        del self.finish[node]
        self._arm()

    def drop(self, nodes: Iterable[int]) -> None:
        """These members have turned to something else: what they had not finished is lost."""
        unfinished = [n for n in nodes if n in self.finish and not self._is_done(n)]
        for node in unfinished:
            del self.finish[node]
            self._sim.fleet.abandon(self._request, node)
        if unfinished:
            self._arm()

    def _step_seconds(self, number: int) -> dict[int, float]:
        """What one of the steps takes on each member, without waiting."""
        if number not in self._steps:
            ids, first = self._request.ids, self._request.first_steps
            flops = self._sim.workload.flops_per_step
            seconds = self._sim.devices.seconds(flops, ids, first + number)
            self._steps[number] = dict(zip(ids.tolist(), seconds.tolist()))
        times = self._steps[number]
        return {n: times[n] for n in self.finish}

    def _events(self, offset: Mapping[int, float]) -> dict[int, simpy.Event]:
        """Per member an event so many seconds after it is done, which may be before that.

        Members of one time share one event.
        """
        if not self._gates.open:
            later = {n: self._sim.event() for n in self.finish}
            self._later.append((later, offset))
            return later
        at = {n: max(0.0, t + offset[n] - self._sim.now) for n, t in self.finish.items()}
        timers = {delay: self._sim.timeout(delay) for delay in dict.fromkeys(at.values())}
        return {n: timers[delay] for n, delay in at.items()}

    def _is_done(self, node: int) -> bool:
        return self._gates.open and self.finish[node] <= self._sim.now

    def _open(self) -> None:
        """The last gate has opened: what was waited for is known, and with it the finish."""
        members, first = self.members, self._step_seconds(0)
        start = np.array([self.finish[n] - self.useful[n] for n in members])
        delays = self._gates.delays(start, np.array([first[n] for n in members]))
        for node, delay in zip(members, delays.tolist()):
            self.finish[node] += delay
        for later, offset in self._later:
            for node, timer in self._events(offset).items():
                timer.callbacks.append(partial(_pass_on, later[node]))
        self._arm()

    def _arm(self) -> None:
        if self.finish and not self._gates.open:
            return
        last = max(self.finish.values(), default=self._sim.now)
        timer = self._sim.timeout(max(0.0, last - self._sim.now))
        timer.callbacks.append(self._complete)

    def _complete(self, _: simpy.Event) -> None:
        last = max(self.finish.values(), default=0.0)
        if self.triggered or last > self._sim.now * (1 + 1e-12) + 1e-12:
            return  # the timer of a member that left; a sum of floats may miss its time by a hair
        self._sim.unwatch(self)
        ids = np.array(self.members, dtype=np.int64)
        if self._held and len(ids):
            self._sim.fleet.enqueue(self._request)
        self._request.due = True
        value = self._sim.fleet.result(self._request, ids) if len(ids) else None
        if self.single and isinstance(value, Tensor):
            value = value[0]
        self._sim.fleet.release(ids)
        self._sim.progress.finished(self)
        self.succeed(value)


def _pass_on(event: simpy.Event, _: simpy.Event) -> None:
    event.succeed()
