"""Joint: several runs at once, whose gradients are computed at the same moments, side by side.

Each run is a simulation of its own, in a thread of its own, and only one of them moves at a time:
until its fleet flushes. When all runs wait for a flush, what all of them asked for is computed
together on the workers: nodes of different runs are rows of one block, if the runs differ in
hyperparameters and seeds only. A run gets the bits that it would get alone, since what a node gets
does not depend on who is computed beside it.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from sim.compute.crew import Job, do
from sim.compute.fleet import Fleet
from sim.compute.worker import StripErrors, Worker
from sim.compute.workers import Workers

Result = TypeVar("Result")
_Task = tuple[int, Job]
"""The number of a run, and what it asks for."""


class Joint:
    """Runs several programs, each of which makes a fleet and lets it `join`.

    Args:
        workers: threads that compute, for all of them.
    """

    def __init__(self, workers: int) -> None:
        self.workers = Workers(workers)
        self.flushes = self.jobs = 0
        """Flushes of all runs together, and blocks that were computed in them."""
        self._kinds: dict[Fleet, Hashable] = {}
        self._hired: dict[Hashable, list[Worker]] = {}
        self._waiting: dict[int, Sequence[Job]] = {}
        self._broken: dict[int, BaseException] = {}
        self._back = threading.Semaphore(0)
        self._turns: list[threading.Semaphore] = []
        self._own = threading.local()

    def join(self, fleet: Fleet, kind: Hashable = None) -> None:
        """Let a fleet wait for the others before it computes; called in its run's thread.

        Args:
            kind: equal for fleets with the same options whose tasks were constructed alike, which
                compute the same losses whatever they are bound to; None if that is not known.
        """
        fleet.crew.workers, fleet.crew.execute = self.workers, self._execute
        fleet.crew.split_among = 1  # the workers have the parts of all runs
        if kind is not None:
            self._kinds[fleet] = kind
            fleet.crew.hired = self._hired.setdefault(kind, [])

    def run(self, programs: Sequence[Callable[[], Result]]) -> list[Result | BaseException]:
        """What the programs return, or what they raise, in order."""
        results: dict[int, Result | BaseException] = {}
        self._turns = [threading.Semaphore(0) for _ in programs]
        for k, program in enumerate(programs):
            threading.Thread(target=self._live, args=(program, results, k), daemon=True).start()
        alive = list(range(len(programs)))
        while alive:
            for k in alive:
                self._turns[k].release()
                self._back.acquire()
                if isinstance(results.get(k), KeyboardInterrupt):  # meant for all runs
                    raise KeyboardInterrupt
            alive = [k for k in alive if k not in results]
            self._flush()
        return [results[k] for k in range(len(programs))]

    def _live(
        self, program: Callable[[], Result], results: dict[int, Result | BaseException], k: int
    ) -> None:
        """One run, from its first turn to its end."""
        self._own.number = k
        self._turns[k].acquire()
        try:
            results[k] = program()
        except BaseException as error:  # handed to whoever asked for the runs
            results[k] = error
        self._back.release()

    def _execute(self, jobs: Sequence[Job]) -> None:
        """Wait until the others wait too and all jobs are done; called in a run's thread."""
        me = self._own.number
        self._waiting[me] = jobs
        self._back.release()
        self._turns[me].acquire()
        if me in self._broken:
            raise self._broken.pop(me)

    def _flush(self) -> None:
        blocks = self._blocks([(run, job) for run, jobs in self._waiting.items() for job in jobs])
        self._waiting.clear()
        if blocks:
            self.flushes, self.jobs = self.flushes + 1, self.jobs + len(blocks)
        self.workers.map(self._do, blocks)

    def _blocks(self, todo: Sequence[_Task]) -> list[list[_Task]]:
        """What is computed as one block each: as many rows as an engine likes, for all workers."""
        alike: dict[Hashable, list[_Task]] = defaultdict(list)
        for place, (run, job) in enumerate(todo):
            alike[self._likeness(job) or place].append((run, job))
        blocks: list[list[_Task]] = []
        for group in alike.values():
            most = -(-sum(len(job.part) for _, job in group) // self.workers.n)
            room = 0
            for run, job in group:
                if room < len(job.part):
                    room = min(most, job.crew.hired[0].engine.chunk)
                    blocks.append([])
                blocks[-1].append((run, job))
                room -= len(job.part)
        return blocks

    def _likeness(self, job: Job) -> Hashable:
        """Equal for jobs that can be one block; None for one that must be alone."""
        part, fleet = job.part, job.crew.fleet
        kind = self._kinds.get(fleet)
        if kind is None or any(part.requests[k].summed for k in set(part.owners.tolist())):
            return None
        if part.steps[0] != part.steps[-1]:
            return None
        if not job.trains:
            shares = fleet.tables["params"].shared_by_all(part.ids) is not None
            exact = job.crew.hired[0].engine.shares_exactly
            return None if shares and not exact else (kind, False, int(part.steps[0]))
        shapes = tuple((name, fleet.tables[name].default.shape) for name in fleet.carried)
        return kind, type(fleet.local), shapes, int(part.steps[0])

    def _do(self, worker: int, block: list[_Task]) -> None:
        runs, jobs = zip(*block)
        try:
            do(jobs, worker)
        except KeyboardInterrupt:  # meant for all runs
            raise
        except StripErrors as found:
            self._broken |= {runs[k]: error for k, error in found.errors.items()}
        except BaseException as error:  # raised in the thread of its run
            if len(block) == 1:
                self._broken[runs[0]] = error
                return
            for one in block:  # whose error it was; nothing of the block was kept
                self._do(worker, [one])
