"""Block: the rows that a function sees which runs inside a flush of the fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from sim.payload import Compressor, Payload

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

    def encode(self, compressor: Compressor, x: Tensor) -> Payload:
        """Encode [b, P]; the codec's per-node state is kept."""
        return self._fleet.encode(compressor, self.ids, x)
