"""Progress: what the nodes have done so far, its records, and when the model is evaluated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import simpy

if TYPE_CHECKING:
    from sim.compute.work import Work
    from sim.simulation import Simulation


class Progress:
    """Counts finished work, evaluates the consensus model now and then, and ends the run.

    Args:
        sim: the run.
        evaluations: how many times at most the model is evaluated during the run.
    """

    def __init__(self, sim: Simulation, evaluations: int) -> None:
        self._sim = sim
        self.completed = np.zeros(sim.fleet.n_nodes, dtype=np.int64)
        """Local steps that each node has finished."""
        self.busy = np.zeros(sim.fleet.n_nodes)
        """Seconds that each node has spent on gradients of finished work."""
        self._evaluations, self._next_evaluation = evaluations, 0.0

    def finished(self, work: Work) -> None:
        """A computation has come to its end; called by `Work`."""
        ids = np.array(work.members, dtype=np.int64)
        self.completed[ids] += work.steps
        useful = np.array([work.useful[i] for i in work.members])
        self.busy[ids] += useful
        self._sim.record(
            "compute",
            start=work.started,
            end=self._sim.now,
            node=work.members[0] if len(ids) == 1 else -1,
            n=len(ids),
            steps=work.steps,
            node_seconds=float(useful.sum()),
            loss=work.loss,
            members=tuple(work.members),
            ends=tuple(work.finish.values()),
        )
        if work.single:  # a node program has no rounds; look once it has used what it computed
            work.callbacks.append(lambda _: self.boundary())

    def boundary(self) -> None:
        """A moment at which the consensus is well defined: evaluate if due, end if spent."""
        if self._sim.spent:
            self.end()  # whoever runs the simulation evaluates the end
        elif self._sim.budget.spent(self._sim) >= self._next_evaluation:
            self.evaluate()

    def end(self, _: simpy.Event | None = None) -> None:
        """The budget is used up."""
        if not self._sim.done.triggered:
            self._sim.done.succeed()

    def evaluate(self) -> None:
        """Record the metrics of the consensus model at this moment."""
        sim, most = self._sim, self._evaluations
        spent = sim.budget.spent(sim)
        self._next_evaluation = (math.floor(spent * most + 1e-9) + 1) / most
        metrics: dict[str, float] = {}
        if not sim.fleet.is_meta:
            with sim.profile("evaluation"):
                metrics = self._metrics()
        totals, online = sim.network.totals(), sim.online_seconds()
        sim.record(
            "metric",
            time=sim.now,
            step=int(self.completed.max()),
            node_steps=int(self.completed.sum()),
            tokens=sim.tokens,
            nbytes=float(totals.sent.sum()),
            nbytes_per_node=float(totals.sent.mean()),
            wasted=float(totals.wasted.sum()),
            utilization=float(self.busy.sum() / online.sum()) if online.sum() > 0 else 0.0,
            online=len(sim.online),
            left=sim.left,
            joined=sim.joined,
            rounds=sim.rounds,
            empty_exchanges=sim.empty_exchanges,
            spent=spent,
            **metrics,
        )

    def _metrics(self) -> dict[str, float]:
        sim, task = self._sim, self._sim.fleet.task
        consensus = sim.strategy.consensus(sim)
        found = sim.strategy.metrics(sim)
        if not task.buffers.numel:
            return task.evaluate(consensus) | found
        ids = np.array(sorted(sim.online) or range(sim.fleet.n_nodes), dtype=np.int64)
        return task.evaluate(consensus, sim.fleet.mean_buffers(ids)) | found
