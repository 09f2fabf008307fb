"""Crew: the workers of a fleet, an engine each, and how a flush is divided among them.

Legend: n nodes of the requests of a flush.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.compute.choice import Choice, build, choose
from sim.compute.parts import Part, strips
from sim.compute.request import Request
from sim.compute.worker import Worker
from sim.compute.workers import Workers

if TYPE_CHECKING:
    from sim.compute.fleet import Fleet

_SUMS = 16
"""Parts of a sum over nodes, at least: their number must not depend on that of the workers."""


@dataclass(frozen=True)
class Job:
    """A part of a flush, for one worker.

    Attributes:
        trains: local steps, or else gradients.
    """

    crew: Crew
    part: Part
    trains: bool


def do(jobs: Sequence[Job], worker: int) -> None:
    """Compute jobs as one block of rows, by the worker of this number of the first one's crew."""
    block = strips([(job.crew.fleet, job.part) for job in jobs])
    its = jobs[0].crew.hired[worker]
    its.train(block) if jobs[0].trains else its.gradients(block)


class Crew:
    """Computes what a fleet's requests ask for.

    Args:
        fleet: whose requests.
        workers: threads that compute.
    """

    def __init__(self, fleet: Fleet, workers: Workers) -> None:
        self.fleet, self.workers = fleet, workers
        self.execute: Callable[[Sequence[Job]], None] = self._execute
        """Runs the parts of a flush; whoever runs several fleets together replaces it."""
        self.split_among = workers.n
        """Parts that a flush is cut into at least, if it has as many nodes."""
        self.engine: Choice | None = None
        """What computes gradients and why, once something was computed."""
        self.flushed_rows = 0
        """Node-steps that were computed."""
        self.hired: list[Worker] = []
        """One for each thread, once something was computed; crews of like fleets may share them."""

    @property
    def choice(self) -> Choice:
        """The engine, and why it was chosen; every process takes that of the first one."""
        fleet = self.fleet
        return fleet.processes.from_first(lambda: choose(fleet.task, fleet.initial, fleet.options))

    def run(self, requests: Sequence[Request], trains: bool) -> None:
        """Execute requests, all of gradients or all of local steps."""
        fleet, whole = self.fleet, Part.of(requests)
        self.flushed_rows += int(whole.steps.sum())
        with fleet.profile("gradients"):
            self._hire()
            parts = self._parts(whole, trains)
            with fleet.shard.working():
                self.execute([Job(self, part, trains) for part in parts])
            if fleet.shard.exchanges:
                fleet.shard.complete(fleet, requests)
            busy = max(1, min(len(parts), self.workers.n))
        for worker in self.hired:
            seconds = worker.strategy_seconds.pop(fleet, 0.0)
            fleet.profile.move("gradients", "strategy", seconds / busy)

    def _hire(self) -> None:
        """Give every thread a worker, once."""
        if self.engine is None:
            self.engine = self.choice
        if not self.hired:
            task, options, n = self.fleet.task, self.fleet.options, self.workers.n
            name, multiple = self.engine.name, self.engine.multiple
            engines = [build(name, task, options, multiple) for _ in range(n)]
            self.hired += [Worker(engine) for engine in engines]

    def _execute(self, jobs: Sequence[Job]) -> None:
        self.workers.map(lambda worker, job: do([job], worker), jobs)

    def _parts(self, whole: Part, trains: bool) -> list[Part]:
        """What the workers get: all have something, and blocks of rows stay in cache."""
        fleet = self.fleet
        own = whole[fleet.shard.owns(whole.ids)]
        if not len(own):
            return []
        if any(request.summed for request in whole.requests):
            # Sums are rounded part by part, so neither workers nor processes may decide.
            return own.cut_at(power_of_two(len(whole) / _SUMS, 1, fleet.block))
        limit = self.hired[0].engine.chunk if trains else fleet.block
        pieces = max(self.split_among, -(-len(own) // limit))
        return own.cut(-(-len(own) // pieces))


def power_of_two(x: float, least: int, most: int) -> int:
    """The largest power of two that is at most x, between two others."""
    return min(most, max(least, 1 << max(0, int(math.log2(max(1.0, x))))))
