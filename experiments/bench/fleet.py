"""The fleet: thousands of real models, beside a loop over them.

- `experiments.bench.fleets.speed`: node-steps per second in one thread, on all cores and with
  shared rows; over numbers of nodes; on a GPU if there is one (`gpu`).
- `experiments.bench.fleets.memory`: bytes per replica.
- `experiments.bench.fleets.whole_runs`: the share of everything but gradients; asynchrony.
- `experiments.bench.fleets.tune`: the runs of a tuning study side by side.
"""

from __future__ import annotations

import torch

from experiments.bench.fleets import gpu, memory, speed, tune, whole_runs
from experiments.bench.row import Row


def rows(quick: bool = False) -> list[Row]:
    """All of them; `quick` makes everything tiny: it shows that they run, not how fast."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = speed.rows(quick)
        made += memory.rows((8, 16) if quick else memory.NODES)
        made += whole_runs.rows(quick)
        made += tune.rows(quick)
        return made + gpu.rows(quick)
    finally:
        torch.set_num_threads(threads)
