"""Rows: arithmetic on named rows, written as functions of blocks.

A `Group` and a `Node` both index the fleet's rows. Maths is a function of `[b, P]` blocks: it is
called with pieces that fit the cache instead of with the whole fleet.

Legend: n nodes, b nodes of a block, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import simpy
import torch
from torch import Tensor

from sim.compute.block import Block
from sim.compute.layout import Fragment
from sim.compute.work import Work
from sim.payload import Compressor, Payload

if TYPE_CHECKING:
    from sim.compute.fleet import Fleet
    from sim.simulation import Simulation


class Lazy:
    """Rows that are evaluated block by block when a collective or a reader needs them.

    Args:
        fleet: whose rows.
        ids: nodes, int64 [n].
        fn: block of nodes [b] -> Tensor [b, P].
        names: of the rows that it reads.
        lasts: see `lasting`.
    """

    def __init__(
        self,
        fleet: Fleet,
        ids: np.ndarray,
        fn: Callable[[np.ndarray], Tensor],
        names: Iterable[str] = (),
        lasts: bool = False,
    ) -> None:
        self._fleet, self.ids, self._fn = fleet, ids, fn
        self.names, self.lasts = frozenset(names), lasts

    def lasting(self) -> Lazy:
        """The same, with the promise that nobody writes what it reads while it is sent.

        A collective whose result is their mean then reads them when that is due, and holds no
        copies meanwhile. Whatever `fn` takes from elsewhere must last as well.
        """
        return Lazy(self._fleet, self.ids, self._fn, self.names, lasts=True)

    def block(self, ids: np.ndarray) -> Tensor:
        """The rows [b, P] of some of the nodes."""
        return self._fn(ids)

    def tensor(self) -> Tensor:
        """All rows, [n, P], to read."""
        blocks = self._fleet.map(self._fn, self.ids)
        if not blocks:
            return self._fleet.initial.new_empty(0, self._fleet.layout.numel)
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


class Rows:
    """The named rows of some nodes.

    Args:
        sim: the run.
        ids: nodes, ascending.
        single: the value of a computation is its only row, [P] instead of [1, P].
        fragment: the columns that are meant by a row; all of them if None.
    """

    def __init__(
        self,
        sim: Simulation,
        ids: list[int],
        *,
        single: bool = False,
        fragment: Fragment | None = None,
    ) -> None:
        self.sim = sim
        self.index = np.array(ids, dtype=np.int64)
        self._single, self.fragment = single, fragment
        self._departures = sim.departures[self.index]

    @property
    def present(self) -> np.ndarray:
        """Those that have not left since the rows were named; one that came back lost its rows."""
        if self._single:
            return self.index
        stayed = self.sim.departures[self.index] == self._departures
        return self.index[stayed & np.isin(self.index, list(self.sim.online))]

    def __getitem__(self, name: str) -> Lazy:
        """A lazy handle on the rows of a name; a name never written holds zeros."""
        fleet, fragment = self.sim.fleet, self.fragment
        if fragment is None:
            return Lazy(fleet, self.index, lambda ids: fleet.get(name, ids), {name})
        return Lazy(fleet, self.index, lambda ids: fragment.take(fleet.get(name, ids)), {name})

    def __setitem__(self, name: str, value: Tensor | Lazy) -> None:
        fleet = self.sim.fleet
        if isinstance(value, Lazy):
            fleet.table(name)

            def write(ids: np.ndarray) -> None:
                fleet.put(name, ids, self._whole(name, ids, value.block(ids)))

            fleet.map(write, self.index)
        elif self.fragment is None:
            fleet.put(name, self.index, value)
        else:
            fleet.put(name, self.index, self._whole(name, self.index, value))
        if name == "params":
            self.sim.charge_step(self.index, self.fragment)

    def rows(self, fn: Callable[..., Tensor], *values: str | Tensor | Lazy) -> Lazy:
        """`fn(*blocks)`, one block per value: rows of a name, lazy rows, or a tensor [n, P].

        Evaluated when read; a name is then read as it is at that time.
        """
        sources = [self._source(value) for value in values]
        names = {value for value in values if isinstance(value, str)}
        names = names.union(*(value.names for value in values if isinstance(value, Lazy)))
        return Lazy(
            self.sim.fleet, self.index, lambda ids: fn(*(source(ids) for source in sources)), names
        )

    def update(self, fn: Callable[..., Tensor], name: str, *values: str | Tensor | Lazy) -> None:
        """`fn(*blocks)` replaces the rows of the first name."""
        self[name] = self.rows(fn, name, *values)

    def apply(self, fn: Callable[[Block], None]) -> None:
        """`fn(rows)` for each block of the nodes, to read and write several of their rows at once.

        For rows beside the parameters, whose setting is charged; assign those afterwards.
        """
        fleet = self.sim.fleet
        fleet.map(lambda ids: fn(Block(fleet, ids)), self.index)

    def reduce(self, fn: Callable[..., Tensor], *values: str | Tensor | Lazy) -> Tensor:
        """The sum over the nodes of `fn`'s rows, [P], added up in order of nodes."""
        lazy, fleet = self.rows(fn, *values), self.sim.fleet
        sums = fleet.map(lambda ids: lazy.block(ids).sum(0), self.index)
        return sum(sums, fleet.initial.new_zeros(()))

    def grad(self, steps: int = 1) -> Work:
        """Gradients at the parameters as they are now; rows may be written meanwhile.

        Only nodes that are present compute, and what they had not finished before is dropped.

        Args:
            steps: batches over which each node averages, one after the other.
        """
        _check_steps(steps)
        return self.sim.compute(self.present, int(steps), trains=False, single=self._single)

    def train(self, steps: int, gates: Mapping[Fragment, simpy.Event] | None = None) -> Work:
        """Local steps with the inner optimizer; until it ends the rows cannot be used.

        Args:
            gates: what the first step waits for: the forward pass through a fragment, not before
                its event. Then, even if there are none in it, the steps see the rows as they are
                at their end, so what an event brings can be written once it has fired.
        """
        _check_steps(steps)
        return self.sim.compute(
            self.present, int(steps), trains=True, single=self._single, gates=gates
        )

    def encode(self, compressor: Compressor, x: Lazy | Tensor) -> Payload:
        """Encode rows [n, P]; the codec's per-node state is kept by the fleet."""
        source, fleet = self._source(x), self.sim.fleet
        layout = fleet.layout if self.fragment is None else self.fragment.layout
        known = fleet.shard.exchanges and isinstance(x, Tensor)
        known = known and fleet.codecs.is_stateless(compressor, layout)

        def encode(ids: np.ndarray) -> Payload:
            return fleet.encode(compressor, ids, source(ids), self.fragment)

        return Payload.cat(fleet.map(encode, self.index, everywhere=known))

    def _whole(self, name: str, ids: np.ndarray, columns: Tensor) -> Tensor:
        """Rows [b, P] in which a fragment's columns are replaced."""
        if self.fragment is None:
            return columns
        return self.fragment.replaced(self.sim.fleet.get(name, ids), columns)

    def _source(self, value: str | Tensor | Lazy) -> Callable[[np.ndarray], Tensor]:
        """Any operand as a function from nodes to their block."""
        if isinstance(value, str):
            return self[value].block
        if isinstance(value, Lazy):
            return value.block
        if value.dim() == 1:
            return lambda ids: value.expand(len(ids), -1)
        assert len(value) == len(self.index), f"{len(value)} rows for {len(self.index)} nodes"
        start = self.index

        def rows(ids: np.ndarray) -> Tensor:
            at = torch.from_numpy(np.searchsorted(start, ids))
            return value if len(ids) == len(start) else value[at]

        return rows


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps={steps}: must be an integer >= 1")


def mean_params(sim: Simulation) -> Tensor:
    """The mean [P] of the parameters of those online, or the initial ones if nobody is.

    Of a node that is training it takes what it had before.
    """
    ids = sorted(sim.online)
    if not ids:
        return sim.initial_params()
    fleet, start = sim.fleet, sim.initial_params().new_zeros(())
    sums = fleet.map(lambda block: fleet.committed(block).sum(0), np.array(ids, dtype=np.int64))
    return sum(sums, start) / len(ids)


def spread(sim: Simulation) -> float:
    """How far those online are from `mean_params`: the root of the mean squared distance.

    0 if all are equal, or nobody is online.
    """
    ids = np.array(sorted(sim.online), dtype=np.int64)
    if not len(ids):
        return 0.0
    fleet, mean = sim.fleet, mean_params(sim)

    def squares(block: np.ndarray) -> Tensor:
        return (fleet.committed(block) - mean).square_().sum()

    return float((sum(fleet.map(squares, ids)) / len(ids)).sqrt())  # type: ignore[union-attr]
