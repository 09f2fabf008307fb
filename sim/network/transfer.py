"""Transfer: the event of bytes on their way."""

from __future__ import annotations

from collections.abc import Callable

import simpy

Conclude = Callable[["Transfer", float, bool], None]
"""`conclude(transfer, moved, ok)`: it has ended, with so many bytes through."""


class TransferLost(Exception):
    """A transfer whose end left, or whose link went down, before the last byte arrived."""


class Transfer(simpy.Event):
    """Bytes on their way from one host to another.

    Succeeds with None on delivery; fails with `TransferLost`. A failure that nobody waits for is
    silent.

    Attributes:
        row: its slot in the solver while it lasts; -1 afterwards.
        start: seconds; when it was issued.
    """

    def __init__(
        self, env: simpy.Environment, src: int, dst: int, nbytes: float, conclude: Conclude
    ) -> None:
        super().__init__(env)
        self.src, self.dst, self.nbytes, self.start = src, dst, nbytes, env.now
        self.row, self._conclude = -1, conclude
        self.defused = True

    def conclude(self, moved: float, ok: bool) -> None:
        """It has ended; called by the links."""
        self.row = -1
        self._conclude(self, moved, ok)
