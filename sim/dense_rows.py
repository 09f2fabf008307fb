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
        self._ids = group.index[fleet.shard.owns(group.index)]
        like, fragment = fleet.initial, group.fragment
        dtype = like.dtype if codec.dtype == "native" else getattr(torch, codec.dtype)
        columns = like.numel() if fragment is None else fragment.layout.numel
        # In one piece: small ones of this age, between short-lived blocks, would spread the heap.
        self._rows = like.new_empty((len(self._ids), columns), dtype=dtype)

        def send(ids: np.ndarray) -> None:
            self._rows[self._at(ids)] = fleet.encode(codec, ids, x.block(ids), fragment).body.to(
                dtype
            )

        fleet.map(send, group.index)

    def _at(self, ids: np.ndarray) -> slice | Tensor:
        """Where members stand in the rows: one after the other, unless some are left out."""
        places = np.searchsorted(self._ids, ids)
        if places[-1] - places[0] + 1 == len(places):
            return slice(int(places[0]), int(places[-1]) + 1)
        return torch.from_numpy(places)

    def mean(self, contributors: Sequence[int], weights: Tensor | None) -> Tensor:
        """The (weighted) mean of some members' rows, [P], added up in order of nodes.

        Args:
            weights: of the contributors, in their order.
        """
        fleet, wanted = self._fleet, np.array(contributors, dtype=np.int64)
        given = torch.ones(len(wanted)) if weights is None else torch.as_tensor(weights)
        weight = given.to(fleet.initial)

        def weighted(ids: np.ndarray) -> Tensor:
            rows = self._rows[self._at(ids)].to(weight.dtype)
            return weight[torch.from_numpy(np.searchsorted(wanted, ids))] @ rows

        sums = fleet.map(weighted, wanted)
        return sum(sums, fleet.initial.new_zeros(())) / weight.sum()
