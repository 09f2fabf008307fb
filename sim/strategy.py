"""Strategy (interface): a distributed training algorithm, as the simulation sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sim.compute.local_optimizer import LocalOptimizer

if TYPE_CHECKING:
    from sim.simulation import Simulation

Shared = dict[str, Any]
"""Named tensors, and states of outer optimizers, that every member of a run knows."""


class Strategy(ABC):
    """What every strategy provides; `optimizers.strategy` has the two forms to write one in."""

    @property
    @abstractmethod
    def passes(self) -> float:
        """Parameter-sized reads and writes of memory each time a node's parameters are set.

        The device charges them as time: bytes touched / memory bandwidth. An outer SGD step reads
        parameters and update and writes parameters: 3.
        """

    def state_rows(self, local: LocalOptimizer) -> float:
        """Parameter-sized rows that the device keeps beside the parameters: optimizer states.

        They decide whether the model fits its memory. By default those of the inner optimizer;
        what is read once a round, such as DiLoCo's outer copies, may lie in the host's memory, as
        in OpenDiLoCo and PRIME.
        """
        return local.state_rows

    @abstractmethod
    def init(self, sim: Simulation) -> Shared:
        """What every member knows and a joiner downloads: parameters, outer optimizer state."""

    @abstractmethod
    def start(self, sim: Simulation) -> None:
        """Create the processes of the strategy."""

    @abstractmethod
    def admit(self, sim: Simulation, node: int) -> None:
        """A node has the shared state and takes part from now on."""

    @abstractmethod
    def consensus(self, sim: Simulation) -> Tensor:
        """The model to evaluate, [P]."""
