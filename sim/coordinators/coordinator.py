"""Coordinator (interface): decides who is in a round and when it ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import simpy

if TYPE_CHECKING:
    from sim.simulation import Simulation


class Coordinator(ABC):
    """Answers `round()`; is told who comes and goes.

    Attributes:
        ready: nodes that hold the shared state, and may be members of a round.
        listens: whether it follows `Round.heard` while a round runs. If not, a gather tells who has
            heard whom when it ends, which costs an event instead of one per payload.
    """

    ready: set[int]
    listens: bool = True

    @abstractmethod
    def start(self, sim: Simulation) -> None:
        """Begin; those online now hold the initial state."""

    @abstractmethod
    def round(self) -> simpy.Event:
        """An event whose value is the `Group` of the next round."""

    @abstractmethod
    def arrive(self, node: int) -> None:
        """A node came online; it does not hold the state yet."""

    @abstractmethod
    def depart(self, node: int) -> None:
        """A node left, and its copy of the state with it."""
