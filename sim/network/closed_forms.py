"""Times of collectives alone on private links, in closed form.

What the simulator must give when nothing else is on the links, and what a reader can check by
hand. Seconds, bytes, bytes/s.
"""

from __future__ import annotations

import numpy as np
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


def all_gather_seconds(nbytes: float, n: int, bandwidth: float, latency: float = 0.0) -> float:
    """n - 1 payloads of `nbytes` through each link: (n - 1) (nbytes / bandwidth + latency).

    >>> round(all_gather_seconds(46.9e6, 32, 18.9e6 / 8))
    615
    """
    return (n - 1) * (nbytes / bandwidth + latency)


def crossover_n(dense_bytes: float, sparse_bytes: float) -> float:
    """Members beyond which gathering sparse payloads takes longer than a dense ring all-reduce.

    From (n - 1) sparse = 2 (n - 1) / n dense: n = 2 dense / sparse.

    >>> crossover_n(2e9, 50e6)
    80.0
    """
    return 2.0 * dense_bytes / sparse_bytes
