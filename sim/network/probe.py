"""Probing: what a real system pays to learn the bandwidth between its members."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import simpy
from numpy import ndarray

if TYPE_CHECKING:
    from sim.network.network import Network


@dataclass(frozen=True)
class Probe:
    """What was measured.

    Attributes:
        members: hosts, in the order of rows and columns.
        bandwidth: bytes/s from one to another, latency included, [n, n]; inf to itself, 0 where
            the transfer was lost.
        seconds: how long it took.
        nbytes: bytes that were sent for it, headers included.
    """

    members: list[int]
    bandwidth: ndarray
    seconds: float
    nbytes: float


def rounds(n: int) -> Iterator[list[tuple[int, int]]]:
    """Each pair of 0 .. n-1 once, in rounds of disjoint pairs: a round-robin tournament.

    The circle method: one place stays, the others turn. An odd n has a bye in each round.

    >>> list(rounds(4))
    [[(0, 3), (1, 2)], [(0, 2), (3, 1)], [(0, 1), (2, 3)]]
    """
    seats = [*range(n), *([-1] if n % 2 else [])]
    for _ in range(len(seats) - 1):
        pairs = zip(seats[: len(seats) // 2], seats[::-1])
        yield [(a, b) for a, b in pairs if a >= 0 and b >= 0]
        seats = [seats[0], seats[-1], *seats[1:-1]]


def run_probe(
    network: Network, members: Sequence[int], nbytes: float
) -> Generator[simpy.Event, Any, Probe]:
    """A process that measures each pair of members, both ways at once, round after round."""
    n, env, began = len(members), network.env, network.env.now
    bandwidth, sent = np.diag(np.full(n, np.inf)), 0.0
    for pairs in rounds(n):
        start, waits = env.now, []
        ends: dict[tuple[int, int], float] = {}
        for a, b in [*pairs, *((b, a) for a, b in pairs)]:
            transfer, over = network.transfer(members[a], members[b], nbytes), env.event()
            transfer.callbacks.append(partial(_note, ends, (a, b), over))
            waits.append(over)
        yield env.all_of(waits)
        for pair, end in ends.items():
            bandwidth[pair] = nbytes / (end - start) if end > start else np.inf
            sent += nbytes + network.header_bytes
    return Probe(list(members), bandwidth, env.now - began, sent)


def _note(
    ends: dict[tuple[int, int], float],
    pair: tuple[int, int],
    over: simpy.Event,
    transfer: simpy.Event,
) -> None:
    """Note when a transfer was delivered, if it was."""
    if transfer.ok:
        ends[pair] = transfer.env.now
    over.succeed()
