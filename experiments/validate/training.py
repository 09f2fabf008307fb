"""A measured training cell as a whole run: strategy, device, workload, rounds and network together.

Timing only: the strategy runs on shapes, so that only its clock counts. The parameters travel as
one vector, as strategies send them; the time of a local step is the measured one, the optimizer's
included, and outer steps are free.
"""

from __future__ import annotations

import networkx as nx

from experiments.experiment import Experiment
from experiments.tasks.quadratic import Quadratic
from optimizers import DiLoCo
from sim.budget import Budget
from sim.compute.device import Device
from sim.compute.layout import Layout
from sim.compute.options import ComputeOptions
from sim.workload import Workload

_ROUNDS = 3
_FREE = 1e18
"""Memory bandwidth in bytes/s at which touching memory takes no time."""


def utilisation(graph: nx.DiGraph, params: int, steps: int, inner: float) -> float:
    """Share of a few rounds that a node computes, under DiLoCo (and local SGD: the same clock).

    Args:
        graph: of the nodes.
        params: float32 values of the model.
        steps: local steps of a round, `inner` seconds each.
    """
    workload = Workload("measured", Layout.flat(params), 1.0, 1, 4)
    run = Experiment(
        Quadratic(),
        graph,
        DiLoCo(inner_steps=steps),
        device=Device(speed=1.0 / inner, mfu=1.0, jitter=0.0, memory_bandwidth=_FREE),
        workload=workload,
        budget=Budget(steps=_ROUNDS * steps),
        compute=ComputeOptions(values=False),
        evaluations=1,
    )
    ends = run.run()["collective"]["end"]
    assert len(ends) == _ROUNDS
    return _ROUNDS * steps * inner / float(ends.max())
