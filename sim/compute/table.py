"""Table: one named row per node, [N, P]; equal replicas share a row (copy on write).

A strategy whose nodes hold the same parameters after each round needs one vector, not N. Hence a
node's row is either *private*, a row of one big tensor that is allocated when first needed, or
*shared*, a reference to a vector that several nodes have in common and nobody writes.

Legend: N nodes in the fleet, n nodes of a call, P values of a row.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_PRIVATE = -1


class Table:
    """Rows of N nodes.

    Args:
        n_nodes: N.
        default: [P], what every row holds before it is written; rows that are reset return to it.
    """

    def __init__(self, n_nodes: int, default: Tensor) -> None:
        self._n = n_nodes
        self._common: dict[int, Tensor] = {0: default}
        self._next = 1
        self._slot = np.zeros(n_nodes, dtype=np.int64)
        self._private: Tensor | None = None

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
        self._collect()

    def put(self, ids: np.ndarray, rows: Tensor) -> None:
        """Row i of `rows` [n, P] becomes the private row of `ids[i]`."""
        if self.default.is_meta:  # no values to keep; indexing is slow there
            self._slot[ids] = _PRIVATE
            return
        if self._private is None:
            self._private = self.default.new_empty((self._n, *self.default.shape))
        if len(ids) == 1:
            self._private[int(ids[0])] = rows[0]
        else:
            self._private[torch.from_numpy(ids)] = rows
        self._slot[ids] = _PRIVATE
        self._collect()

    def get(self, ids: np.ndarray) -> Tensor:
        """Rows [n, P] to read; a view of one vector with stride 0 when all of them share it."""
        if self.default.is_meta:
            return self.default.expand(len(ids), *self.default.shape)
        slots = self._slot[ids]
        first = int(slots[0]) if len(slots) else 0
        if (slots == first).all():
            if first != _PRIVATE:
                return self._common[first].expand(len(ids), *self.default.shape)
            assert self._private is not None
            return self._private[torch.from_numpy(ids)]
        rows = self.default.new_empty((len(ids), *self.default.shape))
        for slot in np.unique(slots):
            where = slots == slot
            at = torch.from_numpy(np.flatnonzero(where))
            rows[at] = self.get(ids[where])
        return rows

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

    @property
    def distinct(self) -> int:
        """How many different vectors the table really holds."""
        private = int((self._slot == _PRIVATE).sum())
        return private + len(np.unique(self._slot[self._slot != _PRIVATE]))

    def _collect(self) -> None:
        if len(self._common) > 1:
            used = set(self._slot.tolist())
            self._common = {k: v for k, v in self._common.items() if k == 0 or k in used}
