"""Flows that are all known beforehand: when they end, in one compiled loop without a clock.

The same solver as behind `sim.network.fluid.Links`, and the same times; but nobody can see or
change anything on the way, so that no event of simpy and no Python runs between two instants.

Legend: F flows, L links, E elements (one per flow and link that it crosses).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy import ndarray

from sim.network.solver import kernels
from sim.network.store import Store


def finish_times(
    capacity: Iterable[float],
    lengths: ndarray,
    links: ndarray,
    nbytes: ndarray,
    begins: ndarray | float = 0.0,
    approximate: float = 0.0,
) -> ndarray:
    """When the last byte of each flow is there, in seconds; float64 [F], inf for never.

    Args:
        capacity: bytes/s of each link, >= 0 or inf; [L].
        lengths, links: the links that each flow crosses, flow after flow, each link once per flow;
            int64 [F] and [E].
        nbytes: float64 [F].
        begins: when each begins to share links: its start plus its latency, seconds >= 0; [F].
        approximate: as in `Links`.

    Two flows on one link, the second a second later:

    >>> one = np.ones(2, int)
    >>> finish_times([10.0], one, 0 * one, np.array([20.0, 20.0]), np.array([0.0, 1.0]))
    array([3., 4.])

    Raises:
        ValueError: lengths of the arrays, or numbers of links, that do not fit.
    """
    flows, lengths, links = len(lengths), np.asarray(lengths, np.int64), np.asarray(links, np.int64)
    if len(links) != lengths.sum() or len(nbytes) != flows:
        raise ValueError(
            f"{len(links)} links: expected {lengths.sum()}; {len(nbytes)} sizes: expected {flows}"
        )
    n_links = len(np.atleast_1d(np.asarray(capacity, float)))
    if len(links) and not 0 <= links.min() <= links.max() < n_links:
        raise ValueError(
            f"links {links.min()} .. {links.max()}: expected numbers from 0 to {n_links - 1}"
        )
    elements = int(np.maximum(4, 2 * lengths).sum())
    store = Store(np.array(capacity, float), flows, elements)
    finish = np.full(flows, np.inf)
    begins = np.zeros(flows) + begins
    pointer = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.array(links, np.int64), np.array(nbytes, float)
    kernels.run(pointer, *flat, begins, float(approximate), finish, store.book)
    return finish
