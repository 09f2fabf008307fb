"""PowerSGD: gradients of low rank, which can be all-reduced (Vogels et al., 1905.13727)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from optimizers.compression.low_rank import SIDES, Basis, Matrices, Projection, start_factors
from optimizers.local import SGD
from optimizers.strategy import GroupStrategy, NodeState, Program, Shared
from sim.aggregation import Aggregation, Mean
from sim.compute.local_optimizer import LocalOptimizer
from sim.group import Group
from sim.payload import Dense, Payload
from sim.simulation import Simulation


def heavy_ball() -> SGD:
    """Momentum on what is aggregated, as in Algorithm 2: 0.9."""
    return SGD(lr=0.1, momentum=0.9)


@dataclass(frozen=True)
class PowerSGD(GroupStrategy):
    """Algorithms 1 and 2 of arXiv 1905.13727, and the form of the authors' later package.

    Matrices M_i = gradient_i + residual_i are approximated by one step of power iteration, which
    begins with the factors of the last step; orthonormal() is a QR decomposition of each tensor.

    `sides="both"`, the paper: two collectives,

        P = orthonormal(mean_i M_i Q);  Q = mean_i M_i^T P;  out = P Q^T;  residual_i = M_i - out

    `sides="one"`, epfml/powersgd: half-steps that take turns, `half_steps` of them in a step,

        P = orthonormal(P);  Q_i = M_i^T P;  M_i -= P Q_i^T;  Q = mean_i Q_i;  out += P Q^T

    and the same with P and Q exchanged; what is left of M_i is the residual. Other tensors are
    averaged whole. The optimizer, with its momentum, steps on `out`. The residual is a row per
    node, zero for a joiner and lost with a leaver; factors are shared, and a joiner gets them.

    Args:
        rank: of the approximation, r.
        sides: `"both"` or `"one"`.
        half_steps: collectives of a step with `sides="one"`; one sends half of what the paper does.
        optimizer: steps on the aggregated gradient.
        warmup: steps at the start that average whole gradients; the package waits 100.
        min_rate: a tensor is approximated if its values are more than so many times those sent.
        vectors: approximate vectors too, as matrices of one column, where that is fewer values;
            `"package"`: where the authors' package counts them as fewer.
        value_dtype: number type of the values sent; `"native"` for that of the gradients.
        aggregation: the rule by which the P Q_i^T become one, and the other tensors, see
            `AllReduce`; needs `sides="one"`, whose residuals do not depend on what others send.
    """

    rank: int = 4
    sides: str = "both"
    half_steps: int = 1
    optimizer: LocalOptimizer = field(default_factory=heavy_ball)
    warmup: int = 0
    min_rate: float = 2.0
    vectors: bool | str = False
    value_dtype: str = "float32"
    aggregation: Aggregation = field(default_factory=Mean)

    def __post_init__(self) -> None:
        if self.sides not in ("both", "one"):
            raise ValueError(f"strategy.sides={self.sides!r}: must be 'both' or 'one'")
        if self.half_steps < 1 or (self.sides == "both" and self.half_steps != 1):
            raise ValueError(
                f"strategy.half_steps={self.half_steps}: must be an integer >= 1, and 1 with "
                "sides='both'; choose sides='one' for more"
            )
        if self.sides == "both" and not self.aggregation.summable:
            raise ValueError(
                f"strategy.aggregation={self.aggregation!r}: residuals are measured against the "
                "mean with sides='both', and would grow; choose sides='one'"
            )
        if self.warmup < 0:
            raise ValueError(f"strategy.warmup={self.warmup}: must be an integer >= 0")
        Dense(self.value_dtype)
        self._onto("left")

    @property
    def passes(self) -> float:
        return self.optimizer.passes + 4.0  # the residual: gradient added, what is sent subtracted

    def state_rows(self, local: LocalOptimizer) -> float:
        return self.optimizer.state_rows + 1.0  # the residual

    @property
    def node_state(self) -> NodeState:
        sends = self._onto("left")
        gathers, named = not self.aggregation.summable, ("residual",)
        return NodeState(params=False, local=False, named=named, sends=sends, gathers=gathers)

    def init(self, sim: Simulation) -> Shared:
        params, turn = sim.initial_params(), torch.zeros(1, dtype=torch.int64)
        start = start_factors(self._onto("left").matrices, sim.fleet.layout)
        factors = {side: {k: v.to(params) for k, v in of.items()} for side, of in zip(SIDES, start)}
        state = self.optimizer.bind(sim.fleet.layout).init(params)
        return {"params": params, "state": state, "step": turn, "half_step": turn, **factors}

    def run(self, sim: Simulation) -> Program:
        s, optimizer = sim.shared, self.optimizer.bind(sim.fleet.layout)
        aggregate = self.both_sides if self.sides == "both" else self.one_side
        charged = self._onto("left").matrices.any_of(sim.workload.layout)
        while True:
            group = yield sim.coordinator.round()
            group.params = s["params"]
            if int(s["step"]) < self.warmup or not (s["left"] or charged):
                whole, rule = Dense(self.value_dtype), self.aggregation
                mean = yield group.average(group.grad(), whole, rule=rule)
            else:
                mean = yield from aggregate(group)
            if mean is not None:
                s["params"], s["state"] = optimizer.step(s["params"], mean, s["state"])
            s["step"] = s["step"] + 1

    def both_sides(self, group: Group) -> Program:
        """The paper's step: both factors, one after the other."""
        s, layout = group.sim.shared, group.sim.fleet.layout
        onto = self._onto("right", Basis.spanned(layout, s["right"]))
        first = yield group.all_reduce(group.grad().then(corrected), onto)  # mean M_i Q
        if first is None:
            return None
        s["left"] = onto.coefficients(first)
        onto = self._onto("left", Basis.spanned(layout, s["left"]), others=False)
        here, inside = group.online, onto.mask(layout, first.device)
        out = yield here.all_reduce(here["residual"], onto)  # mean M_i^T P
        if out is None:
            return None
        s["right"] = onto.coefficients(out)
        here.online.update(lambda M: torch.where(inside, M - out, 0), "residual")
        return torch.where(inside, out, first)

    def one_side(self, group: Group) -> Program:
        """The package's step: some half-steps, of which each changes one factor."""
        s, layout, out = group.sim.shared, group.sim.fleet.layout, None
        rule = self.aggregation
        for turn in range(self.half_steps):
            odd = int(s["half_step"]) % 2
            side, other = SIDES[odd], SIDES[1 - odd]
            basis = Basis.spanned(layout, s[side])
            onto = self._onto(side, basis, others=turn == 0)
            if turn == 0:
                event = group.average(group.grad().then(Extract(onto)), onto, rule=rule)
            else:
                here = group.online
                event = here.average(here["residual"], onto, rule=rule)
                here.update(onto.rest, "residual")
            mean = yield event
            if mean is None:
                break
            out = mean if out is None else out + mean
            s[side], s[other] = basis.columns, onto.coefficients(mean)
            s["half_step"] = s["half_step"] + 1
        return out

    def consensus(self, sim: Simulation) -> Tensor:
        """The parameters that all members hold."""
        return sim.shared["params"]

    def _onto(self, side: str, basis: Basis | None = None, others: bool = True) -> Projection:
        factors = 2 if self.sides == "both" else self.half_steps
        matrices = Matrices(self.rank, factors, self.min_rate, self.vectors)
        return Projection(matrices, side, others, self.value_dtype, basis)


def corrected(rows: Any, grad: Tensor) -> Tensor:
    """Gradients and residuals, which stay in the rows; on blocks, inside the flush."""
    M = rows["residual"].add_(grad)
    rows["residual"] = M
    return M


@dataclass(frozen=True)
class Extract:
    """Take what is sent out of gradients and residuals; on blocks, inside the flush."""

    onto: Projection

    def __call__(self, rows: Any, grad: Tensor) -> Payload:
        M = rows["residual"].add_(grad)
        sent = rows.encode(self.onto, M)
        rows["residual"] = M.sub_(sent.decode())  # what is left stays here
        return sent
