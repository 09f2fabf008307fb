"""Schedules: collectives written as phases of transfers, and the algorithms that write them.

A schedule is data: who sends how many bytes to whom, in which phase. A member begins with a phase
when its own transfers of the phases before are over, and a transfer begins when both of its ends
have: a pairwise step is a rendezvous. `sim.network.scheduled` runs schedules, as flows or as a few
coupled activities. An algorithm of yours is an `Algorithm` that returns a schedule.

Legend: n members, S bytes of a member's vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.network.idle import access_rates
from sim.network.routes import Hops

if TYPE_CHECKING:
    from sim.network.network import Network


@dataclass(frozen=True)
class Phase:
    """Transfers that do not wait for each other.

    Attributes:
        hops: (from, to) of each one; each pair once.
        nbytes: bytes of each one.
    """

    hops: Hops
    nbytes: tuple[float, ...]

    @classmethod
    def equal(cls, hops: Sequence[tuple[int, int]], nbytes: float) -> Phase:
        """The same number of bytes for each hop."""
        return cls(tuple(hops), (float(nbytes),) * len(hops))

    def scaled(self, factor: float) -> Phase:
        """The same transfers with another number of bytes."""
        return Phase(self.hops, tuple(factor * b for b in self.nbytes))

    def with_header(self, header: float) -> Phase:
        """Each transfer that much longer."""
        return Phase(self.hops, tuple(b + header for b in self.nbytes))


@dataclass(frozen=True)
class Schedule:
    """Phases, in order.

    Attributes:
        phases: at least one if there are two members or more.
        reduces: after so many of them every share has left its member.
        barrier: whether a phase begins for all at once, when the one before is over everywhere.
        regular: whether its phases, one after the other, take as long as it does alone; if not,
            its time alone is that of its flows.
        root: a member without which all that was done is lost.
    """

    phases: tuple[Phase, ...]
    reduces: int
    barrier: bool = False
    regular: bool = True
    root: int | None = None

    @property
    def nbytes(self) -> float:
        """Bytes of all transfers."""
        return sum(sum(phase.nbytes) for phase in self.phases)

    def rest(self, progress: float) -> Schedule:
        """What remains when the first part of its bytes is done, `progress` from 0 to 1."""
        done, phases, reduces = progress * self.nbytes, [], 0
        for number, phase in enumerate(self.phases):
            total = sum(phase.nbytes)
            part = min(done / total, 1.0) if total > 0.0 else float(progress > 0.0)
            done -= part * total
            if part < 1.0 - 1e-12:
                phases.append(phase.scaled(1.0 - part))
                reduces += number < self.reduces
        return Schedule(tuple(phases), reduces, self.barrier, self.regular, self.root)


class Algorithm(ABC):
    """How an all-reduce, or another collective, is done."""

    @abstractmethod
    def schedule(self, network: Network, members: Sequence[int], nbytes: float) -> Schedule:
        """The phases for two members or more, each with a vector of `nbytes`."""


@dataclass(frozen=True)
class HalvingDoubling(Algorithm):
    """Reduce-scatter by recursive halving, all-gather by recursive doubling; 2 log2 n phases.

    If n is not a power of two, the first 2 (n - 2^k) members fold: the first of each pair hands
    its vector to the second, stays out, and gets the sum at the end.

    Source: Thakur, Rabenseifner and Gropp, Optimization of collective communication operations in
    MPICH, International Journal of High Performance Computing Applications 19 (2005).
    """

    def schedule(self, network: Network, members: Sequence[int], nbytes: float) -> Schedule:
        power = 1 << (len(members).bit_length() - 1)
        surplus = len(members) - power
        folded = [(members[2 * i], members[2 * i + 1]) for i in range(surplus)]
        core = [*(stays for _, stays in folded), *members[2 * surplus :]]
        halving, distance = [], power // 2
        while distance:
            pairs = [(core[i], core[i ^ distance]) for i in range(power)]
            halving.append(Phase.equal(pairs, nbytes * distance / power))
            distance //= 2
        fold = [Phase.equal(folded, nbytes)] if surplus else []
        unfold = [Phase.equal([(b, a) for a, b in folded], nbytes)] if surplus else []
        phases = *fold, *halving, *halving[::-1], *unfold
        return Schedule(phases, len(fold) + len(halving), regular=not surplus)


@dataclass(frozen=True)
class Tree(Algorithm):
    """Sums go up a binary tree to the first member, the result comes down again."""

    def schedule(self, network: Network, members: Sequence[int], nbytes: float) -> Schedule:
        levels: dict[int, list[tuple[int, int]]] = {}
        for i in range(1, len(members)):
            depth = (i + 1).bit_length() - 1
            levels.setdefault(depth, []).append((members[i], members[(i - 1) // 2]))
        up = [Phase.equal(levels[depth], nbytes) for depth in sorted(levels, reverse=True)]
        down = [Phase.equal([(b, a) for a, b in phase.hops], nbytes) for phase in up[::-1]]
        return Schedule((*up, *down), len(up), regular=False, root=members[0])


@dataclass(frozen=True)
class Butterfly(Algorithm):
    """Everybody reduces a shard: it gets its shard from all others, and hands the sum to all.

    The averaging of groups in hivemind and Moshpit SGD. The second phase begins when the first one
    is over for the whole group.

    Args:
        shards: relative sizes of the members' shards, by host; unless given, proportional to
            `sim.network.idle.access_rates`. Equal if no member has one above 0.

    Raises:
        ValueError: a shard that is not a finite number >= 0.

    Source: Ryabinin et al., Moshpit SGD, arXiv:2103.03239; Diskin et al., arXiv:2106.10207.
    """

    shards: dict[int, float] | None = None

    def __post_init__(self) -> None:
        for host, share in (self.shards or {}).items():
            if not 0.0 <= share < np.inf:
                raise ValueError(f"shards[{host}]={share}: expected a finite number >= 0")

    def schedule(self, network: Network, members: Sequence[int], nbytes: float) -> Schedule:
        if self.shards is None:
            share = access_rates(network, members)
        else:
            share = np.array([self.shards.get(member, 0.0) for member in members], float)
        if not share.any():
            share = np.ones(len(members))
        shard = dict(zip(members, (nbytes * share / share.sum()).tolist()))
        pairs = [(a, b) for a in members for b in members if a != b]
        scatter = Phase(tuple(pairs), tuple(shard[b] for _, b in pairs))
        gather = Phase(tuple((b, a) for a, b in pairs), scatter.nbytes)
        return Schedule((scatter, gather), 1, barrier=True)


@dataclass(frozen=True)
class Server(Algorithm):
    """All push their vectors to a server, then pull the sum from it.

    Args:
        server: the member that sums; the first one unless given, or when that one has left.
    """

    server: int | None = None

    def schedule(self, network: Network, members: Sequence[int], nbytes: float) -> Schedule:
        server = self.server if self.server in members else members[0]
        assert server is not None
        push = Phase.equal([(m, server) for m in members if m != server], nbytes)
        pull = Phase.equal([(server, m) for m in members if m != server], nbytes)
        return Schedule((push, pull), 1, barrier=True, root=server)


@dataclass(frozen=True)
class Mesh(Algorithm):
    """Each member has something of `nbytes` for every other one."""

    def schedule(self, network: Network, members: Sequence[int], nbytes: float) -> Schedule:
        pairs = [(a, b) for a in members for b in members if a != b]
        return Schedule((Phase.equal(pairs, nbytes),), 1)


ALGORITHMS: dict[str, Algorithm] = {
    "halving_doubling": HalvingDoubling(),
    "tree": Tree(),
    "butterfly": Butterfly(),
    "parameter_server": Server(),
}
"""Of all-reduce, beside "ring" and "hierarchical"."""
