"""Crew: the workers of a fleet, an engine each, and how a flush is divided among them.

Legend: n nodes of the requests of a flush.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from sim.compute.choice import Choice, build, choose
from sim.compute.parts import Part, Worker
from sim.compute.request import Request
from sim.compute.workers import Workers

if TYPE_CHECKING:
    from sim.compute.fleet import Fleet

_SUMS = 16
"""Parts of a sum over nodes, at least: their number must not depend on that of the workers."""

Job = Callable[[int], None]
"""Something for a worker, whose number it is told."""


class Crew:
    """Computes what a fleet's requests ask for.

    Args:
        fleet: whose requests.
        workers: threads that compute.
    """

    def __init__(self, fleet: Fleet, workers: Workers) -> None:
        self._fleet, self.workers = fleet, workers
        self.execute: Callable[[Sequence[Job]], None] = self._execute
        """Runs the parts of a flush; whoever runs several fleets together replaces it."""
        self.split_among = workers.n
        """Parts that a flush is cut into at least, if it has as many nodes."""
        self.engine: Choice | None = None
        """What computes gradients and why, once something was computed."""
        self.flushed_rows = 0
        """Node-steps that were computed."""
        self._hired: list[Worker] = []

    @property
    def choice(self) -> Choice:
        """The engine, and why it was chosen; every process takes that of the first one."""
        fleet = self._fleet
        return fleet.processes.from_first(lambda: choose(fleet.task, fleet.initial, fleet.options))

    def run(self, requests: Sequence[Request], trains: bool) -> None:
        """Execute requests, all of gradients or all of local steps."""
        fleet, whole = self._fleet, Part.of(requests)
        self.flushed_rows += int(whole.steps.sum())
        with fleet.profile("gradients"):
            self._hire()
            parts = self._parts(whole, trains)
            with fleet.shard.working():
                self.execute([partial(self._job, part, trains) for part in parts])
            if fleet.shard.exchanges:
                fleet.shard.complete(fleet, requests)
            busy = max(1, min(len(parts), self.workers.n))
        for worker in self._hired:
            fleet.profile.move("gradients", "strategy", worker.strategy_seconds / busy)
            worker.strategy_seconds = 0.0

    def _hire(self) -> None:
        """Give every worker an engine, once."""
        if not self._hired:
            self.engine = self.choice
            task, options, n = self._fleet.task, self._fleet.options, self.workers.n
            engines = [build(self.engine.name, task, options) for _ in range(n)]
            self._hired = [Worker(self._fleet, engine) for engine in engines]

    def _job(self, part: Part, trains: bool, worker: int) -> None:
        it = self._hired[worker]
        it.train(part) if trains else it.gradients(part)

    def _execute(self, jobs: Sequence[Job]) -> None:
        self.workers.map(lambda worker, job: job(worker), jobs)

    def _parts(self, whole: Part, trains: bool) -> list[Part]:
        """What the workers get: all have something, and blocks of rows stay in cache."""
        fleet = self._fleet
        own = whole[fleet.shard.owns(whole.ids)]
        if not len(own):
            return []
        if any(request.summed for request in whole.requests):
            # Sums are rounded part by part, so neither workers nor processes may decide.
            return own.cut_at(power_of_two(len(whole) / _SUMS, 1, fleet.block))
        limit = self._hired[0].engine.chunk if trains else fleet.block
        return own.cut(min(limit, -(-len(own) // self.split_among)))


def power_of_two(x: float, least: int, most: int) -> int:
    """The largest power of two that is at most x, between two others."""
    return min(most, max(least, 1 << max(0, int(math.log2(max(1.0, x))))))
