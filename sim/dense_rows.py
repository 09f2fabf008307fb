"""DenseRows: rows of which every value is sent, and only sums of them are wanted.

Rows that last are read when a sum is due. Others are kept in the type that travels, in one piece
for all members: in bfloat16 half a row of memory each. Of several processes each has the rows of
its own nodes; for a mean their sums are what the processes exchange.

Legend: n members, b of a block, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sim.payload import Dense
from sim.rows import Columns, Lazy
from sim.wire import Wire

if TYPE_CHECKING:
    from sim.group import Group

_AT_ONCE = 2**18
"""Values that are encoded at a time: 1 MB of float32. Whole blocks would leave holes in the heap,
eight times as large, where what is made on the way to what is sent has been."""


class DenseRows:
    """What the members of a group send; `mean` or `columns` ends it.

    Args:
        group: who sends.
        codec: the type on the wire.
        x: lazy rows, as they are now.
    """

    def __init__(self, group: Group, codec: Dense, x: Lazy) -> None:
        self._sim, self._fleet, self._fragment = group.sim, group.sim.fleet, group.fragment
        self._members = self._ids = group.index
        self.codec, self._x = codec, x
        layout = self._fleet.layout if group.fragment is None else group.fragment.layout
        self._columns = layout.numel
        self._kept: Tensor | None = None
        self._left: dict[int, Tensor] = {}  # what members that left had sent, [P]
        self._writes: dict[str, np.ndarray] = {}
        if x.lasts:
            self._writes = {name: self._fleet.table(name).writes.copy() for name in x.names}
            self._sim.watch(self)
        else:
            self._keep()

    def leave(self, node: int) -> None:
        """A member left and loses its rows; its share may have arrived before."""
        if node in self._ids and node not in self._left:
            with self._sim.profile("strategy"):
                self._left[node] = self._fleet.map(self._sent, np.array([node]))[0][0]

    def mean(self, contributors: Sequence[int], weights: Tensor | None) -> Tensor | None:
        """The (weighted) mean of some members' rows, [P], added up in order of nodes.

        Args:
            contributors: ascending; there is no mean of none.
            weights: of the contributors, in their order.

        Raises:
            RuntimeError: rows that should last were written.
        """
        self._sim.unwatch(self)
        if not contributors:
            return None
        fleet, wanted = self._fleet, np.array(contributors, dtype=np.int64)
        given = torch.ones(len(wanted)) if weights is None else torch.as_tensor(weights)
        weight = given.to(fleet.initial)

        def weighted(ids: np.ndarray) -> Tensor:
            return weight[torch.from_numpy(np.searchsorted(wanted, ids))] @ self._read(ids)

        sums = fleet.map(weighted, wanted)
        return sum(sums, fleet.initial.new_zeros(())) / weight.sum()

    def columns(self) -> Columns:
        """What all members sent, as it arrives, by columns.

        Raises:
            RuntimeError: rows that should last were written.
        """
        self._sim.unwatch(self)
        fleet, ids = self._fleet, self._members
        if fleet.shard.exchanges:
            rows = fleet.shard.fetch(self._read, ids)
            return lambda at, out: out.copy_(rows[:, at])
        if (kept := self._kept) is not None:
            return lambda at, out: out.copy_(kept[:, at])
        assert self._x.name is not None, "what lasts is the rows of a name"
        read, lost = fleet.table(self._x.name).columns(ids), np.isin(ids, list(self._left))
        self._check_lasted(ids[~lost])

        def columns(at: slice, out: Tensor) -> Tensor:
            rows = read(at, out)
            for i in np.flatnonzero(lost).tolist():
                rows[i] = self._left[int(ids[i])][at]
            return Wire(rows, dtype=self.codec.dtype).data

        return columns

    def _read(self, ids: np.ndarray) -> Tensor:
        rows = self._fleet.initial.new_empty(len(ids), self._columns)
        return (self._read_again if self._kept is None else self._read_kept)(ids, rows)

    def _keep(self) -> None:
        fleet, members = self._fleet, self._ids
        self._ids = members[fleet.shard.owns(members)]
        native = self.codec.dtype == "native"
        dtype = fleet.initial.dtype if native else getattr(torch, self.codec.dtype)
        kept = self._kept = fleet.initial.new_empty((len(self._ids), self._columns), dtype=dtype)

        def keep(ids: np.ndarray) -> None:
            for some in self._pieces(ids):
                kept[_at(np.searchsorted(self._ids, some))] = self._sent(some).to(dtype)

        fleet.map(keep, members)

    def _read_kept(self, ids: np.ndarray, out: Tensor) -> Tensor:
        assert self._kept is not None
        return out.copy_(self._kept[_at(np.searchsorted(self._ids, ids))])

    def _read_again(self, ids: np.ndarray, out: Tensor) -> Tensor:
        here = np.array([node not in self._left for node in ids.tolist()])
        self._check_lasted(ids[here])
        for places in self._pieces(np.flatnonzero(here)):
            out[_at(places)] = self._sent(ids[places])
        for i in np.flatnonzero(~here).tolist():
            out[i] = self._left[int(ids[i])]
        return out

    def _sent(self, ids: np.ndarray) -> Tensor:
        """Rows [b, P] as they arrive."""
        return self._fleet.encode(self.codec, ids, self._x.block(ids), self._fragment).body

    def _pieces(self, ids: np.ndarray) -> Iterator[np.ndarray]:
        size = max(1, _AT_ONCE // self._columns)
        return (ids[i : i + size] for i in range(0, len(ids), size))

    def _check_lasted(self, ids: np.ndarray) -> None:
        for name, before in self._writes.items():
            changed = ids[self._fleet.table(name).writes[ids] != before[ids]]
            if len(changed):
                raise RuntimeError(
                    f"rows {name!r} of nodes {changed[:3]} were written while they were sent: "
                    "rows that do not last must not be `lasting`"
                )


def _at(places: np.ndarray) -> slice | Tensor:
    """An index of rows: a slice, so a view, if they are one after the other."""
    if places[-1] - places[0] + 1 == len(places):
        return slice(int(places[0]), int(places[-1]) + 1)
    return torch.from_numpy(places)
