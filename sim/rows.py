"""Rows: arithmetic on named rows, written as functions of blocks.

A `Group` and a `Node` both index the fleet's rows. Maths is a function of `[b, P]` blocks: it is
called with pieces that fit the cache instead of with the whole fleet.

Legend: n nodes, b nodes of a block, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import simpy
import torch
from torch import Tensor

from sim.compute.block import Block
from sim.compute.crew import power_of_two
from sim.compute.layout import Fragment, Layout
from sim.compute.placed import Placed
from sim.compute.work import Work
from sim.payload import Compressor, Payload

if TYPE_CHECKING:
    from sim.compute.fleet import Fleet
    from sim.simulation import Simulation

_AT_ONCE = 2**18
"""Values of a piece of a block: 1 MB of float32. What is made on the way from rows to rows then
stays in a core's cache, in memory that is used again."""
Columns = Callable[[slice, Tensor], Tensor]
"""Rows [n, P] to be read by columns: `fn(at, out)` gives c of them, maybe in `out` [n, c]."""


class Lazy:
    """Rows that are evaluated block by block when a collective or a reader needs them.

    Args:
        fleet: whose rows.
        ids: nodes, int64 [n].
        fn: block of nodes [b] -> Tensor [b, P].
        names: of the rows that it reads.
        lasts: see `lasting`.
        name: of the rows that it is, if it is these and nothing else.
    """

    def __init__(
        self,
        fleet: Fleet,
        ids: np.ndarray,
        fn: Callable[[np.ndarray], Tensor],
        names: Iterable[str] = (),
        lasts: bool = False,
        name: str | None = None,
    ) -> None:
        self._fleet, self.ids, self._fn = fleet, ids, fn
        self.names, self.lasts, self.name = frozenset(names), lasts, name

    def lasting(self) -> Lazy:
        """The same, with the promise that nobody writes what it reads while it is sent.

        A collective whose result is their mean then reads them when that is due, and holds no
        copies meanwhile. Whatever `fn` takes from elsewhere must last as well.
        """
        return Lazy(self._fleet, self.ids, self._fn, self.names, lasts=True, name=self.name)

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
        stayed, online = self.sim.departures[self.index] == self._departures, self.sim.online
        here = np.array([node in online for node in self.index.tolist()], dtype=bool)
        return self.index[stayed & here]

    def __getitem__(self, name: str) -> Lazy:
        """A lazy handle on the rows of a name; a name never written holds zeros."""
        fleet, fragment = self.sim.fleet, self.fragment
        if fragment is None:
            return Lazy(fleet, self.index, lambda ids: fleet.get(name, ids), {name}, name=name)
        return Lazy(fleet, self.index, lambda ids: fragment.take(fleet.get(name, ids)), {name})

    def __setitem__(self, name: str, value: Tensor | Lazy) -> None:
        fleet = self.sim.fleet
        if isinstance(value, Lazy):
            fleet.table(name)

            def write(ids: np.ndarray) -> None:
                for some in _pieces(fleet, ids):
                    fleet.put(name, some, self._whole(name, some, value.block(some)))

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

    def change(self, fn: Callable[..., object], name: str, *values: str | Tensor | Lazy) -> None:
        """`fn(*blocks)` changes the first of them, whole rows of the first name, in place.

        As `update`, without new memory; `fn` must not write the others.
        """
        assert self.fragment is None, "rows are changed whole"
        fleet = self.sim.fleet
        sources = [
            partial(fleet.view, value) if isinstance(value, str) else self._source(value)
            for value in values
        ]

        def change(ids: np.ndarray) -> None:
            for some in _pieces(fleet, ids):
                with Block(fleet, some).in_place(name) as placed:
                    rows = placed.read()
                    fn(rows, *(source(some) for source in sources))
                    placed.write(rows)

        fleet.table(name)
        if self._single and (own := fleet.place(name, self.index)) is not None:
            fn(own.read(), *(source(self.index) for source in sources))  # where it lies
        elif self._single:
            change(self.index)  # a row is changed sooner than a worker is asked
        else:
            fleet.map(change, self.index)
        if name == "params":
            self.sim.charge_step(self.index)

    def columns(self, name: str) -> Columns | Placed:
        """The rows of a name, as they are when columns are read; where they lie if they can be."""
        fleet = self.sim.fleet
        if fleet.shard.exchanges:
            rows = fleet.get(name, self.index)
            return lambda at, out: out.copy_(rows[:, at])
        if len(self.index) and (placed := fleet.place(name, self.index)) is not None:
            return placed
        return fleet.table(name).columns(self.index)

    def apply(self, fn: Callable[[Block], None]) -> None:
        """`fn(rows)` for each block of the nodes, to read and write several of their rows at once.

        For rows beside the parameters, whose setting is charged; assign those afterwards.
        """
        fleet = self.sim.fleet
        fleet.map(lambda ids: fn(Block(fleet, ids)), self.index)

    def reduce(self, fn: Callable[..., Tensor], *values: str | Tensor | Lazy) -> Tensor:
        """The sum over the nodes of `fn`'s rows, [P], added up in order of nodes."""
        lazy, fleet = self.rows(fn, *values), self.sim.fleet
        start = fleet.initial.new_zeros(())

        def total(ids: np.ndarray) -> Tensor:
            return sum((lazy.block(some).sum(0) for some in _pieces(fleet, ids)), start)

        return sum(fleet.map(total, self.index), start)

    def grad(self, steps: int = 1, *, into: str | None = None) -> Work:
        """Gradients at the parameters as they are now; rows may be written meanwhile.

        Only nodes that are present compute, and what they had not finished before is dropped.

        Args:
            steps: batches over which each node averages, one after the other.
            into: they become rows of this name, which are there when the work ends, instead of its
                value: memory that is used again, not new memory in each round.
        """
        _check_steps(steps)
        work = self.sim.compute(self.present, int(steps), trains=False, single=self._single)
        return work if into is None else work.then(_Into(into))

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
            if not isinstance(x, Lazy) or fleet.is_meta:
                return fleet.encode(compressor, ids, source(ids), self.fragment)
            rows = fleet.lend(x.name, ids) if x.name else self._evaluated(x, ids, layout)
            return fleet.encode(compressor, ids, rows, self.fragment).apart_from(rows)

        return Payload.cat(fleet.map(encode, self.index, everywhere=known))

    def add(self, name: str, payload: Payload, scale: float = 1.0) -> None:
        """Add `scale` times what a payload of the nodes holds to rows beside the parameters."""

        def add(rows: Block) -> None:
            with rows.in_place(name) as placed:
                payload.rows(_positions(self.index, rows.ids)).add_to(placed, scale)

        self.apply(add)

    def _evaluated(self, x: Lazy, ids: np.ndarray, layout: Layout) -> Tensor:
        """Lazy rows in memory of this thread."""
        rows, first = self.sim.fleet.space("evaluated", (len(ids), layout.numel)), 0
        for some in _pieces(self.sim.fleet, ids):
            rows[first : first + len(some)] = x.block(some)
            first += len(some)
        return rows

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
        index = self.index
        return lambda ids: value if len(ids) == len(index) else value[_positions(index, ids)]


@dataclass(frozen=True)
class _Into:
    """What keeps gradients as rows of a name, and leaves nothing of them."""

    name: str

    def __call__(self, rows: Block, grad: Tensor) -> Tensor:
        rows[self.name] = grad
        return grad[:, :0]


def _positions(index: np.ndarray, ids: np.ndarray) -> slice | Tensor:
    """Where nodes stand in an index that has them all: a slice if they follow each other."""
    at = np.searchsorted(index, ids)
    if len(at) and at[-1] - at[0] + 1 == len(at):
        return slice(int(at[0]), int(at[-1]) + 1)
    return torch.from_numpy(at)


def _pieces(fleet: Fleet, ids: np.ndarray) -> list[np.ndarray]:
    """Nodes of a block, a few at a time, cut at fixed nodes; all of them but on a CPU."""
    if len(ids) <= 1 or fleet.initial.device.type != "cpu":
        return [ids]
    size = power_of_two(_AT_ONCE / fleet.layout.numel, 1, fleet.block)
    return np.split(ids, np.flatnonzero(np.diff(ids // size)) + 1)


def _check_steps(steps: int) -> None:
    if not isinstance(steps, int | np.integer) or steps < 1:
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
