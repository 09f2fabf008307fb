"""Times of collectives alone on private links, in closed form.

What the simulator must give when nothing else is on the links, and what a reader can check by
hand. Seconds, bytes, bytes/s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy import ndarray
from numpy.typing import ArrayLike


def ring_all_reduce_seconds(
    nbytes: float, n: int, bandwidths: ArrayLike, latencies: ArrayLike = 0.0
) -> float:
    """2 (n - 1) steps at the pace of the slowest hop: 2 (n - 1) max_i (nbytes / n / b_i + l_i).

    Bandwidths and latencies are one number, or one per hop.

    >>> round(ring_all_reduce_seconds(2e9, 32, 18.9e6 / 8))
    1640
    """
    hop = nbytes / n / np.asarray(bandwidths, float) + np.asarray(latencies, float)
    return 2 * (n - 1) * float(np.max(hop))


def member_seconds(
    nbytes: float, n: int, bandwidths: ArrayLike, latencies: ArrayLike = 0.0
) -> ndarray:
    """When each member of a ring all-reduce has done its part; float64 [n], the last is the ring's.

    A step of hop i, from member i to the next, takes h_i = nbytes / n / b_i + l_i and begins when
    hop i has done the step before, and so has hop i - 1. With K = 2 (n - 1) steps hop i is done at
    the maximum over d < n of the sum of h over the hops i - d .. i, plus (K - 1 - d) times the
    largest h among them: a late step came d hops down from the slowest of these. A member is done
    when its own hop is and the hop that ends at it.

    >>> member_seconds(30.0, 3, [10.0, 5.0, 10.0]).round(6).tolist()
    [7.0, 8.0, 8.0]
    """
    hop = nbytes / n / np.asarray(bandwidths, float) + np.asarray(latencies, float)
    hop, steps = np.broadcast_to(hop, n), 2 * (n - 1)
    total, slowest, ends = np.zeros(n), np.zeros(n), np.zeros(n)
    for behind in range(min(n, steps)):
        there = np.roll(hop, behind)
        total, slowest = total + there, np.maximum(slowest, there)
        ends = np.maximum(ends, total + (steps - 1 - behind) * slowest)
    return np.maximum(ends, np.roll(ends, 1))


def reduce_scatter_seconds(
    nbytes: float, n: int, bandwidths: ArrayLike, latencies: ArrayLike = 0.0
) -> float:
    """Half of a ring all-reduce: n - 1 steps at the pace of the slowest hop.

    Source: Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms for clusters of
    workstations, Journal of Parallel and Distributed Computing 69 (2009).
    """
    return ring_all_reduce_seconds(nbytes, n, bandwidths, latencies) / 2


def halving_doubling_seconds(
    nbytes: float, n: int, bandwidth: float, latency: float = 0.0
) -> float:
    """2 (log2 p latency + (p - 1) / p nbytes / bandwidth) for p members, the largest power of two.

    If n > p, folding and unfolding the others takes 2 (latency + nbytes / bandwidth) more.

    Source: Thakur, Rabenseifner and Gropp, Optimization of collective communication operations in
    MPICH, International Journal of High Performance Computing Applications 19 (2005).

    >>> halving_doubling_seconds(80.0, 8, 10.0, 1.0)
    20.0
    """
    power = 1 << (n.bit_length() - 1)
    halving = (power.bit_length() - 1) * latency + (power - 1) / power * nbytes / bandwidth
    return 2 * halving + 2 * (n > power) * (latency + nbytes / bandwidth)


def tree_all_reduce_seconds(nbytes: float, n: int, bandwidth: float, latency: float = 0.0) -> float:
    """Sums up a binary tree of n members, filled level by level, and the result down again.

    Two children share the link of their parent: 2 (latency + 2 nbytes / bandwidth) per full level.
    A child whose own children are fewer is earlier, and then has the link to itself for a while.

    >>> tree_all_reduce_seconds(10.0, 7, 10.0, 1.0)
    12.0
    """
    alone = nbytes / bandwidth
    up = [0.0] * n
    for parent in range((n - 2) // 2, -1, -1):
        starts = sorted(
            up[child] + latency for child in (2 * parent + 1, 2 * parent + 2) if child < n
        )
        gap = starts[-1] - starts[0]
        up[parent] = (
            starts[0] + alone if len(starts) == 1 else starts[0] + max(2 * alone, gap + alone)
        )
    down = [0.0] * n
    for child in range(1, n):
        parent = (child - 1) // 2
        siblings = 2 if 2 * parent + 2 < n else 1
        down[child] = down[parent] + latency + siblings * alone
    return max(up) + max(down)


def butterfly_seconds(
    nbytes: float,
    n: int,
    bandwidths: ArrayLike,
    latency: float = 0.0,
    shards: ArrayLike | None = None,
) -> float:
    """Each member reduces a shard: it gets it from all others, and hands the sum to all.

    A phase takes max_i max(S - s_i, (n - 1) s_i) / b_i, both of which cross the links of a member
    in one direction or the other; equal shards, unless given as fractions, and equal links make
    2 (latency + (n - 1) / n nbytes / bandwidth). Exact if the bytes of each phase fill the slowest
    link all the time.

    Source: Ryabinin et al., Moshpit SGD, arXiv:2103.03239.

    >>> butterfly_seconds(80.0, 8, 10.0, 1.0)
    16.0
    """
    share = np.broadcast_to(1.0 / n if shards is None else np.asarray(shards, float), n)
    most = nbytes * np.maximum(1.0 - share, (n - 1) * share)
    return 2 * (latency + float(np.max(most / np.asarray(bandwidths, float))))


def parameter_server_seconds(
    nbytes: float,
    n: int,
    bandwidth: float,
    latency: float = 0.0,
    server: float | None = None,
) -> float:
    """n - 1 members push to the n-th, and pull: 2 (latency + max(S / b, (n - 1) S / b_server)).

    >>> parameter_server_seconds(10.0, 5, 10.0, 1.0)
    10.0
    """
    slowest = max(nbytes / bandwidth, (n - 1) * nbytes / (bandwidth if server is None else server))
    return 2 * (latency + slowest)


def hierarchical_seconds(
    nbytes: float, sites: Sequence[int], inside: float, across: float, latency: float = 0.0
) -> float:
    """Rings of `sites` members inside, a ring across, and a chain inside; bytes/s of each.

    `latency` is that of any hop.

    >>> hierarchical_seconds(12.0, [2, 3], 4.0, 1.0)
    19.0
    """
    rings = max(ring_all_reduce_seconds(nbytes, m, inside, latency) for m in sites)
    back = max(chain_seconds(nbytes, m, inside, latency) if m > 1 else 0.0 for m in sites)
    return rings + ring_all_reduce_seconds(nbytes, len(sites), across, latency) + back


def chain_seconds(nbytes: float, n: int, bandwidth: float, latency: float = 0.0) -> float:
    """A broadcast in small chunks along n members: nbytes / bandwidth + (n - 1) latency."""
    return nbytes / bandwidth + (n - 1) * latency


def tree_seconds(nbytes: float, n: int, bandwidth: float, latency: float = 0.0) -> float:
    """A broadcast in small chunks down a binary tree: half the rate, and its depth in latency."""
    return min(n - 1, 2) * nbytes / bandwidth + (n.bit_length() - 1) * latency


def mesh_seconds(nbytes: float, n: int, bandwidth: float, latency: float = 0.0) -> float:
    """All-to-all, or all-gather by mesh: (n - 1) nbytes through each link at once, one latency."""
    return (n - 1) * nbytes / bandwidth + latency


def all_gather_seconds(nbytes: float, n: int, bandwidth: float, latency: float = 0.0) -> float:
    """n - 1 payloads of `nbytes` through each link: (n - 1) (nbytes / bandwidth + latency).

    >>> round(all_gather_seconds(46.9e6, 32, 18.9e6 / 8))
    615
    """
    return (n - 1) * (nbytes / bandwidth + latency)


def relay_seconds(sizes: ArrayLike, rates: ArrayLike, latencies: ArrayLike = 0.0) -> float:
    """A ring all-gather of unequal payloads, each handed on as a whole and in turn.

    Hop i begins step k when it has sent step k - 1 and has received what hop i - 1 sent in it; in
    step k it sends the payload of the member k places before it. Exact while hops share no link.

    Args:
        sizes: bytes of each member's payload, [n].
        rates, latencies: bytes/s and seconds of the hop from each member to the next, [n].

    >>> relay_seconds([10.0, 10.0, 40.0], [1.0, 1.0, 2.0])
    60.0
    """
    sizes, n = np.asarray(sizes, float), np.size(sizes)
    with np.errstate(divide="ignore"):  # a link of capacity 0: never
        pace = np.broadcast_to(1.0 / np.asarray(rates, float), n)
    return float(_relay(sizes, pace, np.broadcast_to(np.asarray(latencies, float), n)))


@njit(cache=True)
def _relay(sizes: ndarray, pace: ndarray, delay: ndarray) -> float:
    n = len(sizes)
    ends, before = np.zeros(n), np.zeros(n)
    for step in range(n - 1):
        ends, before = before, ends
        for i in range(n):
            begin = max(before[i], before[i - 1]) if step else 0.0
            ends[i] = begin + sizes[i - step] * pace[i] + delay[i]
    return ends.max() if n else 0.0


def crossover_n(dense_bytes: float, sparse_bytes: float) -> float:
    """Members beyond which gathering sparse payloads takes longer than a dense ring all-reduce.

    From (n - 1) sparse = 2 (n - 1) / n dense: n = 2 dense / sparse.

    >>> crossover_n(2e9, 50e6)
    80.0
    """
    return 2.0 * dense_bytes / sparse_bytes
