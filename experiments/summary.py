"""The numbers that stand for a run in a table: what was reached, when, and at what cost."""

from __future__ import annotations

import math
from typing import Any

from experiments.closed_forms import Exchange, link_time
from experiments.experiment import Experiment
from sim.compute.layout import Layout
from sim.payload import Compressor
from sim.simulation import Simulation
from sim.trace import Trace


def totals(experiment: Experiment, sim: Simulation, target: float | None) -> dict[str, Any]:
    """Totals of a run that has ended; seconds, bytes, nats or whatever unit the loss has.

    Args:
        target: loss whose first time is wanted.
    """
    last = sim.trace.rows("metric")[-1]
    floor, loss = experiment.task.floor, last.get("loss")
    return {
        **last,
        "workload": sim.workload.name,
        "floor": floor,
        "distance": None if floor is None or loss is None else loss - floor,
        "time_to_target": None if target is None else time_to(sim.trace, target),
        "link_seconds_per_step": _link_seconds(sim.trace) / max(1, last["step"]),
        **_exchange(experiment, sim),
    }


def time_to(trace: Trace, target: float) -> float | None:
    """Simulated time of the first evaluation whose loss is at most `target`; None if there is none.

    >>> trace = Trace()
    >>> for time, loss in ((0.0, 3.0), (5.0, 2.0), (9.0, 1.0)):
    ...     trace.record("metric", time=time, loss=loss)
    >>> time_to(trace, 2.5)
    5.0
    """
    reached = [r["time"] for r in trace.rows("metric") if r.get("loss", math.inf) <= target]
    return reached[0] if reached else None


def _link_seconds(trace: Trace) -> float:
    return sum(record["link_seconds"] for record in trace.rows("collective"))


def _exchange(experiment: Experiment, sim: Simulation) -> dict[str, Any]:
    """What the method's exchange is, by the shapes that are trained and those that are charged."""
    exchange = Exchange.of(experiment.strategy)
    if exchange is None or exchange.codec.sized_by_data:
        return {}
    time = link_time(experiment.topology, sim.workload, exchange, experiment.network)
    kept = {
        "kept_trained": _kept(exchange.codec, experiment.task.layout),
        "kept_charged": _kept(exchange.codec, sim.workload.layout),
    }
    if time is None:
        return kept
    return kept | {
        "closed_form_per_step": time.closed_form / exchange.steps,
        "simulated_alone_per_step": time.simulated / exchange.steps,
        "deviation": time.deviation,
    }


def _kept(codec: Compressor, layout: Layout) -> float:
    return float(codec.template(layout).kept)
