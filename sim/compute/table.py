"""Table: one named row per node, [N, P]; equal replicas share a row (copy on write).

A strategy whose nodes hold the same parameters after each round needs one vector, not N. Hence a
node's row is either *private*, a row of one big tensor that is allocated when first needed, or
*shared*, a reference to a vector that several nodes have in common and nobody writes.

Rows of different nodes may be read and written from several threads at once. Of several processes
each has the private rows of its own nodes; all know which nodes have one, and hold what is shared.

Legend: N nodes in the fleet, n nodes of a call, P values of a row.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sim.compute.placed import Placed

_PRIVATE = -1


class Table:
    """Rows of N nodes.

    Args:
        n_nodes: N.
        default: [P], what every row holds before it is written; rows that are reset return to it.
        dtype: how private rows are kept, if not as the default: bfloat16 halves their memory.
            What is read is in the dtype of the default.
        own: the nodes whose private rows are kept here; all of them if None.
    """

    def __init__(
        self,
        n_nodes: int,
        default: Tensor,
        dtype: torch.dtype | None = None,
        own: range | None = None,
    ) -> None:
        self._own = range(n_nodes) if own is None else own
        self._keeps_all = len(self._own) == n_nodes
        self._news: list[np.ndarray] = []
        self._common: dict[int, Tensor] = {0: default}
        self._next = self._most_common = 1
        self._slot = np.zeros(n_nodes, dtype=np.int64)
        self.writes = np.zeros(n_nodes, dtype=np.int64)
        """How often each node's row was written, int64 [N]."""
        self._private: Tensor | None = None
        self._dtype = dtype or default.dtype
        self._lock = threading.Lock()

    @property
    def default(self) -> Tensor:
        """The row of a node that was never written, [P]."""
        return self._common[0]

    def share(self, ids: np.ndarray, vector: Tensor) -> None:
        """All of these nodes hold `vector` [P]; it must not be written in place afterwards."""
        key = self._next
        self._next += 1
        self._common[key] = vector
        self._slot[ids] = key
        self.writes[ids] += 1
        self._collect()

    def put(self, ids: np.ndarray, rows: Tensor) -> None:
        """Row i of `rows` [n, P] becomes the private row of `ids[i]`; others' are not kept."""
        if self.default.is_meta:  # no values to keep; indexing is slow there
            self._slot[ids] = _PRIVATE
            return
        self.writes[ids] += 1
        if not self._keeps_all:
            mine = self._announced(ids)
            ids, rows = ids[mine], rows[torch.from_numpy(mine)]
        own = self._place(ids)
        if own is None:
            if len(ids):
                self._private_rows().index_copy_(0, self._at(ids), rows.to(self._dtype))
        elif own.data_ptr() != rows.data_ptr() or own.stride() != rows.stride():
            own.copy_(rows)
        self._slot[ids] = _PRIVATE

    def get(self, ids: np.ndarray) -> Tensor:
        """Rows [n, P] to read; a view of one vector with stride 0 when all of them share it."""
        if self.default.is_meta:
            return self.default.expand(len(ids), *self.default.shape)
        shared = self.shared_by_all(ids)
        if shared is not None:
            return shared.expand(len(ids), *self.default.shape)
        if len(ids) == 1:
            return self.row(int(ids[0])).clone()[None]
        return self.gather(ids, self.default.new_empty((len(ids), *self.default.shape)))

    def row(self, node: int) -> Tensor:
        """The row [P] of one node to read at once: it changes when the node's row is written."""
        slot = int(self._slot[node])
        if slot != _PRIVATE:
            return self._common[slot]
        self._check_own(np.array([node]))
        return self._private_rows()[node - self._own.start].to(self.default.dtype)

    def gather(self, ids: np.ndarray, out: Tensor) -> Tensor:
        """Copy rows to `out` [n, P], and return it."""
        slots = self._slot[ids]
        if len(ids) and out.dtype == self._dtype and (slots == _PRIVATE).all():
            own = self._place(ids)
            if own is None:
                return torch.index_select(self._private_rows(), 0, self._at(ids), out=out)
            return out.copy_(own)
        for slot, at in _groups(slots):
            if slot != _PRIVATE:
                rows = self._common[slot]
            else:
                own = self._place(ids[at])
                rows = self._private_rows()[self._at(ids[at])] if own is None else own
            if len(at) == len(ids):
                out.copy_(rows)
            elif len(at) == 1:
                out[int(at[0])].copy_(rows[0] if slot == _PRIVATE else rows)
            else:
                out[torch.from_numpy(at)] = rows.to(out.dtype)
        return out

    def columns(self, ids: np.ndarray) -> Callable[[slice, Tensor], Tensor]:
        """A function that copies some columns of these rows to a tensor [n, c], and returns it.

        Who shares a vector now is read there, even if it gets a row of its own meanwhile.
        """
        slots = self._slot[ids]
        own = self._place(ids) if (slots == _PRIVATE).all() else None
        places = [(int(slot), np.flatnonzero(slots == slot)) for slot in np.unique(slots)]
        common = {slot: self._common[slot] for slot, _ in places if slot != _PRIVATE}

        def read(at: slice, out: Tensor) -> Tensor:
            if own is not None:
                return out.copy_(own[:, at])
            for slot, where in places:
                if slot == _PRIVATE:
                    rows = self._private_rows()[:, at][self._at(ids[where])].to(out.dtype)
                else:
                    rows = common[slot][at]
                out[torch.from_numpy(where)] = rows
            return out

        return read

    def own_rows(self, ids: np.ndarray) -> Tensor | None:
        """The private rows of these nodes themselves, if they lie together in the dtype read."""
        if self.default.is_meta or self._dtype != self.default.dtype or not len(ids):
            return None
        return self._place(ids) if (self._slot[ids] == _PRIVATE).all() else None

    def place(self, ids: np.ndarray) -> Placed | None:
        """The private rows of own nodes, to change where they lie; who shared a row gets a copy.

        None if they are kept in another dtype than they are read in, or have no values.
        """
        if self.default.is_meta or self._dtype != self.default.dtype:
            return None
        sharing = ids[self._slot[ids] != _PRIVATE]
        if len(sharing):
            self.put(sharing, self.get(sharing))
        self._check_own(ids)
        self.writes[ids] += 1
        return Placed(self._private_rows(), ids - self._own.start)

    def shared_by_all(self, ids: np.ndarray) -> Tensor | None:
        """The vector [P] that all of these nodes share, or None if they hold different rows."""
        slots = self._slot[ids]
        if len(slots) and slots[0] != _PRIVATE and (slots == slots[0]).all():
            return self._common[int(slots[0])]
        return None

    def reset(self, ids: np.ndarray) -> None:
        """Give the nodes the default row again: what they knew is lost."""
        self._slot[ids] = 0
        self._collect()

    def news(self) -> np.ndarray:
        """Own nodes that got private rows since this was last asked: the others must be told."""
        told, self._news = self._news, []
        ids = np.unique(np.concatenate(told)) if told else np.empty(0, dtype=np.int64)
        return ids[self._slot[ids] == _PRIVATE]

    def note(self, ids: np.ndarray) -> None:
        """Nodes of another process have got private rows there."""
        self._slot[ids] = _PRIVATE

    @property
    def distinct(self) -> int:
        """How many different vectors the table really holds."""
        private = int((self._slot == _PRIVATE).sum())
        return private + len(np.unique(self._slot[self._slot != _PRIVATE]))

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are held here."""
        vectors = [*self._common.values(), *([] if self._private is None else [self._private])]
        return sum(vector.nbytes for vector in vectors)

    def _private_rows(self) -> Tensor:
        if self._private is None:
            with self._lock:
                if self._private is None:
                    shape = (len(self._own), *self.default.shape)
                    self._private = self.default.new_empty(shape, dtype=self._dtype)
        return self._private

    def _place(self, ids: np.ndarray) -> Tensor | None:
        """The private rows of nodes that follow each other; None if they do not."""
        if not len(ids):
            return None
        first, last = int(ids[0]), int(ids[-1])
        if last - first + 1 != len(ids) or (len(ids) > 1 and (np.diff(ids) != 1).any()):
            return None
        self._check_own(ids)
        return self._private_rows()[first - self._own.start : last + 1 - self._own.start]

    def _at(self, ids: np.ndarray) -> Tensor:
        """Where the private rows of own nodes lie."""
        self._check_own(ids)
        return torch.from_numpy(ids - self._own.start)

    def _announced(self, ids: np.ndarray) -> np.ndarray:
        """Which of these nodes are own ones, bool [n]; the others' slots are set."""
        mine = (ids >= self._own.start) & (ids < self._own.stop)
        if (self._slot[ids] != _PRIVATE).any():
            self._news.append(ids[mine])
        self._slot[ids[~mine]] = _PRIVATE
        return mine

    def _check_own(self, ids: np.ndarray) -> None:
        if self._keeps_all or (ids.min() in self._own and ids.max() in self._own):
            return
        raise RuntimeError(
            f"rows of nodes {ids[:3]} are another process's: what is computed block by block may "
            "use rows of the block's nodes only; read others before"
        )

    def _collect(self) -> None:
        """Drop vectors that nobody holds, once there may be as many as a quarter of the others."""
        if len(self._common) > self._most_common:
            used = set(self._slot.tolist())
            self._common = {k: v for k, v in self._common.items() if k == 0 or k in used}
            self._most_common = len(self._common) * 5 // 4


def _groups(slots: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Each slot that occurs, ascending, and where."""
    order = np.argsort(slots, kind="stable")
    cuts = np.flatnonzero(np.diff(slots[order])) + 1
    return [(int(slots[at[0]]), at) for at in np.split(order, cuts)] if len(slots) else []
