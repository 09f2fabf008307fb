"""Request: gradients, or local steps, of some nodes, and what became of them.

Legend: n nodes of a request, P parameters.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sim.payload import Payload

Then = Callable[[Any, Tensor], Tensor | Payload]
"""`fn(rows, block)`: what is made of gradients, a block of nodes at a time."""


_MAKING = threading.Lock()


def index(places: np.ndarray) -> slice | Tensor:
    """An index of some rows: a slice, so views, if they follow each other."""
    first, last = int(places[0]), int(places[-1])
    if last - first + 1 == len(places) and (len(places) == 1 or (np.diff(places) == 1).all()):
        return slice(first, last + 1)
    return torch.from_numpy(places)


@dataclass(frozen=True)
class PartSum:
    """The sum over some nodes of a request, added up in order of nodes."""

    ids: np.ndarray
    """Nodes, int64."""
    total: Tensor
    """[P]"""


@dataclass(frozen=True)
class Results:
    """What one process made of its nodes of a request."""

    losses: Tensor
    """[m], of m nodes."""
    values: Tensor | None
    """[m, ...], of gradients that are kept row by row."""
    payload: Payload | None
    """Of gradients that were encoded."""
    sums: dict[int, PartSum]
    """By the place of their first node."""


@dataclass(eq=False)
class Request:
    """Gradients, or a number of local steps, of some nodes; queued until a value is needed."""

    ids: np.ndarray
    """Nodes, int64 [n], ascending."""
    first_steps: np.ndarray
    """The local step at which each node begins, int64 [n]: it selects the data."""
    steps: int
    trains: bool
    """True: local steps that write rows; False: mean gradients at the parameters of the moment."""
    then: Then | None = None
    summed: bool = False
    """Only sums over nodes are wanted: rows of `then` are added up and dropped."""
    shared: Tensor | None = None
    """The parameters [P] at which all of its nodes were, if they shared them."""
    due: bool = False
    """Its end has come in simulated time: nobody may ask for the rows from before."""
    executed: bool = False
    values: Tensor | None = None
    """[n, P], of gradients that are kept row by row."""
    pieces: dict[int, Payload] = field(default_factory=dict)
    """Payloads by the place of their first node."""
    sums: dict[int, PartSum] = field(default_factory=dict)
    """Sums by the place of their first node."""
    losses: Tensor | None = None
    """Loss of each node before its (last) step, [n]."""
    inputs: dict[int, Tensor] = field(default_factory=dict)
    """Parameters [P] of nodes whose row was overwritten while the request was waiting."""

    def rows(self, ids: np.ndarray) -> Tensor | Payload | None:
        """The value of those of its nodes that are in `ids`, in order; None of local steps."""
        whole = self._payload() if self.pieces else self.values
        if whole is None or len(ids) == len(self.ids):
            return whole
        at = torch.from_numpy(np.flatnonzero(np.isin(self.ids, ids)))
        return whole.rows(at) if isinstance(whole, Payload) else whole[at]

    def keep(self, places: np.ndarray, rows: Tensor) -> None:
        """Note what became of the nodes at these places, rows [b, ...]."""
        if self.values is None:
            with _MAKING:
                if self.values is None:
                    self.values = rows.new_empty((len(self.ids), *rows.shape[1:]))
        self.values[index(places)] = rows

    def results(self, places: slice) -> Results:
        """What was made here of the nodes at these places, which are all that this process has."""
        assert self.losses is not None
        values = None if self.values is None else self.values[places]
        payload = self._payload() if self.pieces else None
        return Results(self.losses[places], values, payload, self.sums)

    def complete(self, places: Sequence[slice], found: Sequence[Results]) -> None:
        """Put together what all processes made, each of the nodes at its places."""
        assert self.losses is not None
        self.pieces, self.sums = {}, {}
        for at, results in zip(places, found):
            self.losses[at] = results.losses
            self.sums |= results.sums
            if results.payload is not None:
                self.pieces[at.start] = results.payload
            if results.values is not None and at.start < at.stop:
                self.keep(np.arange(at.start, at.stop), results.values)

    def drop(self, node: int) -> None:
        """Leave a node out; before it is executed."""
        keep = self.ids != node
        self.ids, self.first_steps = self.ids[keep], self.first_steps[keep]

    def _payload(self) -> Payload:
        if len(self.pieces) > 1:
            whole = Payload.cat([self.pieces[place] for place in sorted(self.pieces)])
            self.pieces = {0: whole}
        return next(iter(self.pieces.values()))
