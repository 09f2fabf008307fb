"""Joint: several runs at once, whose gradients are computed at the same moments, side by side.

Each run is a simulation of its own, in a thread of its own, and only one of them moves at a time:
until its fleet flushes. When all runs wait for a flush, what all of them asked for is computed
together on the workers. A run gets the bits that it would get alone, since what a node gets does
not depend on who is computed beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from sim.compute.crew import Job
from sim.compute.fleet import Fleet
from sim.compute.workers import Workers

Result = TypeVar("Result")


class Joint:
    """Runs several programs, each of which makes a fleet and lets it `join`.

    Args:
        workers: threads that compute, for all of them.
    """

    def __init__(self, workers: int) -> None:
        self.workers = Workers(workers)
        self.flushes = self.jobs = 0
        """Flushes of all runs together, and parts that were computed in them."""
        self._waiting: dict[int, Sequence[Job]] = {}
        self._broken: dict[int, BaseException] = {}
        self._back = threading.Semaphore(0)
        self._turns: list[threading.Semaphore] = []
        self._own = threading.local()

    def join(self, fleet: Fleet) -> None:
        """Let a fleet wait for the others before it computes; called in its run's thread."""
        fleet.crew.workers, fleet.crew.execute = self.workers, self._execute
        fleet.crew.split_among = 1  # the workers have the parts of all runs

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
        todo = [(run, job) for run, jobs in self._waiting.items() for job in jobs]
        self._waiting.clear()
        if todo:
            self.flushes, self.jobs = self.flushes + 1, self.jobs + len(todo)
        self.workers.map(self._do, todo)

    def _do(self, worker: int, job: tuple[int, Job]) -> None:
        run, do = job
        try:
            do(worker)
        except KeyboardInterrupt:  # meant for all runs
            raise
        except BaseException as error:  # raised in the thread of its run
            self._broken[run] = error
