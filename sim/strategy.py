"""Strategy (interface): a distributed training algorithm, as the simulation sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sim.compute.layout import Layout
from sim.compute.local_optimizer import LocalOptimizer

if TYPE_CHECKING:
    from sim.payload import Compressor
    from sim.simulation import Simulation

Shared = dict[str, Any]
"""Named tensors, and states of outer optimizers, that every member of a run knows."""


@dataclass(frozen=True)
class NodeState:
    """What the simulation keeps of each node, in rows of parameters; `sim.compute.memory` adds up.

    Args:
        params: nodes have parameters of their own; False: all share one row.
        local: nodes train, and have the inner optimizer's state.
        named: further rows, by name.
        sends: what encodes a node's rows, if anything does: a node has its state, and a payload.
        results: rows that the strategy holds beside these at the same time, such as gradients of
            all nodes, and what it makes of them.
        gathers: the payloads of all nodes are wanted, not only their mean.
    """

    params: bool = True
    local: bool = True
    named: tuple[str, ...] = ()
    sends: Compressor | None = None
    results: int = 0
    gathers: bool = False


class Strategy(ABC):
    """What every strategy provides; `optimizers.strategy` has the two forms to write one in."""

    @property
    @abstractmethod
    def passes(self) -> float:
        """Parameter-sized reads and writes of memory each time a node's parameters are set.

        The device charges them as time: bytes touched / memory bandwidth. An outer SGD step reads
        parameters and update and writes parameters: 3.
        """

    def bind(self, layout: Layout) -> Strategy:
        """The same with its optimizers bound to a layout; itself if that changes none of them."""
        return _bound(self, layout)

    def state_rows(self, local: LocalOptimizer) -> float:
        """Parameter-sized rows that the device keeps beside the parameters: optimizer states.

        They decide whether the model fits its memory. By default those of the inner optimizer;
        what is read once a round, such as DiLoCo's outer copies, may lie in the host's memory, as
        in OpenDiLoCo and PRIME.
        """
        return local.state_rows

    @property
    def node_state(self) -> NodeState:
        """What the simulation keeps of each node: it decides how many nodes fit this machine.

        By default parameters and inner state of each node's own, which is the most that local
        steps lead to.
        """
        return NodeState()

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

    def metrics(self, sim: Simulation) -> dict[str, float]:
        """What is recorded with each evaluation beside the task's metrics; nothing by default.

        Where nodes differ, how far apart they are: `{"spread": spread(sim)}`, see `sim.rows`.
        """
        return {}


def _bound(held: Any, layout: Layout) -> Any:
    """The same with its optimizers bound, also those of a rule that it holds."""
    if isinstance(held, LocalOptimizer):
        return held.bind(layout)
    if not is_dataclass(held) or isinstance(held, type):
        return held
    parts = {field.name: getattr(held, field.name) for field in fields(held)}
    bound = {name: _bound(part, layout) for name, part in parts.items()}
    changed = {name: part for name, part in bound.items() if part is not parts[name]}
    return replace(held, **changed) if changed else held
