"""How concurrent activities share links: progressive filling, exact.

Legend: F activities (rows), E elements (one per activity and link that it uses), L links.

An activity moves its bytes at one rate r >= 0 and loads each of its links with a * r, where the
coefficient a >= 1 is the number of its simultaneous transfers that cross the link: 1 for a plain
flow, more for a collective. Rows arrive as flat arrays (compressed sparse rows), so that a model
of sharing is one pure function of arrays, called once per instant at which something changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

_TIE = 1.0 - 1e-12
"""Shares this close are one bottleneck: rounding must not split a tie into two rounds."""


class Sharing(ABC):
    """A model of sharing: capacities and rows -> rates."""

    @abstractmethod
    def rates(
        self, capacity: ndarray, lengths: ndarray, links: ndarray, loads: ndarray, caps: ndarray
    ) -> ndarray:
        """The rate of each activity.

        Args:
            capacity: bytes/s, finite, float64 [L].
            lengths: links per activity, each >= 1, int64 [F]; the elements lie row after row.
            links, loads: the link of each element (int64) and its coefficient (float64), [E];
                no link twice in a row.
            caps: what an activity can move by itself, bytes/s or inf, float64 [F].

        Returns:
            bytes/s, float64 [F].
        """


@dataclass(frozen=True)
class MaxMin(Sharing):
    """Max-min fair: no activity can get more without taking from one that has no more than it.

    Equivalently every activity is at its cap, or crosses a full link on which nobody is faster.
    Each round gives every link with capacity left an equal share per unit of load, and freezes
    the activities of *all* links whose share binds everybody on them (a local minimum), not only
    of the tightest link: shares never fall when others freeze at less, so these are final. That
    makes the number of rounds the depth of the chain of bottlenecks (1 to 5 on access links)
    instead of their number. O(rounds * (E + L)) in about 20 array operations a round.

    Source: Bertsekas and Gallager, Data Networks, 2nd edition, section 6.5.2.
    """

    def rates(
        self, capacity: ndarray, lengths: ndarray, links: ndarray, loads: ndarray, caps: ndarray
    ) -> ndarray:
        n_links = len(capacity)
        rates, rows, residual = np.array(caps), np.arange(len(lengths)), capacity
        while len(rows):
            owner = np.repeat(np.arange(len(rows)), lengths)
            load = np.bincount(links, loads, n_links)
            share = residual / np.maximum(load, 1e-30)  # unloaded links are never looked up
            offer = share[links]
            level = np.minimum(np.minimum.reduceat(offer, np.cumsum(lengths) - lengths), caps)
            pace = level[owner]
            binds = np.ones(n_links, bool)
            binds[links[pace < offer * _TIE]] = False  # somebody on it is held lower elsewhere
            frozen = caps <= level
            frozen[owner[binds[links]]] = True
            rates[rows[frozen]] = level[frozen]
            gone = frozen[owner]
            used = np.bincount(links[gone], (loads * pace)[gone], n_links)
            residual = np.maximum(residual - used, 0.0)
            links, loads = links[~gone], loads[~gone]
            rows, lengths, caps = rows[~frozen], lengths[~frozen], caps[~frozen]
        return rates
