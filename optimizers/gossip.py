"""Gossip: D-PSGD in rounds (Lian et al., 1705.09056), AD-PSGD without (Lian et al., 1710.06952)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from optimizers.strategy import GroupStrategy, NodeState, NodeStrategy, Program, Shared
from sim.compute.local_optimizer import LocalOptimizer
from sim.node import Node
from sim.payload import Dense
from sim.rows import mean_params
from sim.simulation import Simulation
from topologies.weights import metropolis_weights


@dataclass(frozen=True)
class DPSGD(GroupStrategy):
    """Decentralised parallel SGD, synchronous: average with the neighbours, step on own gradient.

        x_i <- sum_j W_ij x_j - lr grad_i(x_i)        order="combine_while_adapt" (Algorithm 1)
        x_i <- sum_j W_ij (x_j - lr grad_j(x_j))      order="adapt_then_combine"

    The first computes the gradient while the parameters travel; the second one after the other.
    W has Metropolis weights on the overlay; the weight of a lost message goes to the diagonal.

    Args:
        lr: learning rate.
        order: which of the two.
    """

    lr: float = 0.1
    order: str = "combine_while_adapt"

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"strategy.lr={self.lr}: must be > 0")
        if self.order not in ("combine_while_adapt", "adapt_then_combine"):
            raise ValueError(
                f"strategy.order={self.order!r}: must be 'combine_while_adapt' or "
                "'adapt_then_combine'"
            )

    @property
    def passes(self) -> float:
        return 6.0 if self.order == "combine_while_adapt" else 3.0  # per write: there are two then

    def state_rows(self, local: LocalOptimizer) -> float:
        return 1.0  # what arrives from the neighbours

    @property
    def node_state(self) -> NodeState:
        # Gradient, mixed rows and both of those who stayed, of this round and the last one.
        return NodeState(local=False, sends=Dense(), results=8)

    def init(self, sim: Simulation) -> Shared:
        return {"params": sim.initial_params()}

    def run(self, sim: Simulation) -> Program:
        weights = metropolis_weights(sim.overlay)
        while True:
            group = yield sim.coordinator.round()
            if self.order == "combine_while_adapt":
                grad, mixed = group.grad(), group.neighbor_all_reduce(group.params, weights)
                yield grad & mixed
                here = group.online
                if len(here):
                    x = mixed.value[group.positions(here.ids)]
                    g = grad.value[sim.group(grad.members).positions(here.ids)]
                    here.params = here.rows(lambda x, g: x - self.lr * g, x, g)
            else:
                grad = group.grad()
                yield grad
                here = group.online
                if len(here):
                    g = grad.value[sim.group(grad.members).positions(here.ids)]
                    here.update(lambda x, g: x - self.lr * g, "params", g)
                    mixed = yield here.neighbor_all_reduce(here.params, weights)
                    stayed = here.online
                    stayed.params = mixed[here.positions(stayed.ids)]

    def consensus(self, sim: Simulation) -> Tensor:
        """The mean of the parameters of those online."""
        return mean_params(sim)


@dataclass(frozen=True)
class ADPSGD(NodeStrategy):
    """Asynchronous gossip, push form: no node waits for another.

    The gradient is taken at the parameters of when it began and applied to those of now; then
    the parameters are sent to one random neighbour, which averages them with its own. The paper
    averages both ends at once; here only the receiver does, so the mean of the fleet is not kept
    by an exchange but drifts towards nodes that are heard by many.

    Args:
        lr: learning rate.
    """

    lr: float = 0.1

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"strategy.lr={self.lr}: must be > 0")

    @property
    def passes(self) -> float:
        return 3.0

    def state_rows(self, local: LocalOptimizer) -> float:
        return 1.0  # what arrives from a neighbour

    @property
    def node_state(self) -> NodeState:
        return NodeState(local=False, sends=Dense(), results=1)  # a gradient that waits

    def node(self, node: Node) -> Program:
        node.process(self.listen(node))
        while True:
            grad = yield node.grad()  # at the parameters of when it began
            node.params -= self.lr * grad  # applied to the parameters of now
            if node.neighbors:
                node.send(node.rng.choice(node.neighbors), node.params)

    def listen(self, node: Node) -> Program:
        """Average with whatever arrives."""
        while True:
            message = yield node.recv()
            node.params = (node.params + message.value) / 2
