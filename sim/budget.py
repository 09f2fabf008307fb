"""Budget: when a run ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.units import Quantity, seconds, size

if TYPE_CHECKING:
    from sim.simulation import Simulation


@dataclass(frozen=True)
class Budget:
    """A run ends when the first of its limits is reached; a limit of None does not count.

    Args:
        seconds: simulated time, such as `"2h"`.
        steps: local steps of the node that has made the most.
        tokens: tokens (or examples) of the workload that all nodes together have processed.
        nbytes: bytes that all nodes together have sent, such as `"4GB"`.

    Time ends a run at once; the others are looked at between rounds, so that a round is whole.
    """

    seconds: Quantity | None = None
    steps: int | None = None
    tokens: float | None = None
    nbytes: Quantity | None = None

    def __post_init__(self) -> None:
        if self.seconds is not None:
            object.__setattr__(
                self, "seconds", seconds(self.seconds, "budget.seconds", positive=True)
            )
        if self.nbytes is not None:
            object.__setattr__(self, "nbytes", size(self.nbytes, "budget.nbytes", positive=True))
        for name in ("steps", "tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"budget.{name}={value!r}: must be > 0, or null for no limit")
        if all(v is None for v in (self.seconds, self.steps, self.tokens, self.nbytes)):
            raise ValueError(
                "budget: the run would never end; set one of budget.seconds, budget.steps, "
                "budget.tokens, budget.nbytes"
            )

    @property
    def horizon(self) -> float:
        """The end of simulated time, s; infinite without a limit on it."""
        return math.inf if self.seconds is None else float(self.seconds)

    def spent(self, sim: Simulation) -> float:
        """The share of the budget that is used up, at the limit that is nearest; 1 ends the run."""
        used = [sim.now / self.horizon]
        if self.steps is not None:
            used.append(int(sim.completed.max()) / self.steps)
        if self.tokens is not None:
            used.append(sim.tokens / self.tokens)
        if self.nbytes is not None:
            used.append(float(sim.network.totals().sent.sum()) / float(self.nbytes))
        return max(used)
