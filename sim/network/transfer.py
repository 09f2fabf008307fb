"""Transfer: the event of bytes on their way."""

from __future__ import annotations

import simpy


class TransferLost(Exception):
    """A transfer whose end left, or whose link went down, before the last byte arrived."""


class Transfer(simpy.Event):
    """Bytes on their way from one host to another.

    Succeeds with None on delivery; fails with `TransferLost`. A failure that nobody waits for is
    silent.
    """

    def __init__(self, env: simpy.Environment, src: int, dst: int, nbytes: float) -> None:
        super().__init__(env)
        self.src, self.dst, self.nbytes = src, dst, nbytes
        self.start = env.now
        """Seconds; when it was issued."""
        self.defused = True
