"""DenseRows: rows as they are on the wire, of which only a mean is wanted.

They are kept in the type that travels, block by block, so a mean of n rows in bfloat16 takes half
a row of memory per member, and no whole [n, P] in between. Of several processes each keeps the
blocks of its own nodes, and their sums are what the processes exchange.

Legend: n members, b of a block, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sim.payload import Dense
from sim.rows import Lazy

if TYPE_CHECKING:
    from sim.group import Group


class DenseRows:
    """What the members of a group send, when every value is sent.

    Args:
        group: who sends.
        codec: the type on the wire.
        x: lazy rows, read now.
    """

    def __init__(self, group: Group, codec: Dense, x: Lazy) -> None:
        fleet = self._fleet = group.sim.fleet
        self._blocks: dict[int, tuple[np.ndarray, Tensor]] = {}
        dtype = None if codec.dtype == "native" else getattr(torch, codec.dtype)

        def send(ids: np.ndarray) -> None:
            rows = fleet.encode(codec, ids, x.block(ids), group.fragment).body
            self._blocks[ids[0] // fleet.block] = ids, rows if dtype is None else rows.to(dtype)

        fleet.map(send, group.index)

    def mean(self, contributors: Sequence[int], weights: Tensor | None) -> Tensor:
        """The (weighted) mean of some members' rows, [P], added up in order of nodes.

        Args:
            weights: of the contributors, in their order.
        """
        fleet, wanted = self._fleet, np.array(contributors, dtype=np.int64)
        given = torch.ones(len(wanted)) if weights is None else torch.as_tensor(weights)
        weight = given.to(fleet.initial)

        def weighted(ids: np.ndarray) -> Tensor:
            members, rows = self._blocks[ids[0] // fleet.block]
            if len(ids) < len(members):
                rows = rows[torch.from_numpy(np.isin(members, ids))]
            return weight[torch.from_numpy(np.searchsorted(wanted, ids))] @ rows.to(weight.dtype)

        sums = fleet.map(weighted, wanted)
        return sum(sums, fleet.initial.new_zeros(())) / weight.sum()
