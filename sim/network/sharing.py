"""How concurrent activities share links: max-min fairness, with weights that a model gives.

Legend: F activities (rows), E elements (one per activity and link that it uses), L links.

An activity moves its bytes at one rate r >= 0 and loads each of its links with a * r, where the
coefficient a > 0 is the number of its simultaneous transfers that cross the link: 1 for a plain
flow, more for a collective. Its level is r / weight. Rates are max-min fair if nobody's level can
grow without taking from one whose level is not higher.

`sim.network.solver` keeps the rates of a running network; `max_min` computes those of given rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

_TIE = 1.0 - 1e-12
"""Shares this close are one bottleneck: rounding must not split a tie into two rounds."""


class Sharing(ABC):
    """Says how much of a bottleneck an activity gets, relative to others."""

    @abstractmethod
    def weight(self, latency: float) -> float:
        """The weight, > 0, of a transfer over a route of this latency (one way, seconds)."""


@dataclass(frozen=True)
class MaxMin(Sharing):
    """Every transfer has the same weight: what many parallel or well-tuned connections come to.

    >>> MaxMin().weight(0.1)
    1.0
    """

    def weight(self, latency: float) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True)
class RttWeighted(Sharing):
    """Shares are proportional to 1 / latency: single TCP connections of the Reno family.

    The throughput of a loss-based connection goes with the inverse of its round-trip time (Mathis
    et al., 1997, "The macroscopic behavior of the TCP congestion avoidance algorithm"); on a common
    bottleneck all see the same loss. It is also the rule of SimGrid's CM02.

    Args:
        least: seconds; latencies below it count as it. At 0 a route without latency has weight 1.

    >>> RttWeighted().weight(0.1)
    10.0
    """

    least: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.least < np.inf:
            raise ValueError(f"least={self.least}: must be a number of seconds >= 0, such as 0.001")

    def weight(self, latency: float) -> float:
        """1 / latency."""
        latency = max(latency, self.least)
        return 1.0 / latency if latency > 0.0 else 1.0


def max_min(
    capacity: ndarray,
    lengths: ndarray,
    links: ndarray,
    loads: ndarray,
    caps: ndarray,
    weights: ndarray | None = None,
) -> ndarray:
    """The max-min fair rate of each activity.

    Each round gives every link with capacity left an equal share per unit of weighted load, and
    freezes the activities of *all* links whose share binds everybody on them (a local minimum), not
    only of the tightest link: shares never fall when others freeze at less, so these are final.
    That makes the number of rounds the depth of the chain of bottlenecks (1 to 5 on access links)
    instead of their number. O(rounds * (E + L)) in about 20 array operations a round.

    Source: Bertsekas and Gallager, Data Networks, 2nd edition, section 6.5.2.

    Args:
        capacity: bytes/s, finite, float64 [L].
        lengths: links per activity, each >= 1, int64 [F]; the elements lie row after row.
        links, loads: the link of each element (int64) and its coefficient (float64), [E];
            no link twice in a row.
        caps: what an activity can move by itself, bytes/s or inf, float64 [F].
        weights: > 0, float64 [F]; 1 if None.

    Returns:
        bytes/s, float64 [F].
    """
    n_links = len(capacity)
    weights = np.ones(len(lengths)) if weights is None else weights
    levels, rows, residual = caps / weights, np.arange(len(lengths)), capacity
    caps, loads = levels, loads * np.repeat(weights, lengths)
    levels = np.array(levels)
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
        levels[rows[frozen]] = level[frozen]
        gone = frozen[owner]
        used = np.bincount(links[gone], (loads * pace)[gone], n_links)
        residual = np.maximum(residual - used, 0.0)
        links, loads = links[~gone], loads[~gone]
        rows, lengths, caps = rows[~frozen], lengths[~frozen], caps[~frozen]
    return levels * weights
