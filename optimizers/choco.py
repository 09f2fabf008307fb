"""CHOCO-SGD: gossip with any compression (Koloskova, Stich, Jaggi, arXiv 1902.00340)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from optimizers.compression import TopK
from optimizers.compression.feedback import check_fed_back
from optimizers.gossip import among, mixing_matrix, rates, step
from optimizers.schedule import Constant, Schedule
from optimizers.strategy import GroupStrategy, NodeState, Program, Shared
from sim.compute.local_optimizer import LocalOptimizer
from sim.group import Group
from sim.mixing import Heard, mix
from sim.payload import Compressor
from sim.rows import mean_params, spread
from sim.simulation import Simulation

_ORDERS = ("adapt_first", "mix_first")


@dataclass(frozen=True)
class CHOCO(GroupStrategy):
    """Algorithm 2 of arXiv 1902.00340, and the order of its authors' code (`order="mix_first"`).

        x_i <- x_i - lr grad_i(x_i)
        q_i = Q(x_i - xhat_i), sent to the neighbours;   xhat_i <- xhat_i + q_i, wherever it is held
        x_i <- x_i + gamma sum_j W_ij (xhat_j - xhat_i)

    `"mix_first"` (epfml/ChocoSGD, `convex_code`) has the last line before the second one: it mixes
    what was known before the step. All start from common parameters, and so do all xhat; what a
    codec leaves out stays in x - xhat, so it needs no error feedback and must not be scaled up.

    Replicas must never differ, so a q that did not reach all neighbours that are still there (a
    round was cut) counts for nobody. A joiner first gets the xhat of each neighbour in full, while
    it computes its first gradient. The weight of a neighbour that is away goes to the node itself.

    Args:
        lr: learning rate; with 0 parameters are only averaged.
        gamma: consensus step size, in (0, 1]; smaller where less is sent (0.04 for 1 %). With 1 and
            a codec that sends everything it is D-PSGD.
        order: which of the two.
        compressor: Q, how a difference is written on the wire.
        weights: W, sparse [N, N], rows summing to 1; Metropolis weights on the overlay if None.
        schedule: factor of `lr` by the steps of each node.
    """

    lr: float = 0.1
    gamma: float = 0.2
    order: str = "adapt_first"
    compressor: Compressor = field(default_factory=lambda: TopK(ratio=0.1))
    weights: sparse.sparray | None = field(default=None, compare=False)
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        if not self.lr >= 0:
            raise ValueError(f"strategy.lr={self.lr}: must be >= 0; 0 only averages")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"strategy.gamma={self.gamma}: must be above 0 and at most 1")
        if self.order not in _ORDERS:
            raise ValueError(f"strategy.order={self.order!r}: must be one of {', '.join(_ORDERS)}")
        check_fed_back(self.compressor)

    @property
    def passes(self) -> float:
        return 4.0  # per write, of which there are two: the step 3; mixing 3, xhat 2

    def state_rows(self, local: LocalOptimizer) -> float:
        return 2.0  # xhat of its own, and the weighted sum of the neighbours'

    @property
    def node_state(self) -> NodeState:
        # The xhat of neighbours, of which each of several processes has all.
        return NodeState(local=False, named=("row", "xhat"), sends=self.compressor, results=1)

    def init(self, sim: Simulation) -> Shared:
        return {"params": sim.initial_params()}

    def start(self, sim: Simulation) -> None:
        mixing_matrix(self.weights, sim)  # refuses what does not fit
        self._known(sim)[list(sim.online)] = 1.0
        super().start(sim)

    def run(self, sim: Simulation) -> Program:
        weights, start = mixing_matrix(self.weights, sim), sim.initial_params()
        while True:
            group = yield sim.coordinator.round()
            grad, met = group.grad(into="row"), sim.program(self._introduce(group, weights))
            yield grad & met
            here = group.online
            if not len(here):
                continue
            here.change(step, "params", "row", rates(self.lr, self.schedule, here))
            if self.order == "mix_first":
                self._mix(here, weights)
            here.change(_difference, "row", "params", "xhat", start)  # in place of the gradient
            links = self._links(here, weights)
            heard = yield here.neighbor_gather(here["row"], links, self.compressor)
            self._remember(heard, links)
            if self.order == "adapt_first":
                self._mix(here.online, weights)

    def _mix(self, here: Group, weights: sparse.csr_array) -> None:
        """x_i <- x_i + gamma sum_j W_ij (xhat_j - xhat_i)."""
        if len(here):
            towards = self.gamma * (self._links(here, weights) - sparse.eye_array(len(here)))
            mix(here, "params", np.ones(len(here)), towards, here.columns("xhat"))

    def _remember(self, heard: Heard, links: sparse.csr_array) -> None:
        """xhat_i <- xhat_i + q_i, if all who hold it have got q_i."""
        group, known = heard.group, self._known(heard.group.sim) > 0
        late = np.asarray(heard.missing(links).sum(axis=0)).ravel()
        told = [
            i for i in group.online.ids if known[i] and not late[np.searchsorted(group.index, i)]
        ]
        if told and heard.payload is not None:
            group.among(told).add("xhat", heard.payload.rows(group.positions(told)))

    def _introduce(self, group: Group, weights: sparse.csr_array) -> Program:
        """Who joins gets the xhat of its neighbours in full; from then on it takes part."""
        sim, known = group.sim, self._known(group.sim)
        known[np.setdiff1d(np.arange(len(known)), group.index)] = 0.0  # they miss what is sent
        new = known[group.index] == 0
        if not new.any():
            return
        block = among(weights, group)
        links = sparse.diags_array(1.0 * new) @ block @ sparse.diags_array(1.0 * ~new)
        everybody = sim.group(group.ids)  # not cut with the round
        heard = yield everybody.neighbor_gather(group["xhat"], links)
        late = np.asarray(heard.missing(links).sum(axis=1)).ravel()
        here = np.isin(group.index, everybody.present)
        known[group.index[here & (late == 0)]] = 1.0

    def _links(self, group: Group, weights: sparse.csr_array) -> sparse.csr_array:
        """W among members that know each other, [n, n]; other weight is one's own."""
        known, pairs = self._known(group.sim)[group.index] > 0, among(weights, group).tocoo()
        row, column = pairs.row, pairs.col
        met = known[row] & known[column] & (row != column)
        own = 1.0 - np.bincount(row[met], pairs.data[met], minlength=len(group))
        diagonal = np.arange(len(group))
        entries = np.concatenate([pairs.data[met], own])
        places = np.concatenate([row[met], diagonal]), np.concatenate([column[met], diagonal])
        return sparse.csr_array((entries, places), shape=pairs.shape)

    def _known(self, sim: Simulation) -> np.ndarray:
        """1 for each node whose neighbours' xhat it holds, and they its; float64 [N]."""
        return sim.numbers("choco.known")

    def consensus(self, sim: Simulation) -> Tensor:
        """The mean of the parameters of those online."""
        return mean_params(sim)

    def metrics(self, sim: Simulation) -> dict[str, float]:
        """How far nodes are from that mean."""
        return {"spread": spread(sim)}


def _difference(out: Tensor, x: Tensor, xhat: Tensor, start: Tensor) -> None:
    """x - xhat, where xhat is kept as what has been added to the start."""
    torch.sub(x, start, out=out).sub_(xhat)
