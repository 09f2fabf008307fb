"""What links offer while nothing else is on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray

if TYPE_CHECKING:
    from sim.network.transport import Transport


def access_rates(network: Transport, hosts: Sequence[int]) -> ndarray:
    """The slower of each host's widest link out and widest link in, bytes/s, float64 [n]."""
    routes = network.routes
    nodes = 1 + max(routes.tail.max(), routes.head.max())
    widest, capacity = np.zeros((2, nodes)), network.links.capacity[: len(routes.tail)]
    np.maximum.at(widest[0], routes.tail, capacity)
    np.maximum.at(widest[1], routes.head, capacity)
    return widest[:, list(hosts)].min(axis=0)


def idle_hops(network: Transport, hops: Sequence[tuple[int, int]]) -> tuple[ndarray, ndarray]:
    """Bytes/s and seconds of latency of each hop that has its links to itself, float64 [H].

    Raises:
        NoRoute: links that are down leave a pair without a path.
    """
    lengths, links, latencies, rates = network.routes.table(*np.array(hops, np.int64).T)
    moves, ends = lengths > 0, np.cumsum(lengths)
    slowest = np.minimum.reduceat(network.links.capacity[links], (ends - lengths)[moves])
    rates[moves] = np.minimum(rates[moves] * network.connections, slowest)
    return rates, latencies


def hop_seconds(network: Transport, hosts: Sequence[int], nbytes: float) -> ndarray:
    """How long `nbytes` take from each host to each other one, alone; [n, n], 0 to itself."""
    n = len(hosts)
    pairs = zip(np.repeat(hosts, n).tolist(), np.tile(hosts, n).tolist())
    rates, latencies = idle_hops(network, list(pairs))
    return (latencies + nbytes / np.maximum(rates, 1e-300)).reshape(n, n)
