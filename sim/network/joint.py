"""Joint collectives: all members advance together, and one number says how far they are.

After a loss under the rule *shrink* the survivors do, of their own smaller collective, the
fraction that was left of the larger one. A member that is lost before its share had left it
completely is no contributor, and what it sent is waste.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sim.network.collectives import Collective

if TYPE_CHECKING:
    from sim.network.network import Network


class Joint(Collective, ABC):
    """A collective with one progress, from 0 to 1, for all of its members."""

    def __init__(self, network: Network, op: str, members: Sequence[int], nbytes: float) -> None:
        super().__init__(network, op, members, nbytes, members)
        self._progress = 0.0
        self._kept: set[int] = set()
        self._complete = False

    @abstractmethod
    def _move(self) -> None:
        """Launch, of what is left, whatever can go now and does not go already."""

    @abstractmethod
    def _has_left(self, member: int) -> bool:
        """Whether the share of a member, about which `_halt` has been called, had left it."""

    @abstractmethod
    def _takes_along(self, member: int) -> bool:
        """Whether all that was done is lost with this member."""

    def _proceed(self) -> None:
        if len(self.alive) < 2:
            if not self.waiting:
                self._succeed()
        elif not self._detecting:
            self._move()

    def _succeed(self) -> None:
        self._complete = True
        self._finish()

    def _without(self, member: int) -> None:
        self._halt()
        if self._takes_along(member):
            self._waste_all()
            self._progress = 0.0
            self._kept.clear()
        elif self._has_left(member):
            self._kept.add(member)
        else:
            self._waste(member, self._sent[member] - self._wasted[member])
        self._complete = len(self.alive) < 2

    def _reset(self) -> None:
        self._progress = 0.0
        self._kept.clear()

    def _abandon(self) -> None:
        self._halt()
        if not self._complete:
            self._waste_all()

    def _contributors(self) -> set[int]:
        return self._kept | set(self.alive) if self._complete else set()
