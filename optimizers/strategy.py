"""The two forms of a strategy: a program of a group, and a program of a node.

| | group program | node program |
| --- | --- | --- |
| write | `run(sim)`, one process | `node(node)`, one process per online node |
| for | rounds: all-reduce, DiLoCo, DeMo, D-PSGD | messages: gossip, parameter servers |
| churn | excluded by collectives, re-formed at rounds | the process ends and begins again |

If nodes hold the same parameters after each round, write a group program.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from sim.compute.work import Program
from sim.node import Node
from sim.rows import mean_params
from sim.simulation import Simulation
from sim.strategy import NodeState, Shared, Strategy

__all__ = ["GroupStrategy", "NodeState", "NodeStrategy", "Program", "Shared", "Strategy"]


class GroupStrategy(Strategy):
    """A strategy whose loop is written once, for all nodes of a round."""

    @abstractmethod
    def run(self, sim: Simulation) -> Program:
        """The loop; each turn begins with `group = yield sim.coordinator.round()`."""

    def start(self, sim: Simulation) -> None:
        """Create the one process."""
        sim.program(self.run(sim))

    def admit(self, sim: Simulation, node: int) -> None:
        """A joiner is a member of the rounds that follow; nothing else is to be done."""


class NodeStrategy(Strategy):
    """A strategy whose loop is written for one node, which sends and receives messages."""

    @abstractmethod
    def node(self, node: Node) -> Program:
        """The loop of a node; it ends when the node leaves."""

    def init(self, sim: Simulation) -> Shared:
        """A joiner downloads a node's parameters."""
        return {"params": sim.initial_params()}

    def start(self, sim: Simulation) -> None:
        """Nothing: every node is started when it is admitted."""

    def admit(self, sim: Simulation, node: int) -> None:
        """Start the node's process."""
        member = sim.node(node)
        member.process(self.node(member))

    def consensus(self, sim: Simulation) -> Tensor:
        """The mean of the parameters of those online."""
        return mean_params(sim)
