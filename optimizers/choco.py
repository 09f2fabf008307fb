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
from sim.compute.block import Block
from sim.compute.kernels import mixing as kernels
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
        friends = Friends(weights, self._known(sim), self.gamma)
        while True:
            group = yield sim.coordinator.round()
            grad, met = group.grad(into="row"), sim.program(self._introduce(group, weights))
            yield grad & met
            here = group.online
            if not len(here):
                continue
            rate, links = rates(self.lr, self.schedule, here), friends.links(here)
            if self.order == "mix_first":
                here.change(step, "params", "row", rate)
                _mix(here, friends)
                here.change(_difference, "row", "params", "xhat", start)
            else:
                _adapt(here, rate, start)
            heard = yield here.neighbor_gather(here["row"], links, self.compressor)
            self._remember(heard, links)
            if self.order == "adapt_first":
                _mix(here.online, friends)

    def _remember(self, heard: Heard, links: sparse.csr_array) -> None:
        """xhat_i <- xhat_i + q_i, if all who hold it have got q_i."""
        group, known = heard.group, self._known(heard.group.sim) > 0
        late = np.asarray(heard.missing(links).sum(axis=0)).ravel()
        told = group.index[(late == 0) & known[group.index] & np.isin(group.index, group.present)]
        if len(told) and heard.payload is not None:
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

    def _known(self, sim: Simulation) -> np.ndarray:
        """1 for each node whose neighbours' xhat it holds, and they its; float64 [N]."""
        return sim.numbers("choco.known")

    def consensus(self, sim: Simulation) -> Tensor:
        """The mean of the parameters of those online."""
        return mean_params(sim)

    def metrics(self, sim: Simulation) -> dict[str, float]:
        """How far nodes are from that mean."""
        return {"spread": spread(sim)}


class Friends:
    """W among members of a group who know each other; computed anew when these change.

    Args:
        weights: W, [N, N].
        known: see `CHOCO._known`, [N].
        gamma: consensus step size.
    """

    def __init__(self, weights: sparse.csr_array, known: np.ndarray, gamma: float) -> None:
        self._weights, self._known, self._gamma = weights, known, gamma
        self._of: tuple[bytes, bytes] | None = None
        self._made: tuple[sparse.csr_array, sparse.csr_array]

    def links(self, group: Group) -> sparse.csr_array:
        """W, [n, n]; the weight of others is a node's own."""
        return self._matrices(group)[0]

    def towards(self, group: Group) -> sparse.csr_array:
        """gamma (W - I), [n, n]."""
        return self._matrices(group)[1]

    def _matrices(self, group: Group) -> tuple[sparse.csr_array, sparse.csr_array]:
        known = self._known[group.index] > 0
        of = group.index.tobytes(), known.tobytes()
        if of != self._of:
            links = _among_known(among(self._weights, group), known)
            self._of, eye = of, sparse.eye_array(len(group))
            self._made = links, sparse.csr_array(self._gamma * (links - eye))
        return self._made


def _among_known(weights: sparse.csr_array, known: np.ndarray) -> sparse.csr_array:
    """The weights [n, n] between those that are known, [n]; what is left is a node's own."""
    pairs = weights.tocoo()
    row, column = pairs.row, pairs.col
    met = known[row] & known[column] & (row != column)
    own = 1.0 - np.bincount(row[met], pairs.data[met], minlength=len(known))
    diagonal = np.arange(len(known))
    entries = np.concatenate([pairs.data[met], own])
    places = np.concatenate([row[met], diagonal]), np.concatenate([column[met], diagonal])
    return sparse.csr_array((entries, places), shape=pairs.shape)


def _mix(here: Group, friends: Friends) -> None:
    """x_i <- x_i + gamma sum_j W_ij (xhat_j - xhat_i)."""
    if len(here):
        mix(here, "params", np.ones(len(here)), friends.towards(here), here.columns("xhat"))


def _adapt(here: Group, rate: Tensor, start: Tensor) -> None:
    """x_i <- x_i - lr grad_i(x_i), and x_i - xhat_i takes the place of the gradient."""

    def adapt(rows: Block) -> None:
        by = rate[torch.from_numpy(np.searchsorted(here.index, rows.ids))]
        with rows.in_place("params") as own, rows.in_place("row") as grads:
            x, g = own.read(), grads.read()
            _step_and_difference(x, g, rows["xhat"], start, by)
            own.write(x)
            grads.write(g)

    here.apply(adapt)
    here.sim.charge_step(here.index)


def _step_and_difference(x: Tensor, g: Tensor, xhat: Tensor, start: Tensor, rate: Tensor) -> None:
    """x <- x - rate g, and the difference takes the place of g; in one pass on a CPU."""
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        rows = (rows.contiguous().numpy() for rows in (x, g, xhat))
        kernels.step_and_difference(*rows, start.numpy(), rate[:, 0].numpy())
    else:
        step(x, g, rate)
        _difference(g, x, xhat, start)


def _difference(out: Tensor, x: Tensor, xhat: Tensor, start: Tensor) -> None:
    """x - xhat, where xhat is kept as what has been added to the start."""
    torch.sub(x, start, out=out).sub_(xhat)
