"""Memory per replica: how the peak of a process grows with the number of nodes."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from experiments.bench.row import Row, row
from experiments.experiment import Experiment
from experiments.tasks.markov import MarkovLanguage
from optimizers import DiLoCo
from sim.budget import Budget
from sim.payload import Dense
from topologies import homes

NODES = (256, 1024)
_ROWS = 3
"""Parameters and the two moments of AdamW, of each node."""


def rows(nodes: tuple[int, int] = NODES) -> list[Row]:
    """Bytes per further replica of a DiLoCo run, beside those of the rows that it needs."""
    few, many = nodes
    _peak(16)  # where code is compiled and an engine chosen, which takes memory of its own
    grown = (_peak(many) - _peak(few)) / (many - few)
    needed = 4.0 * _ROWS * MarkovLanguage(width=32).layout.numel
    name = f"GPT d32, DiLoCo, {few:,} to {many:,} nodes: memory per further replica"
    return [row(name, "kB", [grown / 1e3], [needed / 1e3], "its rows", "<= 1.2")]


def _peak(nodes: int) -> float:
    """Peak bytes of a process that runs two rounds of so many nodes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_run, nodes).result()


def _run(nodes: int) -> float:
    strategy = DiLoCo(inner_steps=2, compressor=Dense("bfloat16"))
    budget = Budget(steps=4)
    Experiment(MarkovLanguage(width=32), homes(nodes), strategy, budget=budget).run()
    return _peak_nbytes()


def _peak_nbytes() -> float:
    """Most bytes that were resident; of Linux's two accounts the one that is this process's own."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return 1024.0 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) * (1.0 if sys.platform == "darwin" else 1024.0)
