"""Block: the rows that a function sees which runs inside a flush of the fleet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from sim.compute.placed import Placed
from sim.payload import Compressor, Context, Payload

if TYPE_CHECKING:
    from sim.compute.fleet import Fleet


class Block:
    """The rows of some nodes, as a function that runs inside a flush sees them."""

    def __init__(self, fleet: Fleet, ids: np.ndarray) -> None:
        self._fleet, self.ids = fleet, ids

    def __getitem__(self, name: str) -> Tensor:
        """Rows [b, P] of a name, to read; or to change in place and then assign.

        They are the fleet's own where that is possible, so that assigning them copies nothing.
        """
        return self._fleet.lend(name, self.ids)

    def __setitem__(self, name: str, rows: Tensor) -> None:
        """Replace rows of a name by [b, P]."""
        self._fleet.put(name, self.ids, rows)

    @contextmanager
    def in_place(self, name: str) -> Iterator[Placed]:
        """Rows [b, P] of a name, each the node's own, to change inside of a `with` block.

        On a CPU they stay where they are in the fleet, so nothing is copied; not those that are
        kept in fewer bits than the parameters.
        """
        placed = self._fleet.place(name, self.ids)
        if placed is not None:
            yield placed
            return
        copy = self._fleet.get(name, self.ids).clone()
        yield Placed.of(copy)
        self._fleet.put(name, self.ids, copy)

    @property
    def context(self) -> Context:
        """What encoding depends on beside the rows."""
        return self._fleet.context(self.ids)

    def encode(self, compressor: Compressor, x: Tensor) -> Payload:
        """Encode [b, P]; the codec's per-node state is kept."""
        return self._fleet.encode(compressor, self.ids, x)
