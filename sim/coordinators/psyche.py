"""Psyche's rounds: epochs of clients, rounds that end when witnesses have heard everybody.

The places in `run` are the states of the protocol (Nous Research, Psyche: WaitingForMembers,
Warmup, RoundTrain, RoundWitness, Cooldown). Nodes join at the beginning of an epoch only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import simpy

from sim.compute.work import Program
from sim.coordinators.coordinator import Coordinator
from sim.coordinators.state_sync import download_from_donor
from sim.group import Group
from sim.units import Quantity, seconds

if TYPE_CHECKING:
    from sim.simulation import Simulation


@dataclass
class Psyche(Coordinator):
    """Rounds that end at a quorum of witnesses, or at their deadline.

    Args:
        min_clients: an epoch needs that many, and ends when fewer are left.
        n_witnesses: clients drawn in each round that report having heard every member.
        quorum: how many witnesses must report; 2/3 of them, rounded down, if None.
        rounds_per_epoch: rounds between two admissions of joiners.
        warmup_time: how long joiners may take to download the state; later ones are left out.
        max_round_train_time: the deadline of a round; what has not arrived is not in the result.
        round_witness_time: how long results may still arrive after the quorum.
        cooldown_time: pause between epochs, for the checkpoint.
    """

    min_clients: int = 1
    n_witnesses: int = 4
    quorum: int | None = None
    rounds_per_epoch: int = 100
    warmup_time: Quantity = "1h"
    max_round_train_time: Quantity = "360s"
    round_witness_time: Quantity = "5s"
    cooldown_time: Quantity = "120s"
    ready: set[int] = field(default_factory=set, init=False)
    _sim: Simulation = field(init=False, repr=False)
    _opened: simpy.Event = field(init=False, repr=False)
    _open: Group | None = field(default=None, init=False, repr=False)
    _downloads: dict[int, simpy.Process] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("min_clients", "n_witnesses", "rounds_per_epoch"):
            if getattr(self, name) < 1:
                raise ValueError(f"coordinator.{name}={getattr(self, name)}: must be >= 1")
        if self.quorum is not None and not 1 <= self.quorum <= self.n_witnesses:
            raise ValueError(
                f"coordinator.quorum={self.quorum}: must be between 1 and "
                f"coordinator.n_witnesses={self.n_witnesses}"
            )
        for name in ("warmup_time", "max_round_train_time", "round_witness_time", "cooldown_time"):
            positive = name in ("warmup_time", "max_round_train_time")  # or time stands still
            value = seconds(getattr(self, name), f"coordinator.{name}", positive=positive)
            setattr(self, name, value)

    def start(self, sim: Simulation) -> None:
        if self.min_clients > sim.fleet.n_nodes:
            raise ValueError(
                f"coordinator.min_clients={self.min_clients}: at most the {sim.fleet.n_nodes} "
                f"nodes of the topology; {sim.fleet.n_nodes} is the nearest"
            )
        self._sim, self._opened, self._open = sim, sim.event(), None
        self.ready, self._downloads = set(sim.online), {}
        sim.process(self.run(sim))

    def round(self) -> simpy.Event:
        """The round that is open and was not handed out yet, or else the next one."""
        return self._sim.process(self._round())

    def arrive(self, node: int) -> None:
        """A node waits for the next epoch."""

    def depart(self, node: int) -> None:
        self.ready.discard(node)
        self._downloads.pop(node, None)

    def run(self, sim: Simulation) -> Program:
        while True:
            while len(sim.online) < self.min_clients:  # WaitingForMembers
                yield sim.membership_changed
            clients = sim.group()
            yield sim.timeout(float(self.warmup_time)) | self._load_checkpoint(clients)  # Warmup
            clients = sim.group(self.ready & set(clients.ids))
            for number in range(self.rounds_per_epoch):
                if len(clients.online) < self.min_clients:
                    break
                yield from self._run_round(sim, clients.online, number)
            yield sim.timeout(float(self.cooldown_time))  # Cooldown: checkpoint

    def _run_round(self, sim: Simulation, members: Group, number: int) -> Program:
        group = self._open_round(members.ids)  # RoundTrain: wakes those that wait for round()
        assert group.round is not None
        count = min(self.n_witnesses, len(group))
        witnesses = sim.rng("witness", sim.rounds).choice(group.ids, count, replace=False)
        quorum = min(self._quorum(count), count)
        deadline = sim.timeout(float(self.max_round_train_time))
        while not deadline.processed and self._proofs(group, witnesses) < quorum:
            yield group.round.heard | deadline  # a payload reached somebody
        yield sim.timeout(float(self.round_witness_time))  # RoundWitness
        self._open = None
        group.round.over.succeed()  # what has not arrived is not in the result

    def _quorum(self, count: int) -> int:
        """Psyche's rule: 1 of 1, 2 of 2, 2 of 3, else two thirds rounded down."""
        if self.quorum is not None:
            return self.quorum
        return count if count < 3 else max(1, math.floor(2 * count / 3))

    @staticmethod
    def _proofs(group: Group, witnesses: Iterable[int]) -> int:
        """Witnesses that have heard every member of the round."""
        assert group.round is not None
        return sum(group.round.received[int(w)] >= len(group) for w in witnesses)

    def _open_round(self, ids: list[int]) -> Group:
        self._open = self._sim.open_round(ids)
        opened, self._opened = self._opened, self._sim.event()
        opened.succeed()
        return self._open

    def _round(self) -> Program:
        while self._open is None:
            yield self._opened
        group, self._open = self._open, None
        return group

    def _load_checkpoint(self, clients: Group) -> simpy.Event:
        """All clients that lack the state download it from those that hold it."""
        missing = [i for i in clients.ids if i not in self.ready]
        for i in missing:
            if i not in self._downloads:  # else it goes on since an earlier warmup
                self._downloads[i] = self._sim.node(i).process(self._download(i))
        return self._sim.all_of([self._downloads[i] for i in missing])

    def _download(self, node: int) -> Program:
        if (yield from download_from_donor(self._sim, node, self.ready)):
            self.ready.add(node)
            del self._downloads[node]
            self._sim.record("session", time=self._sim.now, node=node, event="admitted")
            self._sim.admit(node)
