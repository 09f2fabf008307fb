"""Parts: what is computed at a time, the gradients or the local steps of some nodes.

A part reads and writes rows of its own nodes only and hands results to places of their own, so
parts may run in any order, at the same time.

Legend: c nodes of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from sim.compute.request import Request, Then

if TYPE_CHECKING:
    from sim.compute.fleet import Fleet


@dataclass(frozen=True)
class Part:
    """Nodes of one or several requests, in order.

    Attributes:
        ids: nodes, int64 [c].
        first: the local step at which each begins, int64 [c].
        steps: steps of each, ascending, int64 [c].
        places: where each stands in its request, int64 [c].
        owners: which request each belongs to, int64 [c], an index into `requests`.
        requests: those that the part serves.
    """

    ids: np.ndarray
    first: np.ndarray
    steps: np.ndarray
    places: np.ndarray
    owners: np.ndarray
    requests: Sequence[Request]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: slice | np.ndarray) -> Part:
        return Part(
            self.ids[at],
            self.first[at],
            self.steps[at],
            self.places[at],
            self.owners[at],
            self.requests,
        )

    @staticmethod
    def of(requests: Sequence[Request]) -> Part:
        """All nodes of requests, by number of steps, then by node."""
        sizes = [len(r.ids) for r in requests]
        whole = Part(
            np.concatenate([r.ids for r in requests]),
            np.concatenate([r.first_steps for r in requests]),
            np.repeat([r.steps for r in requests], sizes),
            np.concatenate([np.arange(size) for size in sizes]),
            np.repeat(np.arange(len(requests)), sizes),
            requests,
        )
        order = np.lexsort((whole.owners, whole.ids, whole.steps))
        return whole[order]

    def cut(self, size: int) -> list[Part]:
        """Pieces of so many nodes."""
        return [self[i : i + size] for i in range(0, len(self), max(1, size))]

    def cut_at(self, grain: int) -> list[Part]:
        """Pieces of at most so many nodes, cut where nodes are multiples of it."""
        bounds = [0, *(np.flatnonzero(np.diff(self.ids // grain)) + 1).tolist(), len(self)]
        return [self[a:b] for a, b in pairwise(bounds)]

    def shares(self) -> list[tuple[Request, np.ndarray]]:
        """Each request that it serves, and where its nodes stand here, ascending."""
        if len(self.requests) == 1:
            return [(self.requests[0], np.arange(len(self)))]
        order = np.argsort(self.owners, kind="stable")
        cuts = np.flatnonzero(np.diff(self.owners[order])) + 1
        bounds = pairwise([0, *cuts.tolist(), len(order)])
        return [(self.requests[self.owners[order[a]]], order[a:b]) for a, b in bounds]

    def runs(self) -> list[tuple[int, int]]:
        """Where nodes of one `then` follow each other: from, to."""
        bounds, start = [], 0
        for stop in range(1, len(self) + 1):
            if stop == len(self) or self.then(stop) != self.then(start):
                bounds.append((start, stop))
                start = stop
        return bounds

    def then(self, i: int) -> Then | None:
        """What is made of the gradient of the i-th node."""
        return self.requests[self.owners[i]].then


@dataclass(frozen=True)
class Strip:
    """A part of a fleet, and where its rows are in the block that a worker computes.

    A block holds rows of one fleet; or of several, of runs that are computed together, whose tasks
    were constructed alike and whose nodes all take the same number of steps.
    """

    fleet: Fleet
    part: Part
    rows: slice

    def within(self, rows: slice) -> Strip | None:
        """What of it is among these rows of the block, or None."""
        start, stop = max(rows.start, self.rows.start), min(rows.stop, self.rows.stop)
        if start >= stop:
            return None
        part = self.part[start - self.rows.start : stop - self.rows.start]
        return Strip(self.fleet, part, slice(start, stop))


def strips(parts: Sequence[tuple[Fleet, Part]]) -> list[Strip]:
    """The parts of fleets, one after the other in a block."""
    ends = np.cumsum([len(part) for _, part in parts]).tolist()
    return [Strip(fleet, part, slice(b - len(part), b)) for (fleet, part), b in zip(parts, ends)]
