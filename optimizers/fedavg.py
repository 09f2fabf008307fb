"""Federated averaging: a part of the nodes trains in each round (McMahan et al., 1602.05629)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from optimizers.local import SGD
from optimizers.strategy import GroupStrategy, NodeState, Program, Shared
from sim.aggregation import Aggregation, Mean, check_weights
from sim.compute.local_optimizer import LocalOptimizer
from sim.group import Group
from sim.payload import Compressor, Dense
from sim.simulation import Simulation


@dataclass(frozen=True)
class FedAvg(GroupStrategy):
    """Algorithm 1 of arXiv 1602.05629, with a collective among the clients in place of a server.

    theta <- theta - sum_j w_j (theta - theta_j) over the clients j of a round, which are drawn
    anew each time. Those that were not in the round before first get theta from one that was, by a
    broadcast. With all nodes (`fraction=1`) and equal weights it is local SGD (1805.09767), which
    is DiLoCo with an outer SGD of lr 1.

    If nobody's share arrives, theta stays as it was and the round's local steps are lost. (The
    LocalSGD of pytorch/torchft then keeps each replica's local parameters, so that replicas
    differ until the next round; its DiLoCo goes back, as here.)

    Args:
        inner_steps: H, local steps of a client in a round.
        fraction: C, share of the members that train in a round, in (0, 1]; at least one does.
        samples: of each node of the topology, its weight in the mean; None for equal weights.
        outer: steps on the mean of theta - theta_j: SGD(1) is the paper's average; with momentum
            or AdamW it is FedAvgM or FedAdam (2003.00295).
        compressor: how theta - theta_j is written on the wire.
        aggregation: the rule by which these become one, see `DiLoCo`; with `samples`, one
            that is `weighted`.
        average_state: average the inner optimizer's moments as well, dense, instead of leaving
            each node its own: with AdamW three times the bytes.
    """

    inner_steps: int = 50
    fraction: float = 1.0
    samples: Sequence[float] | None = None
    outer: LocalOptimizer = field(default_factory=lambda: SGD(lr=1.0))
    compressor: Compressor = field(default_factory=Dense)
    aggregation: Aggregation = field(default_factory=Mean)
    average_state: bool = False

    def __post_init__(self) -> None:
        if self.inner_steps < 1:
            raise ValueError(f"strategy.inner_steps={self.inner_steps}: must be >= 1")
        if not 0 < self.fraction <= 1:
            raise ValueError(
                f"strategy.fraction={self.fraction}: must be in (0, 1]; the paper has 0.1"
            )
        if self.samples is not None:
            object.__setattr__(self, "samples", tuple(float(x) for x in self.samples))
            if not all(0 < x < float("inf") for x in self.samples):
                raise ValueError(f"strategy.samples={list(self.samples)}: must be numbers > 0")
            check_weights(self.aggregation, torch.tensor(self.samples))

    @property
    def passes(self) -> float:
        return self.outer.passes + 3.0  # the outer step, and theta - params

    @property
    def node_state(self) -> NodeState:
        gathers = not self.aggregation.summable
        summed = isinstance(self.compressor, Dense) and not gathers
        return NodeState(sends=None if summed else self.compressor, gathers=gathers)

    def start(self, sim: Simulation) -> None:
        n = sim.fleet.n_nodes
        if self.samples is not None and len(self.samples) != n:
            raise ValueError(
                f"strategy.samples: {len(self.samples)} numbers, one is needed for each of the "
                f"{n} nodes"
            )
        super().start(sim)

    def init(self, sim: Simulation) -> Shared:
        theta, local = sim.initial_params(), sim.fleet.local_state if self.average_state else {}
        moments = {f"local.{name}": rows[0] for name, rows in local.items()}
        return {"theta": theta, "outer": self.outer.init(theta), **moments}

    def run(self, sim: Simulation) -> Program:
        s, holders = sim.shared, None
        names, ages = self._moments(sim)
        while True:
            group = yield sim.coordinator.round()
            clients = yield from self._clients(group, holders)
            theta = clients.params = s["theta"]
            for name in names + ages:
                clients[name] = s[name]
            steps = clients.train(self.inner_steps)
            delta = clients.rows(lambda params, theta=theta: theta - params, "params").lasting()
            average = partial(clients.average, weights=self._weights(clients), after=steps)
            mean = average(delta, self.compressor, rule=self.aggregation)
            moments = [average(clients[name].lasting(), self._dense(sim)) for name in names]
            yield sim.all_of([mean, *moments])
            if mean.value is not None:
                s["theta"], s["outer"] = self.outer.step(theta, mean.value, s["outer"])
                s.update((k, v.value) for k, v in zip(names, moments) if v.value is not None)
                s.update((name, s[name] + self.inner_steps) for name in ages)
                holders = set(clients.online.ids)

    def consensus(self, sim: Simulation) -> Tensor:
        """The average, as it was after the last round."""
        return sim.shared["theta"]

    def _clients(self, group: Group, holders: set[int] | None) -> Program:
        """The members that train in this round, once they hold the model."""
        if self.fraction == 1:
            return group
        sim, n = group.sim, min(len(group), max(1, round(self.fraction * len(group))))
        rng = sim.rng("clients", sim.rounds)
        chosen = sorted(rng.choice(group.ids, n, replace=False).tolist())
        donors = sorted(set(chosen if holders is None else holders) & set(group.online.ids))
        late = [i for i in chosen if i not in donors]
        if donors and late:
            donor = int(rng.choice(donors))
            asks = Group(sim, [donor, *late], group.round)
            have = yield asks.broadcast(donor, sim.shared["theta"])
            chosen = [i for i in chosen if i in donors or i in have]
        return Group(sim, chosen, group.round)

    def _weights(self, clients: Group) -> Tensor | None:
        return None if self.samples is None else torch.tensor(self.samples)[clients.index]

    def _dense(self, sim: Simulation) -> Compressor:
        """How moments are written: nothing is left out of them."""
        return self.compressor if isinstance(self.compressor, Dense) else sim.dense

    def _moments(self, sim: Simulation) -> tuple[list[str], list[str]]:
        """Names of the rows that are averaged beside the parameters, and of their ages."""
        if not self.average_state:
            return [], []
        widths = {f"local.{k}": rows.shape[1] for k, rows in sim.fleet.local_state.items()}
        odd = {width for width in widths.values()} - {1, sim.fleet.layout.numel}
        if odd:
            raise ValueError(
                f"strategy.average_state=true: {type(sim.fleet.local).__name__} keeps moments of "
                "a part of the columns; use local=adamw, lion or sgd, or average_state=false"
            )
        ages = [name for name in widths if name.endswith("age")]
        return [name for name in widths if name not in ages], ages
