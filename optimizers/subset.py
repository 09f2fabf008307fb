"""Subset: only some of the nodes train together; the others stand by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import simpy

from optimizers.strategy import Program
from sim.coordinators.state_sync import download_from_donor
from sim.group import Group
from sim.simulation import Simulation

ABSENT = ("replace", "wait", "without")
"""What `Subset.absent` may be."""


@dataclass(frozen=True)
class Subset:
    """Which nodes train: the fastest of those that are ready for the first round, or given ones.

    Args:
        fastest: so many of the fastest devices, by FLOP/s; of fewer nodes all.
        ids: these nodes, instead.
        absent: what is done while one of them is away. `"replace"`: the fastest node that stands by
            downloads the state from a member and takes its place for good; meanwhile the others go
            on. `"wait"`: nobody trains until all are back. `"without"`: the others go on, and it
            is one of them again when it is back. Who comes back gets the state as the coordinator
            has it; if all members are gone and are to be replaced, training begins again.
    """

    fastest: int | None = None
    ids: Sequence[int] = ()
    absent: str = "replace"

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(self.ids))
        if (self.fastest is None) == (not self.ids):
            raise ValueError(
                f"strategy.nodes: fastest={self.fastest}, ids={list(self.ids)}: give one of them, "
                "for example fastest=4"
            )
        if self.fastest is not None and self.fastest < 1:
            raise ValueError(f"strategy.nodes.fastest={self.fastest}: must be >= 1")
        if len(set(self.ids)) < len(self.ids) or min(self.ids, default=0) < 0:
            raise ValueError(
                f"strategy.nodes.ids={list(self.ids)}: must be different ids of nodes, >= 0"
            )
        if self.absent not in ABSENT:
            raise ValueError(
                f"strategy.nodes.absent={self.absent!r}: must be one of {', '.join(ABSENT)}"
            )

    def of(self, sim: Simulation, ready: Iterable[int]) -> set[int]:
        """The nodes that are to train; `ready` are those that there are to choose from."""
        if self.fastest is not None:
            return set(by_speed(sim, ready)[: self.fastest])
        if max(self.ids) >= sim.fleet.n_nodes:
            raise ValueError(
                f"strategy.nodes.ids={list(self.ids)}: must be between 0 and "
                f"{sim.fleet.n_nodes - 1}, the nodes of the topology"
            )
        return set(self.ids)


def by_speed(sim: Simulation, nodes: Iterable[int]) -> list[int]:
    """Nodes, the fastest device first; of equal ones the lowest id."""
    ids = np.array(sorted(nodes), dtype=np.int64)
    return ids[np.argsort(-sim.devices.speed[ids], kind="stable")].tolist()


class Rounds:
    """The rounds of a run, of all nodes or of a subset.

    Args:
        sim: the run.
        subset: who trains; all if None.
    """

    def __init__(self, sim: Simulation, subset: Subset | None) -> None:
        self._sim, self._subset = sim, subset
        self._members: set[int] | None = None
        self._coming: dict[int, simpy.Process] = {}

    def next(self) -> Program:
        """The group of the next round; waits for the coordinator, and for members to be there."""
        while True:
            group: Group = yield self._sim.coordinator.round()
            if self._subset is None:
                return group
            if members := self._there(self._subset, set(group.ids)):
                return group.among(members)
            yield self._sim.any_of([self._sim.membership_changed, *self._coming.values()])

    def _there(self, subset: Subset, ready: set[int]) -> list[int]:
        if self._members is None:
            self._members = subset.of(self._sim, ready)
        here = self._members & ready
        if subset.absent == "wait" and here < self._members:
            return []
        if subset.absent == "replace":
            self._members.intersection_update(ready)
            self._replace(subset, ready)
        return sorted(here)

    def _replace(self, subset: Subset, ready: set[int]) -> None:
        """Let the fastest of those who stand by come to where somebody is missing."""
        assert self._members is not None
        wanted = len(subset.ids) if subset.fastest is None else subset.fastest
        missing = wanted - len(self._members) - len(self._coming)
        if missing <= 0:
            return  # as in most rounds: nobody need be ranked
        idle = by_speed(self._sim, ready - self._members - self._coming.keys())
        for node in idle[:missing]:
            self._coming[node] = self._sim.node(node).process(self._come(node))

    def _come(self, node: int) -> Program:
        assert self._members is not None
        try:
            if (yield from download_from_donor(self._sim, node, self._members)):
                self._members.add(node)
        finally:
            self._coming.pop(node, None)
