"""Orders of a ring that its links like: the least slowest hop, or the least sum of hops.

Costs are seconds of a hop from each member to each other one; they need not be symmetric. With up
to ten members the order is the best there is, by dynamic programming over subsets (Held and Karp
1962); with more it is a good one: nearest neighbour from every start, then 2-opt. For the slowest
hop that is done on costs of 0 or more, those above a threshold, which a binary search lowers while
a ring without any is found. No randomness: the same costs give the same order.

Source: Held and Karp, A dynamic programming approach to sequencing problems, Journal of SIAM 10
(1962); Croes, A method for solving traveling-salesman problems, Operations Research 6 (1958).
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from sim.network.arguments import check_choice

ORDERS = ["min_max", "min_sum"]
_EXACT = 10
"""Members up to which the best order is found."""
_STARTS = 16
"""Starts of the nearest-neighbour heuristic."""


def find_order(costs: ndarray, objective: str) -> list[int]:
    """Indices of members in the order of a ring that begins with the first.

    Args:
        costs: seconds (or anything else to keep small) of the hop from i to j, >= 0, [n, n]; the
            diagonal is ignored.
        objective: "min_max", the least slowest hop, and of such rings one with a small sum; or
            "min_sum", the least sum of hops.

    >>> costs = np.array([[0, 9, 1], [1, 0, 9], [9, 1, 0]])
    >>> find_order(costs, "min_sum")
    [0, 2, 1]
    """
    check_choice("objective", objective, ORDERS)
    costs = np.array(costs, float)
    n = len(costs)
    if costs.shape != (n, n):
        raise ValueError(f"costs of shape {costs.shape}: expected [n, n]")
    np.fill_diagonal(costs, 0.0)
    wrong = ~((costs >= 0.0) & (costs < np.inf))
    if wrong.any():
        src, dst = np.argwhere(wrong)[0].tolist()
        raise ValueError(f"costs[{src}, {dst}]={costs[src, dst]}: expected a finite number >= 0")
    if n < 3:
        return list(range(n))
    exact = n <= _EXACT
    if objective == "min_sum":
        return _best(costs, np.add) if exact else _good(costs)[0]
    order = _best(costs, np.maximum) if exact else _least_slowest(costs)
    slow = costs > slowest_hop(costs, order)
    without = np.where(slow, 2.0 * n * costs.max() + 1.0, costs)  # never worth it
    return _best(without, np.add) if exact else _improve(without, order)


def slowest_hop(costs: ndarray, order: list[int]) -> float:
    """The largest cost around a ring."""
    return float(costs[order, np.roll(order, -1)].max())


def sum_of_hops(costs: ndarray, order: list[int]) -> float:
    """The sum of costs around a ring."""
    return float(costs[order, np.roll(order, -1)].sum())


def _best(costs: ndarray, join: np.ufunc) -> list[int]:
    """Held-Karp: over sets of members, the best path from 0 through them to each last one."""
    n = len(costs)
    best = np.full((1 << (n - 1), n - 1), np.inf)
    before = np.zeros(best.shape, np.int64)
    for last in range(n - 1):
        best[1 << last, last] = costs[0, last + 1]
    inner = costs[1:, 1:]
    for visited in range(1, 1 << (n - 1)):
        for last in range(n - 1):
            rest = visited & ~(1 << last)
            if rest != visited and rest:
                ways = join(best[rest], inner[:, last])
                before[visited, last] = at = int(ways.argmin())
                best[visited, last] = ways[at]
    visited = (1 << (n - 1)) - 1
    last = int(join(best[visited], costs[1:, 0]).argmin())
    order = []
    while visited:
        order.append(last + 1)
        visited, last = visited & ~(1 << last), int(before[visited, last])
    return [0, *order[::-1]]


def _good(costs: ndarray) -> tuple[list[int], float]:
    """Nearest neighbour from some starts, each improved by 2-opt; the best of them."""
    n = len(costs)
    starts = np.unique(np.linspace(0, n - 1, min(n, _STARTS)).astype(int)).tolist()
    orders = [_improve(costs, _nearest(costs, start)) for start in starts]
    order = min(orders, key=lambda found: sum_of_hops(costs, found))
    at = order.index(0)
    return [*order[at:], *order[:at]], sum_of_hops(costs, order)


def _nearest(costs: ndarray, start: int) -> list[int]:
    """From each member on to the nearest that is left."""
    left, order = np.ones(len(costs), bool), [start]
    left[start] = False
    for _ in range(len(costs) - 1):
        candidates = np.flatnonzero(left)
        order.append(int(candidates[costs[order[-1], candidates].argmin()]))
        left[order[-1]] = False
    return order


def _improve(costs: ndarray, order: list[int]) -> list[int]:
    """2-opt: reverse a stretch of the ring while that helps, the best one for each beginning."""
    ring, n, helped = np.array(order), len(order), True
    while helped:
        helped = False
        for first in range(1, n - 1):
            there = np.append(costs[ring[:-1], ring[1:]], 0.0)
            back = np.append(costs[ring[1:], ring[:-1]], 0.0)
            lasts = np.arange(first + 1, n)
            ways = np.cumsum((back - there)[first : n - 1])  # of turning first .. last round
            old = costs[ring[first - 1], ring[first]] + costs[ring[lasts], ring[(lasts + 1) % n]]
            new = costs[ring[first - 1], ring[lasts]] + costs[ring[first], ring[(lasts + 1) % n]]
            gain = ways + new - old
            at = int(gain.argmin())
            if gain[at] < -1e-12 * max(float(old[at]), 1e-300) - 1e-15:
                last = first + 1 + at
                ring[first : last + 1] = ring[first : last + 1][::-1].copy()
                helped = True
    return ring.tolist()


def _least_slowest(costs: ndarray) -> list[int]:
    """The least threshold for which a ring is found all of whose hops cost no more."""
    values = np.unique(costs[~np.eye(len(costs), dtype=bool)])
    order, _ = _good(costs)
    low, high = 0, int(np.searchsorted(values, slowest_hop(costs, order)))
    while low < high:
        middle = (low + high) // 2
        above = np.where(costs <= values[middle], 0.0, 1.0)
        found, total = _good(above)
        if total == 0.0:
            order, high = found, middle
        else:
            low = middle + 1
    return order
