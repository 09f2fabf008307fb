"""Whole runs: where the wall time goes, and what asynchrony costs.

1,024 nodes train GPT d32, and the clock charges just that, on home links with churn.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.assemble import assemble
from experiments.bench.row import Row, row
from experiments.cells import read
from experiments.experiment import Experiment
from optimizers import ADPSGD
from sim.budget import Budget
from sim.churn import AlwaysOn
from sim.compute.device import Device
from sim.profile import CAUSES
from topologies import exponential

NODES = 1024
STRATEGIES = (
    ("diloco", "strategy.inner_steps=20 budget.steps=40", "<= 0.1"),
    ("demo", "budget.steps=10", "<= 0.15"),
    ("all_reduce", "budget.steps=10", "<= 0.1"),
)
SPREAD = 0.25
_STEPS = 15
_OVERHEAD = ("events", "network", "strategy", "records")
"""All but gradients and the evaluation of the model."""


def rows(quick: bool = False) -> list[Row]:
    """The share of everything but gradients, of three strategies; and node-steps per second."""
    nodes = 16 if quick else NODES
    made = []
    for strategy, more, target in STRATEGIES[:1] if quick else STRATEGIES:
        made += _shares(strategy, more.split(), target, nodes)
    return [*made, _asynchronous(nodes, 2 if quick else _STEPS)]


def _shares(strategy: str, more: list[str], target: str, nodes: int) -> list[Row]:
    overrides = [f"strategy={strategy}", *_AT_HOME, *more]
    assemble(read([*overrides, "topology.n=16"]).cells[0].cfg).run()  # imports, and compiled code
    experiment = assemble(read([*overrides, f"topology.n={nodes}"]).cells[0].cfg)
    trace = experiment.run()
    total, name = experiment.profile["total"], f"{strategy}, homes with churn, {nodes:,} nodes"
    made = [
        row(f"{name}: {cause}", "share of wall time", [experiment.profile[cause] / total])
        for cause in CAUSES
    ]
    other = sum(experiment.profile[cause] for cause in _OVERHEAD) / total
    rate = trace.rows("metric")[-1]["node_steps"] / total
    what = f"{name}: {', '.join(_OVERHEAD)} together"
    return [
        *made,
        row(what, "share of wall time", [other], target=target),
        row(f"{name}: whole run", "node-steps/s", [rate]),
    ]


def _asynchronous(nodes: int, steps: int) -> Row:
    """AD-PSGD on unequal devices beside equal ones, whose nodes all finish at the same moments."""
    _rate(0.0, 16, 2)  # imports, and compiled code
    together, apart = _rate(0.0, nodes, steps), _rate(SPREAD, nodes, 2 * steps)
    name = f"AD-PSGD, {nodes:,} nodes, log-normal speeds (sigma {SPREAD})"
    return row(name, "node-steps/s", [apart], [together], "equal speeds", ">= 0.6")


def _rate(spread: float, nodes: int, steps: int) -> float:
    """Node-steps per second until the fastest node has made so many steps."""
    (cell,) = read(["task.width=32", *_LINKS]).cells
    like = assemble(cell.cfg)
    experiment: Experiment = replace(
        like,
        topology=exponential(nodes, bandwidth="10Gbps", latency="1ms"),
        strategy=ADPSGD(lr=0.1),
        device=Device(speed="1TFLOPS", mfu=1.0, spread=spread, jitter=0.0),
        churn=AlwaysOn(),
        budget=Budget(steps=steps),
        evaluations=2,
    )
    trace = experiment.run()
    return trace.rows("metric")[-1]["node_steps"] / experiment.profile["total"]


_LINKS = ["topology=ring"]
_AT_HOME = [
    "topology=homes",
    "churn=homes",
    "task.width=32",
    "device=consumer_mix",
    "budget.seconds=60d",
    "evaluations=2",
]
