"""Every strategy of `conf/strategy`: node-steps per second, bytes, and the share of its arithmetic.

Whole runs on home links without churn, of a small MLP on digits and a small GPT. The arithmetic of
a strategy is what is neither gradients nor events: momentum, codecs, means, mixing. It is given as
a share of the wall time of gradients, both in the same run.
"""

from __future__ import annotations

from omegaconf import OmegaConf

from experiments.algorithms import choices
from experiments.assemble import assemble
from experiments.bench.row import Row, row
from experiments.cells import read

NODES = (64, 256, 1024)
TASKS = {"digits MLP": ["task=digits", "task.width=32"], "GPT d32": ["task.width=32"]}
SHARE = {"GPT d32": "<= 0.15"}
"""Goal of the share where gradients are not next to nothing."""
HEAVY = frozenset({"power_sgd", "power_sgd_half", "muloco", "dilocox"})
"""Strategies of which the goal is not asked: factorisations are their nature."""
FEW = frozenset({"single", "all_reduce_subset", "diloco_subset"})
"""Strategies in which few nodes compute: more steps, else what happens once is what is measured."""
_STEPS = 4
_STEPS_OF_FEW = 64
_REPEATS = {64: 3, 256: 3}
"""Runs of which the median counts, by nodes: short ones vary more."""
_LINKS = [
    "topology=homes",
    "overlay=random_regular",
    "device.speed=100MFLOPS",  # steps of the small GPT take as long as transfers: they do overlap
    "device.memory_bandwidth=10GBps",
    "device.memory=24GB",
    "evaluations=1",
    "budget.seconds=1000d",
]


def rows(quick: bool = False) -> list[Row]:
    """Three rows for each strategy, task and number of nodes."""
    tasks = dict(list(TASKS.items())[:1]) if quick else TASKS
    made = []
    for strategy in choices():
        for task in tasks:
            _run(strategy, task, 4)  # imports, compiled code, the choice of an engine
            for nodes in (8,) if quick else NODES:
                made += _measured(strategy, task, nodes)
    return made


def _measured(strategy: str, task: str, nodes: int) -> list[Row]:
    runs = [_run(strategy, task, nodes) for _ in range(_REPEATS.get(nodes, 1))]
    rates, nbytes, shares = (list(column) for column in zip(*runs, strict=True))
    name, target = f"{strategy}, {task}, {nodes:,} nodes", SHARE.get(task)
    return [
        row(name, "node-steps/s", rates),
        row(f"{name}: sent", "bytes per node-step", nbytes),
        row(
            f"{name}: arithmetic",
            "share of gradient time",
            shares,
            target=None if strategy in HEAVY else target,
        ),
    ]


def _run(strategy: str, task: str, nodes: int) -> tuple[float, float, float]:
    """Node-steps per second, bytes per node-step, seconds of arithmetic per second of gradients."""
    line = [f"strategy={strategy}", *TASKS[task], *_LINKS, f"topology.n={nodes}"]
    cfg = read(line).cells[0].cfg
    if "inner_steps" in cfg.strategy:
        cfg.strategy.inner_steps = _STEPS
    if "warmup" in cfg.strategy:
        cfg.strategy.warmup = 1
    steps = _STEPS_OF_FEW if strategy in FEW else _STEPS
    OmegaConf.update(cfg, "budget.steps", 2 * steps if "inner_steps" in cfg.strategy else steps)
    experiment = assemble(cfg)
    last, seconds = experiment.run().rows("metric")[-1], experiment.profile
    done = max(1, last["node_steps"])
    rate, share = done / seconds["total"], seconds["strategy"] / max(1e-9, seconds["gradients"])
    return rate, last["nbytes"] / done, share
