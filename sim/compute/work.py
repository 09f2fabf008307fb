"""Work: the event of a computation on one node or on a group.

It fires when the last living member is done. Its value is computed then, together with all else
that is queued, and never seen before.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import simpy
import torch
from torch import Tensor

from sim.compute.fleet import Request

if TYPE_CHECKING:
    from sim.payload import Payload
    from sim.simulation import Simulation


Program = Generator[simpy.Event, Any, Any]
"""What a process runs: it yields events and is sent their values."""


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
    """

    def __init__(
        self,
        sim: Simulation,
        request: Request,
        finish: np.ndarray,
        useful: np.ndarray,
        *,
        single: bool = False,
    ) -> None:
        super().__init__(sim)
        self._sim, self._request, self.single = sim, request, single
        self.finish = dict(zip(request.ids.tolist(), finish.tolist()))
        """When each member is done, s; a member that left is no longer in it."""
        self.started = sim.now
        self.steps = request.steps
        self.useful = dict(zip(request.ids.tolist(), useful.tolist()))
        """Seconds of that which each node spends on gradients."""
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

    def ready(self, delay: Mapping[int, float]) -> dict[int, simpy.Event]:
        """Per member an event `delay[node]` seconds after its own part is done.

        The delay is what the member does before it can send, such as encoding.
        """
        now = self._sim.now
        return {n: self._sim.timeout(max(0.0, t + delay[n] - now)) for n, t in self.finish.items()}

    @property
    def function(self) -> Callable[[Any, Tensor], Tensor | Payload] | None:
        """What `then` applies to the gradients; None if nothing."""
        return self._request.then

    def then(self, fn: Callable[[Any, Tensor], Tensor | Payload]) -> Work:
        """Apply `fn(rows, block)` to the gradients, in blocks, inside the flush.

        `rows` gives the same nodes' named rows and may write them. Pass a bound method rather
        than a lambda: blocks of different nodes are batched when their functions are equal. Other
        rows are read when the flush runs, so let nobody else write those that `fn` reads.
        """
        assert not self._request.executed, "then() comes before the work is computed"
        self._request.then = fn
        return self

    def rows(self, ids: list[int]) -> Any:
        """The value restricted to some of its members; for collectives, which end when due."""
        return self._sim.fleet.result(self._request, np.array(ids, dtype=np.int64))

    def leave(self, node: int) -> None:
        """A member left: what it computed is lost, and the others are not kept waiting."""
        due = self.finish.pop(node, None)
        if due is None:
            return
        if due <= self._sim.now:  # it may have been delivered already: keep its value
            self.rows([])
        else:
            self._sim.fleet.abandon(self._request, node)
        self._arm()

    def drop(self, nodes: Iterable[int]) -> None:
        """These members have turned to something else: what they had not finished is lost."""
        unfinished = [n for n in nodes if self.finish.get(n, 0.0) > self._sim.now]
        for node in unfinished:
            del self.finish[node]
            self._sim.fleet.abandon(self._request, node)
        if unfinished:
            self._arm()

    def _arm(self) -> None:
        last = max(self.finish.values(), default=self._sim.now)
        timer = self._sim.timeout(max(0.0, last - self._sim.now))
        timer.callbacks.append(self._complete)

    def _complete(self, _: simpy.Event) -> None:
        last = max(self.finish.values(), default=0.0)
        if self.triggered or last > self._sim.now * (1 + 1e-12) + 1e-12:
            return  # the timer of a member that left; a sum of floats may miss its time by a hair
        self._sim.unwatch(self)
        ids = np.array(self.members, dtype=np.int64)
        value = self._sim.fleet.result(self._request, ids) if len(ids) else None
        if self.single and isinstance(value, Tensor):
            value = value[0]
        self._sim.fleet.release(ids)
        self._sim.finished(self)
        self.succeed(value)
