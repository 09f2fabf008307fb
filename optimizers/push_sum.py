"""Stochastic gradient push: gossip on directed graphs (Assran et al., arXiv 1811.10792)."""

from __future__ import annotations

from bisect import bisect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import sparse
from simpy import Event
from torch import Tensor

from optimizers.gossip import rates, step
from optimizers.schedule import Constant, Schedule
from optimizers.strategy import GroupStrategy, NodeState, Program, Shared
from sim.compute.local_optimizer import LocalOptimizer
from sim.group import Group
from sim.mixing import Heard, mix
from sim.rows import Lazy, spread
from sim.simulation import Simulation
from topologies.peers import ExponentialPeers, Peers, links
from topologies.weights import hears, push_weights

_UNDELIVERED, _LEAVERS = ("lost", "returned"), ("lost", "hand_over")
_WEIGHT_BYTES = 4.0


@dataclass(frozen=True)
class SGP(GroupStrategy):
    """Algorithm 1 of arXiv 1811.10792 (SGP); with `overlap`, its overlapping form (OSGP).

        x_i <- x_i - lr grad_i(z_i)
        x_i <- sum_j P_ij x_j;   w_i <- sum_j P_ij w_j;   z_i = x_i / w_i

    Each node sends the share 1 / (1 + receivers) of its x and w to each receiver, and keeps one, so
    columns of P sum to 1 and mixing conserves sum x and sum w: all z tend to sum x / sum w, on any
    graph. Rows `params` are z; x is w z, and travels as z and w. A joiner starts with its donor's
    z and w = 1.

    Args:
        lr: learning rate; with 0 parameters are only averaged.
        momentum: of the gradients that a node computes at z, in [0, 1); never sent.
        nesterov: step along the gradient + momentum * momentum buffer instead of the buffer.
        graph: who sends to whom in a round, among its members; None is all edges of the overlay,
            in their direction.
        overlap: tau, steps that a message may take: it counts after the tau-th step that follows.
        undelivered: a share that does not arrive is `"lost"`, x and w together, so that z stays
            sane; or `"returned"`: its sender learns of it, and has it again.
        leavers: what a node that leaves has is `"lost"`; or, `"hand_over"`, a neighbour gets its x
            and w: it had notice. The bytes of that are counted, its time is not.
        weights: w that each node starts with, if not 1: of the mean that all tend to.
        schedule: factor of `lr` by the steps of each node.
    """

    lr: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    graph: Peers | None = field(default_factory=ExponentialPeers)
    overlap: int = 0
    undelivered: str = "lost"
    leavers: str = "lost"
    weights: Sequence[float] | None = None
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        if not self.lr >= 0:
            raise ValueError(f"strategy.lr={self.lr}: must be >= 0; 0 only averages")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"strategy.momentum={self.momentum}: must be in [0, 1)")
        if self.nesterov and not self.momentum:
            raise ValueError("strategy.nesterov=True: needs momentum > 0; choose for example 0.9")
        if self.overlap < 0:
            raise ValueError(f"strategy.overlap={self.overlap}: must be >= 0 steps")
        for name, choices in (("undelivered", _UNDELIVERED), ("leavers", _LEAVERS)):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"strategy.{name}={value!r}: must be one of {', '.join(choices)}")
        if self.weights is not None and not all(w > 0 for w in self.weights):
            raise ValueError(f"strategy.weights={list(self.weights)}: each must be > 0")

    @property
    def passes(self) -> float:
        return 3.0 + (2.0 if self.momentum else 0.0)  # per write: there are two

    def state_rows(self, local: LocalOptimizer) -> float:
        return 1.0 + bool(self.momentum)  # what arrives, and momentum

    @property
    def node_state(self) -> NodeState:
        named = ("grad", "momentum") if self.momentum else ("grad",)
        # What was sent, of this round and those under way.
        return NodeState(local=False, named=named, results=1 + self.overlap)

    @property
    def _lasting(self) -> bool:
        """Nobody changes the z that were sent until they are received."""
        return not self.overlap and self.leavers == "lost"

    def init(self, sim: Simulation) -> Shared:
        return {"params": sim.initial_params()}

    def start(self, sim: Simulation) -> None:
        if self.weights is not None and len(self.weights) != sim.fleet.n_nodes:
            many = f"{len(self.weights)} numbers, but there are {sim.fleet.n_nodes} nodes"
            raise ValueError(f"strategy.weights: {many}")
        if self.leavers == "hand_over":
            sim.watch(_HandOver(self, sim))
        super().start(sim)

    def run(self, sim: Simulation) -> Program:
        edges = None if self.graph else hears(sim.overlay)
        under_way: deque[_Push] = deque()
        while True:
            group = yield sim.coordinator.round()
            yield group.grad(into="grad")  # at z
            here = group.online
            if len(here):
                self._step(here)
                under_way.append(self._push(here, edges))
            while len(under_way) > (0 if sim.spent else self.overlap):
                push = under_way.popleft()
                self._receive((yield push.heard), push.shares)  # waits if the network is late

    def _step(self, here: Group) -> None:
        """x <- x - lr m, which moves z by that over w."""
        direction: str | Lazy = "grad"
        if self.momentum:
            here.change(lambda m, g: m.mul_(self.momentum).add_(g), "momentum", "grad")
            direction = "momentum"
        if self.nesterov:
            direction = here.rows(lambda m, g: self.momentum * m + g, "momentum", "grad")
        rate = rates(self.lr, self.schedule, here)
        w = torch.from_numpy(self.w(here.sim)[here.index])[:, None].to(rate)
        here.change(step, "params", direction, rate / w)

    def _push(self, here: Group, edges: sparse.csr_array | None) -> _Push:
        """Send shares of x and w: what is kept stays in w, what is sent has left it."""
        w = self.w(here.sim)
        if self.graph is not None:
            assert here.round is not None
            edges = links(self.graph.receivers(len(here), here.round.number))
        elif edges is not None:
            edges = edges[here.index][:, here.index]
        shares = push_weights(edges)
        sent = (shares - sparse.diags_array(shares.diagonal())) @ sparse.diags_array(w[here.index])
        w[here.index] *= shares.diagonal()
        heard = here.neighbor_rows("params", sent, extra=_WEIGHT_BYTES, lasting=self._lasting)
        return _Push(heard, sparse.csr_array(sent))

    def _receive(self, heard: Heard, sent: sparse.csr_array) -> None:
        """x <- x + sum of the x that came, w likewise; so z is their mean, weighted by w."""
        group, w = heard.group, self.w(heard.group.sim)
        stayed, came = group.online, sent.multiply(heard.arrived)
        if self.undelivered == "returned":
            came = came + sparse.diags_array(np.asarray((sent - came).sum(axis=0)).ravel())
        own, came = w[stayed.index], came.tocsr()[group.positions(stayed.ids).numpy()]
        w[stayed.index] = total = own + np.asarray(came.sum(axis=1)).ravel()
        part = sparse.diags_array(1 / total) @ came
        mix(stayed, "params", own / total, part, heard.columns())

    def w(self, sim: Simulation) -> np.ndarray:
        """The push-sum weight of each node, float64 [N]."""
        return sim.numbers("push_sum", 1.0 if self.weights is None else self.weights)

    def consensus(self, sim: Simulation) -> Tensor:
        """sum x / sum w of those who are in: what all z tend to."""
        group = sim.group(sim.online & sim.coordinator.ready)
        if not len(group):
            return sim.initial_params()
        w = torch.from_numpy(self.w(sim)[group.index])[:, None].to(sim.initial_params())
        return group.reduce(lambda z, w: w * z, "params", w) / w.sum()

    def metrics(self, sim: Simulation) -> dict[str, float]:
        """How far the z of nodes are from their mean."""
        return {"spread": spread(sim)}


@dataclass(frozen=True)
class _Push:
    """Messages under way."""

    heard: Event
    shares: sparse.csr_array
    """The w that goes from j to i, [n, n]."""


@dataclass(frozen=True, eq=False)
class _HandOver:
    """Watches for nodes that leave, and gives their x and w to the next node that is in."""

    strategy: SGP
    sim: Simulation

    def leave(self, node: int) -> None:
        sim, ready = self.sim, self.sim.coordinator.ready
        near = ready if self.strategy.graph is not None else set(sim.neighbors(node))
        heirs = sorted(sim.online & ready & near - {node})
        if node not in ready or not heirs:
            return
        heir, w = heirs[bisect(heirs, node) % len(heirs)], self.strategy.w(sim)
        w[heir] += w[node]
        mine, theirs = sim.node(heir).params, sim.node(node).params
        sim.node(heir).params = torch.lerp(mine, theirs, float(w[node] / w[heir]))
        size = sim.workload.nbytes(sim.dense) + _WEIGHT_BYTES
        sim.network.count([node, heir], np.array([size, 0.0]), np.array([0.0, size]))
