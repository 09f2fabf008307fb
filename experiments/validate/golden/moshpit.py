"""Averaging protocols under failures, as the experiments of yandex-research/moshpit-sgd have them.

Each node has a scalar; who is not alive in a round does not take part in it, and keeps its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import simpy
import torch
from scipy import sparse
from torch import Tensor

from experiments.experiment import Experiment
from experiments.validate.golden.case import Case
from experiments.validate.golden.problems import Forced
from experiments.validate.golden.recorders import rows_of
from experiments.validate.row import Row
from optimizers import DPSGD, SGD, Moshpit
from optimizers.strategy import GroupStrategy
from sim.budget import Budget
from sim.compute.layout import Layout
from sim.coordinators import Coordinator
from sim.simulation import Simulation
from topologies import complete


def rows(case: Case) -> Iterator[Row]:
    """All nodes' values after each round: of Moshpit, gossip and all-reduce, if they are given."""
    alive = case["alive"].bool()
    expected = (case.count("rounds", len(alive)), case.count("nodes", len(case["init"])))
    if alive.shape != expected:
        raise ValueError(
            f"{case.name}: alive is of {tuple(alive.shape)}, `meta` of {expected[0]} rounds and "
            f"{expected[1]} nodes: they do not belong together"
        )
    if "moshpit_values" in case:
        size, dims = case.count("grid_size"), case.count("grid_dims")
        grid = Moshpit(1, dims, size, case["moshpit_cell"].tolist())
        yield case.compare("moshpit", _run(case, grid, alive), case["moshpit_values"])
    if "gossip_values" in case:
        matrix = case["gossip_matrix"].double()
        matrix = matrix / matrix.sum(1, keepdim=True)
        gossip = DPSGD(weights=sparse.csr_array(matrix.numpy()), missing="rescale")
        yield case.compare("gossip", _run(case, gossip, alive), case["gossip_values"])
    if "allreduce_values" in case:
        n = alive.shape[1]
        everybody = Moshpit(1, dims=1, size=n, cells=range(n))  # one group, if all of it is alive
        values = _run(case, everybody, alive.all(1, keepdim=True).expand_as(alive))
        yield case.compare("allreduce", values, case["allreduce_values"])


def _run(case: Case, strategy: GroupStrategy, alive: Tensor) -> Tensor:
    """The values after each round, [rounds, N], of a strategy with members as they are alive."""
    start = case["init"].double()
    task = Forced(start.new_zeros(len(alive), len(start), 1), Layout({"x": (1,)}), start[:1] * 0)
    members = Members(alive)
    sim = Experiment(
        task,
        complete(alive.shape[1]),
        strategy,
        local=SGD(1.0),
        coordinator=members,
        budget=Budget(steps=len(alive) + 1),
    ).build()
    sim.group().params = start[:, None]
    sim.start()
    sim.run(until=members.ended)
    return torch.stack(members.values[1:])[..., 0]


@dataclass
class Members(Coordinator):
    """Rounds of those who are alive in a table; nobody leaves, so everybody keeps its parameters.

    Args:
        alive: bool [rounds, N]; after the last round no other one opens.
    """

    alive: Tensor
    values: list[Tensor] = field(default_factory=list)
    """The parameters of all at the start and after each round, [N, P] each."""
    ready: set[int] = field(default_factory=set, init=False)
    listens: bool = field(default=False, init=False)
    ended: simpy.Event = field(init=False, repr=False)
    _sim: Simulation = field(init=False, repr=False)

    def start(self, sim: Simulation) -> None:
        self._sim, self.ready, self.ended = sim, set(sim.online), sim.event()

    def round(self) -> simpy.Event:
        self.values.append(rows_of(self._sim).clone())
        if len(self.values) > len(self.alive):
            self.ended.succeed()
            return self._sim.event()  # which never fires
        here = self.alive[len(self.values) - 1].nonzero().ravel().tolist()
        return self._sim.event().succeed(self._sim.open_round(here))

    def arrive(self, node: int) -> None: ...

    def depart(self, node: int) -> None: ...
