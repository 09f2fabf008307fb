"""Who has sent how much of which payload around a ring that may have shrunk.

Legend: n members of the ring, m payloads, x hops that a payload has made (a payload in the middle
of a hop has a fraction).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy import ndarray


@dataclass(frozen=True)
class _Generation:
    """A ring while it lasted: its members in order, and by id their places and their payloads' x.

    `begun` is x when the payload came to this ring, `reached` when the ring ended; nan if never.
    """

    ring: ndarray
    places: ndarray
    begun: ndarray
    reached: ndarray

    def sent(self, member: int) -> tuple[ndarray, ndarray]:
        """Who handed a member's payload on, each once, and what part of it.

        Negative for a hop that began in an earlier ring and was given up in this one.
        """
        begun, reached = float(self.begun[member]), float(self.reached[member])
        if begun == reached or math.isnan(begun + reached):  # or one of them never was
            return _NOBODY
        first, last = int(begun + 1e-9), int(reached + 1e-9)
        hops = np.ones(last - first + 1)
        hops[-1] = reached - last
        hops[0] -= begun - first
        at = (self.places[member] + np.arange(first, last + 1)) % len(self.ring)
        return self.ring[at], hops


_NOBODY = np.empty(0, np.int64), np.empty(0)


class Ledger:
    """Bytes of payloads that members hand on along a ring, each as a whole.

    Args:
        ring: members in order.
        sizes: bytes of the payload of each member.

    Attributes:
        ring: its members now.
        entered: x of each payload when this ring was formed, or when it set off.
        counted: x up to which its bytes have been counted; as entered if there is none.
    """

    def __init__(self, ring: list[int], sizes: Mapping[int, float]) -> None:
        self.ring, self._sizes = ring, sizes
        self.entered: dict[int, float] = {}
        self.counted: dict[int, float] = {}
        self._earlier: list[_Generation] = []

    def count(self, made: Mapping[int, float]) -> ndarray:
        """Bytes that each of the ring sent since the last count; x of payloads is `made` now."""
        start = {m: self.counted.get(m, self.entered[m]) for m in made}
        self.counted.update(made)
        return self._between(self.ring, start, made)

    def dropped(self, members: Iterable[int]) -> tuple[ndarray, ndarray]:
        """All bytes of these members' payloads that were counted: hosts, and bytes of each."""
        total = np.zeros(max(self._sizes) + 1)
        generations = [*self._earlier, self._generation(self.entered, self.counted)]
        for member in members:
            size = self._sizes[member]
            for generation in generations:
                hosts, hops = generation.sent(member)
                total[hosts] += size * hops
        hosts = np.flatnonzero(total)
        return hosts, total[hosts]

    def shrink(self, lost: int, payloads: Iterable[int]) -> tuple[list[int], list[float]]:
        """Form the ring without a member, for payloads (all counted) that are on their way.

        Returns:
            Members that were in the middle of a hop from or to the lost one, and the bytes of it,
            which are in vain: the next survivor begins that hop again.
        """
        n, position = len(self.ring), {member: i for i, member in enumerate(self.ring)}
        ends, entered = dict(self.counted), {}
        senders, in_vain = [], []
        for member in payloads:
            made = self.counted[member]
            whole = int(made + 1e-9)
            behind = (position[lost] - position[member]) % n
            if behind in (whole, whole + 1):
                senders.append(self.ring[(position[member] + whole) % n])
                in_vain.append(max(made - whole, 0.0) * self._sizes[member])
                ends[member] = made = float(whole)
            entered[member] = made - (behind <= whole)
        self._earlier.append(self._generation(self.entered, ends))
        self.ring = [member for member in self.ring if member != lost]
        self.entered, self.counted = entered, dict(entered)
        return senders, in_vain

    def _generation(self, entered: Mapping[int, float], ends: Mapping[int, float]) -> _Generation:
        ring, places = np.array(self.ring, np.int64), np.zeros(max(self._sizes) + 1, np.int64)
        places[ring] = np.arange(len(ring))
        begun = np.full(len(places), np.nan)
        reached = begun.copy()
        begun[list(entered)] = list(entered.values())
        reached[list(ends)] = list(ends.values())
        return _Generation(ring, places, begun, reached)

    def _between(
        self, hosts: list[int], start: Mapping[int, float], end: Mapping[int, float]
    ) -> ndarray:
        """What each of a ring sent while payloads went from x = start to x = end; float64 [n]."""
        position = dict(zip(hosts, range(len(hosts))))
        first = np.array([position[m] for m in start], np.int64)
        sizes = np.array([self._sizes[m] for m in start])
        done = _up_to(first, np.array([end[m] for m in start]), sizes, len(hosts))
        return done - _up_to(first, np.array(list(start.values())), sizes, len(hosts))


def _up_to(first: ndarray, hops: ndarray, sizes: ndarray, n: int) -> ndarray:
    """Bytes that each of n members of a ring sends while payloads make their first hops.

    Args:
        first: position of the member each payload begins at, int64 [m].
        hops: how many hops each one makes, < n, float64 [m].
        sizes: bytes of each, [m].
    """
    whole = (hops + 1e-9).astype(np.int64)
    edges = np.bincount(first, sizes, 2 * n) - np.bincount(first + whole, sizes, 2 * n)
    on = np.cumsum(edges)
    part = np.bincount((first + whole) % n, sizes * (hops - whole), n)
    return on[:n] + on[n : 2 * n] + part
