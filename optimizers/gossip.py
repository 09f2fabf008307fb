"""Gossip: D-PSGD in rounds (Lian et al., 1705.09056), AD-PSGD without (Lian et al., 1710.06952)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache, partial

import networkx as nx
import numpy as np
import torch
from scipy import sparse
from simpy import Event
from torch import Tensor

from optimizers.schedule import Constant, Schedule
from optimizers.strategy import GroupStrategy, NodeState, NodeStrategy, Program, Shared
from sim.compute.local_optimizer import LocalOptimizer
from sim.group import Group
from sim.mixing import mix
from sim.node import Node
from sim.payload import Dense, Payload
from sim.rows import Rows, mean_params, spread
from sim.simulation import Simulation
from topologies.peers import active_nodes
from topologies.weights import metropolis_weights


def mixing_matrix(weights: sparse.sparray | None, sim: Simulation) -> sparse.csr_array:
    """The weights given, [N, N], or Metropolis weights on the overlay.

    Raises:
        ValueError: rows do not sum to 1, or are not as many as there are nodes.
    """
    if weights is None:
        return metropolis_weights(sim.overlay)
    matrix, n = sparse.csr_array(weights), sim.fleet.n_nodes
    if matrix.shape != (n, n) or not np.allclose(matrix.sum(axis=1), 1.0):
        raise ValueError(f"strategy.weights {matrix.shape}: must be {n} rows of {n} that sum to 1")
    return matrix


def among(weights: sparse.csr_array, group: Group) -> sparse.csr_array:
    """The weights [n, n] of the members of a group, of those of all nodes [N, N]."""
    if len(group) == weights.shape[0]:
        return weights
    return weights[group.index][:, group.index]


def step(x: Tensor, grad: Tensor, rate: Tensor) -> None:
    """x <- x - rate grad, of rows [b, P] with a rate [b, 1] each."""
    x.addcmul_(grad, rate, value=-1)


def rates(lr: float, schedule: Schedule, rows: Rows) -> Tensor:
    """The learning rate of the step that each node has just computed, [n, 1]."""
    age = torch.from_numpy(rows.sim.completed[rows.index]) - 1
    return (lr * schedule.factor(age))[:, None].to(rows.sim.initial_params())


@dataclass(frozen=True)
class DPSGD(GroupStrategy):
    """Decentralised parallel SGD, synchronous: average with the neighbours, step on own gradient.

        x_i <- sum_j W_ij x_j - lr grad_i(x_i)        order="combine_while_adapt" (Algorithm 1)
        x_i <- sum_j W_ij (x_j - lr grad_j(x_j))      order="adapt_then_combine"

    The first computes the gradient while the parameters travel; the second one after the other.

    Args:
        lr: learning rate; with 0 parameters are only averaged.
        order: which of the two.
        weights: W, sparse [N, N], rows summing to 1; Metropolis weights on the overlay if None.
        missing: where the weight of a neighbour goes that is away, or whose message was lost: to
            the node's own row, `"self"`, which keeps W symmetric, and so the mean; or to all
            that the node has, `"rescale"`, as in the experiments of yandex-research/moshpit-sgd.
        schedule: factor of `lr` by the steps of each node.
    """

    lr: float = 0.1
    order: str = "combine_while_adapt"
    weights: sparse.sparray | None = field(default=None, compare=False)
    missing: str = "self"
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        if not self.lr >= 0:
            raise ValueError(f"strategy.lr={self.lr}: must be >= 0; 0 only averages")
        if self.order not in ("combine_while_adapt", "adapt_then_combine"):
            raise ValueError(
                f"strategy.order={self.order!r}: must be 'combine_while_adapt' or "
                "'adapt_then_combine'"
            )
        if self.missing not in ("self", "rescale"):
            raise ValueError(f"strategy.missing={self.missing!r}: must be 'self' or 'rescale'")

    @property
    def passes(self) -> float:
        return 6.0 if self.order == "combine_while_adapt" else 3.0  # per write: there are two then

    def state_rows(self, local: LocalOptimizer) -> float:
        return 1.0  # what arrives from the neighbours

    @property
    def node_state(self) -> NodeState:
        # What neighbours sent, of which each of several processes has all.
        return NodeState(local=False, named=("grad",), results=1)

    def init(self, sim: Simulation) -> Shared:
        return {"params": sim.initial_params()}

    def start(self, sim: Simulation) -> None:
        mixing_matrix(self.weights, sim)  # refuses what does not fit
        super().start(sim)

    def run(self, sim: Simulation) -> Program:
        weights = mixing_matrix(self.weights, sim)
        while True:
            group = yield sim.coordinator.round()
            grad = group.grad(into="grad")
            if self.order == "adapt_then_combine":
                yield grad
                group = group.online
                group.change(step, "params", "grad", rates(self.lr, self.schedule, group))
            links = among(weights, group)
            sent = group.neighbor_rows("params", links, lasting=True)
            yield grad & sent
            here, heard, by = group.online, sent.value, None
            if self.order == "combine_while_adapt":
                by = rates(self.lr, self.schedule, here), "grad"
            own, others = heard.weights(here, links, self.missing)
            mix(here, "params", own, others, heard.columns(), by)

    def consensus(self, sim: Simulation) -> Tensor:
        """The mean of the parameters of those online."""
        return mean_params(sim)

    def metrics(self, sim: Simulation) -> dict[str, float]:
        """How far nodes are from that mean."""
        return {"spread": spread(sim)}


@dataclass(frozen=True)
class ADPSGD(NodeStrategy):
    """Algorithm 1 of arXiv 1710.06952: asynchronous gossip, no node waits for another.

    While a node computes a gradient, it sets itself and a random neighbour to the mean of the two;
    then it steps on the gradient, which is of its parameters from before.

    The exchange is atomic, so it keeps the mean of the fleet: nodes are split into active ones,
    which begin exchanges, one at a time, with passive ones, which answer them in turn
    (`topologies.peers.active_nodes`); no circle of nodes can wait for each other. Both move by half
    their difference, which is the answer, so a step on a gradient in between loses nothing: it is
    as if it came after.
    If the passive node leaves before it has answered, the active one stays as it is.

    Args:
        lr: learning rate; with 0 parameters are only averaged.
        schedule: factor of `lr` by the steps of each node.
    """

    lr: float = 0.1
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        if not self.lr >= 0:
            raise ValueError(f"strategy.lr={self.lr}: must be >= 0; 0 only averages")

    @property
    def passes(self) -> float:
        return 3.0

    def state_rows(self, local: LocalOptimizer) -> float:
        return 2.0  # what goes to a neighbour, and what came from one

    @property
    def node_state(self) -> NodeState:
        # A gradient that waits, and what went to a neighbour.
        return NodeState(local=False, sends=Dense(), results=2)

    def node(self, node: Node) -> Program:
        partners, exchange = _passive_neighbors(node.sim.overlay)[node.id], None
        if partners is None:
            node.process(self.answer(node))
        while True:
            if partners and (exchange is None or not exchange.is_alive):
                exchange = node.process(self.exchange(node, partners))
            grad = yield node.grad()  # at the parameters of when it began
            rate = self.lr * self.schedule.at(int(node.sim.completed[node.id]) - 1)
            node.change(partial(torch.Tensor.add_, alpha=-rate), "params", grad)  # of now

    def exchange(self, node: Node, partners: list[int]) -> Program:
        """An active node: average with a passive one, both at once."""
        online, ready = node.sim.online, node.sim.coordinator.ready
        here = [j for j in partners if j in online and j in ready]
        if not here:
            return
        partner = here[node.rng.integers(len(here))]
        answer = f"answer {partner}.{node.sim.departures[partner]}"
        mine = node.encode(node.sim.dense, node.params[None])
        if (yield node.send(partner, mine, "offer")):
            half = yield from _unless_left(node.recv(answer), partner, node.sim)
            if half is not None:
                node.change(Tensor.sub_, "params", half.payload.decode())

    def answer(self, node: Node) -> Program:
        """A passive node: move half way to whoever offers, and answer with that half."""
        while True:
            offer = yield node.recv("offer")
            apart = offer.payload.decode()  # in its memory, for nobody else needs it any more
            apart.sub_(node.sim.fleet.row("params", node.id)).div_(2)
            half = node.encode(node.sim.dense, apart)
            node.change(Tensor.add_, "params", half.decode())
            node.process(self.deliver(node, offer.src, half))

    def deliver(self, node: Node, partner: int, half: Payload) -> Program:
        """Send until it is there, or the partner has left: its half of the exchange is due."""
        sim, left = node.sim, node.sim.departures[partner]
        tag, arrived = f"answer {node.id}.{sim.departures[node.id]}", False
        while not arrived and sim.departures[partner] == left:
            arrived = yield node.send(partner, half, tag)

    def metrics(self, sim: Simulation) -> dict[str, float]:
        """How far nodes are from their mean."""
        return {"spread": spread(sim)}


def _unless_left(event: Event, partner: int, sim: Simulation) -> Program:
    """The value of an event; None if a node has left before it fired."""
    left = sim.departures[partner]
    while not event.triggered and sim.departures[partner] == left:
        yield event | sim.membership_changed
    return event.value if event.triggered else None


@lru_cache(maxsize=8)
def _passive_neighbors(overlay: nx.Graph) -> list[list[int] | None]:
    """Of each active node its passive neighbours, ascending, either way of an edge; else None."""
    active, both = active_nodes(overlay), overlay.to_undirected(as_view=True)
    return [
        sorted(j for j in both[i] if not active[j]) if active[i] else None
        for i in range(len(overlay))
    ]
