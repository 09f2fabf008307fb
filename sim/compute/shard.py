"""Shard: which nodes each process computes and keeps, and how the processes put them together.

Processes make the same calls in the same order. Within a block function or a part of a flush each
of them is at its own nodes, apart from the others; before and after, all know the same.

Legend: N nodes in the fleet, n nodes of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sim.compute.processes import Processes
from sim.compute.request import Request

if TYPE_CHECKING:
    from sim.compute.fleet import Fleet

Made = TypeVar("Made")


class Shard:
    """The nodes of each process: whole blocks that follow each other.

    Args:
        processes: of the run.
        n_nodes: N.
        block: nodes of a block.

    >>> Shard(Processes(1, 2), n_nodes=10, block=4).own
    range(8, 10)
    """

    def __init__(self, processes: Processes, n_nodes: int, block: int) -> None:
        n_blocks, size = -(-n_nodes // block), processes.size
        cuts = np.array([-(-r * n_blocks // size) * block for r in range(size + 1)])
        self.processes, self._cuts = processes, np.minimum(cuts, n_nodes)
        first, stop = self._cuts[processes.rank : processes.rank + 2].tolist()
        self.own = range(first, stop)
        """The nodes of this process."""
        self._apart = False

    @property
    def exchanges(self) -> bool:
        """Whether what this process lacks is to be asked of the others."""
        return self.processes.size > 1 and not self._apart

    @property
    def most(self) -> int:
        """How many nodes the process has that has most."""
        return int(np.diff(self._cuts).max())

    def owns(self, ids: np.ndarray) -> np.ndarray:
        """Whether this process has each of some nodes."""
        return (ids >= self.own.start) & (ids < self.own.stop)

    def places(self, ids: np.ndarray) -> list[slice]:
        """Where the nodes of each process stand among some, ascending."""
        bounds = np.searchsorted(ids, self._cuts).tolist()
        return [slice(a, b) for a, b in pairwise(bounds)]

    @contextmanager
    def working(self) -> Iterator[None]:
        """While each process is at its own nodes."""
        before, self._apart = self._apart, True
        try:
            yield
        finally:
            self._apart = before

    def check_together(self, name: str) -> None:
        """Refuse what all processes must do alike while they are apart.

        Raises:
            RuntimeError: a block function gives nodes a vector to share.
        """
        if self._apart and self.processes.size > 1:
            raise RuntimeError(
                f"rows {name!r}: with several processes, a function of blocks must assign one row "
                "per node [b, P], not a vector that they share"
            )

    def fetch(self, read: Callable[[np.ndarray], Tensor], ids: np.ndarray) -> Tensor:
        """Rows [n, ...] of any nodes, each read by the process that has it."""
        order = np.argsort(ids, kind="stable")
        places = self.places(ids[order])
        with self.working():
            mine = read(ids[order[places[self.processes.rank]]])
        rows = self.processes.rows(mine, [at.stop - at.start for at in places])
        return rows if (np.diff(order) == 1).all() else rows[torch.from_numpy(np.argsort(order))]

    def map(
        self, fleet: Fleet, fn: Callable[[np.ndarray], Made], blocks: Sequence[np.ndarray]
    ) -> list[Made]:
        """`fn` of every block, in order, each computed by the process that has its nodes."""
        own = [block for block in blocks if block[0] in self.own]
        with self.working():
            made = fleet.crew.workers.map(lambda _, block: fn(block), own)
        return [one for some in self._share(fleet, made) for one in some]

    def complete(self, fleet: Fleet, requests: Sequence[Request]) -> None:
        """Give all processes what each of them made of its nodes of requests."""
        places = [self.places(request.ids) for request in requests]
        mine = [r.results(at[self.processes.rank]) for r, at in zip(requests, places)]
        for request, at, found in zip(requests, places, zip(*self._share(fleet, mine))):
            request.complete(at, found)

    def _share(self, fleet: Fleet, mine: list[Any]) -> list[list[Any]]:
        """What each process made, in order of nodes; with it they learn whose rows are private."""
        news = {name: ids for name, table in fleet.tables.items() if len(ids := table.news())}
        told = self.processes.share((fleet.flushes, news, mine), fleet.initial.device)
        if any(flushes != fleet.flushes for flushes, _, _ in told):
            raise RuntimeError("processes of one run are at different places of it")
        for _, private, _ in told:
            for name, ids in private.items():
                fleet.table(name).note(ids)
        return [made for _, _, made in told]
