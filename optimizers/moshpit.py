"""Moshpit SGD: averaging in small groups on a virtual grid (Ryabinin et al., arXiv 2103.03239)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from optimizers.aggregation import check_forgets
from optimizers.strategy import GroupStrategy, NodeState, Program, Shared
from sim.aggregation import Aggregation, Mean
from sim.payload import Dense
from sim.rows import mean_params, spread
from sim.simulation import Simulation


def grid_lines(cells: np.ndarray, size: int, dims: int) -> np.ndarray:
    """On which line of the grid each node is, along each axis: int64 [dims, n].

    Args:
        cells: of the nodes, numbers below size^dims, row by row.
        size: M, cells a side.
        dims: d, axes.

    >>> grid_lines(np.arange(4), 2, 2)  # along axis 0 a column each, along axis 1 a row
    array([[0, 1, 0, 1],
           [0, 0, 1, 1]])
    """
    places = np.unravel_index(cells, (size,) * dims)
    lines = np.zeros((dims, len(cells)), dtype=np.int64)
    for axis in range(dims):
        for place in (place for other, place in enumerate(places) if other != axis):
            lines[axis] = lines[axis] * size + place
    return lines


@dataclass(frozen=True)
class Moshpit(GroupStrategy):
    """Moshpit SGD (Algorithm 2 of arXiv 2103.03239) on the grid of its Algorithm 1.

    Nodes have cells of a grid with d axes of M cells. After every H local steps, those who share
    all coordinates but one average, whoever of them is there: along axis 1 mod d the first time,
    2 mod d the second, and so on. On a full grid d of these are the exact mean of M^d nodes, at the
    price of collectives of M. A node whose group did not get to its mean keeps what it has; it
    counts for more later: a mean is weighted by the steps since a node's last one.

    How a group averages is the network's: `network.all_reduce=butterfly` is the paper's.

    Args:
        inner_steps: H, local steps with the inner optimizer, whose state stays on its node.
        dims: d, axes of the grid.
        size: M, cells a side, M^d at least the number of nodes; the least of these if None.
        cells: of each node, row by row; drawn at random if None.
        average_state: average the inner optimizer's moments as well, those of every parameter.
        aggregation: the rule by which the rows of a group become one, see
            `optimizers.aggregation`; with one that has no form for unequal weights, all count the
            same.
    """

    inner_steps: int = 10
    dims: int = 2
    size: int | None = None
    cells: Sequence[int] | None = None
    average_state: bool = False
    aggregation: Aggregation = field(default_factory=Mean)

    def __post_init__(self) -> None:
        check_forgets(self.aggregation, "groups of a grid are others each time")
        if self.inner_steps < 1:
            raise ValueError(f"strategy.inner_steps={self.inner_steps}: must be >= 1")
        if not 1 <= self.dims <= 16:
            raise ValueError(f"strategy.dims={self.dims}: must be between 1 and 16 axes")
        if self.size is not None and self.size < 1:
            raise ValueError(f"strategy.size={self.size}: must be >= 1 cells a side")

    @property
    def passes(self) -> float:
        return 2.0  # the mean is read, and parameters written

    @property
    def node_state(self) -> NodeState:
        return NodeState(sends=Dense(), gathers=not self.aggregation.summable)

    def init(self, sim: Simulation) -> Shared:
        return {"params": sim.initial_params(), "means": torch.zeros(1, dtype=torch.int64)}

    def start(self, sim: Simulation) -> None:
        self._lines(sim)  # refuses a grid that is too small
        super().start(sim)

    def run(self, sim: Simulation) -> Program:
        s, lines, since = sim.shared, self._lines(sim), sim.numbers("moshpit.steps")
        names = ["params", *(self._moments(sim) if self.average_state else [])]
        while True:
            group, means = (yield sim.coordinator.round()), []
            s["means"] = s["means"] + 1
            since[group.index] += self.inner_steps
            line = lines[int(s["means"]) % self.dims, group.index]
            for number in np.unique(line):
                part = group.among(group.index[line == number])
                steps, rule = part.train(self.inner_steps), self.aggregation
                weights = _unequal(since[part.index]) if rule.weighted else None
                for name in names:
                    rows = part[name].lasting()
                    event = part.average(rows, sim.dense, weights, rule=rule, after=steps)
                    means.append((part, name, event))
            for part, name, event in means:
                mean = yield event
                if mean is not None:
                    part.online[name] = mean
                    since[part.online.index] = 0.0
            group.round.hear(group.index, len(group))  # there was no more to be heard

    def _moments(self, sim: Simulation) -> list[str]:
        """Rows of the inner optimizer that have a value for each parameter."""
        width, state = sim.fleet.layout.numel, sim.fleet.local_state
        return [f"local.{name}" for name, rows in state.items() if rows.shape[1] == width > 1]

    def _lines(self, sim: Simulation) -> np.ndarray:
        """As `grid_lines`, of all nodes."""
        n = sim.fleet.n_nodes
        least = next(size for size in range(1, n + 1) if size**self.dims >= n)
        size = self.size or least
        if size < least:
            raise ValueError(
                f"strategy.size={size}: {size}^{self.dims} cells are too few for {n} nodes; the "
                f"least is {least}"
            )
        if self.cells is None:
            cells = sim.rng("moshpit").choice(size**self.dims, n, replace=False)
        else:
            cells = np.array(self.cells, dtype=np.int64)
        if len(np.unique(cells)) < n or not ((cells >= 0) & (cells < size**self.dims)).all():
            raise ValueError(
                f"strategy.cells: must be {n} different numbers from 0 to {size**self.dims - 1}"
            )
        return grid_lines(cells, size, self.dims)

    def consensus(self, sim: Simulation) -> Tensor:
        """The mean of the parameters of those online."""
        return mean_params(sim)

    def metrics(self, sim: Simulation) -> dict[str, float]:
        """How far nodes are from that mean."""
        return {"spread": spread(sim)}


def _unequal(steps: np.ndarray) -> Tensor | None:
    """Weights of a mean, if they are not all the same."""
    return None if (steps == steps[:1]).all() else torch.from_numpy(steps.copy())
