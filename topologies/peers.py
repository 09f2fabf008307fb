"""Peers: directed graphs that change from round to round; who begins a pairwise exchange.

Legend: n nodes, p peers of a node in a round.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import networkx as nx
import numpy as np
from scipy import sparse

from sim.units import nearest

_DIRECTIONS = ("forward", "both")


class Peers(ABC):
    """Who sends to whom in each round."""

    @abstractmethod
    def receivers(self, n: int, number: int) -> np.ndarray:
        """To whom each of n nodes sends in round `number`, counted from 0: int64 [n, p].

        A node may occur twice in a row, or send to itself: it then gets that share twice, or keeps
        it.
        """


@dataclass(frozen=True)
class ExponentialPeers(Peers):
    """The time-varying exponential graph: node i sends to i + 1, i + 2, i + 4, ... (mod n) in turn.

    With one peer a round, n = 2^k nodes hold the exact mean after k rounds.

    Args:
        peers: p, receivers of a node in a round. Forward, the distances of round k are
            (p + 1)^k, 2 (p + 1)^k, ..., p (p + 1)^k.
        directions: `"forward"`, or `"both"`: the distances are +1, -1, +2, -2, +4, ..., p of them
            in each round.

    Both are of the code of facebookresearch/stochastic_gradient_push: "forward" is its
    `NPeerDynamicDirectedExponentialGraph`, "both" its `DynamicDirectedExponentialGraph` (whose
    small n have a distance twice: n = 6 has +1, -1, +2, -2, +4 = -2, -4 = +2).

    >>> ExponentialPeers().receivers(5, number=2).ravel().tolist()
    [4, 0, 1, 2, 3]

    References:
        M. Assran, N. Loizou, N. Ballas, M. Rabbat, "Stochastic Gradient Push for Distributed Deep
        Learning", arXiv:1811.10792, 2018.
    """

    peers: int = 1
    directions: str = "forward"

    def __post_init__(self) -> None:
        if self.peers < 1:
            raise ValueError(f"peers={self.peers}: must be an integer >= 1")
        if self.directions not in _DIRECTIONS:
            close = nearest(str(self.directions), list(_DIRECTIONS))
            raise ValueError(
                f"directions={self.directions!r}: one of {_DIRECTIONS}; did you mean {close!r}?"
            )

    def receivers(self, n: int, number: int) -> np.ndarray:
        distances = np.array(self.distances(n), dtype=np.int64)
        if not len(distances):
            return np.empty((n, 0), dtype=np.int64)
        turn = (number * self.peers + np.arange(self.peers)) % len(distances)
        return (np.arange(n)[:, None] + distances[turn]) % n

    def distances(self, n: int) -> list[int]:
        """How far each message goes, in the order of the turns; none if a node is alone.

        >>> ExponentialPeers(directions="both").distances(5)
        [1, -1, 2, -2, 4, -4]
        """
        base = 2 if self.directions == "both" else self.peers + 1
        steps = [1]
        while steps[-1] * base <= n - 1:
            steps.append(steps[-1] * base)
        if n < 2:
            return []
        if self.directions == "both":
            return [sign * step for step in steps for sign in (1, -1)]
        return [j * step for step in steps for j in range(1, self.peers + 1)]


def links(receivers: np.ndarray) -> sparse.csr_array:
    """How often node i hears from node j in a round, [n, n] at (i, j).

    Args:
        receivers: of each node, int64 [n, p].
    """
    n, p = receivers.shape
    entries = (np.ones(n * p), (receivers.ravel(), np.repeat(np.arange(n), p)))
    return sparse.coo_array(entries, shape=(n, n)).tocsr()


def active_nodes(graph: nx.Graph) -> np.ndarray:
    """Split the nodes 0 .. n-1 into active and passive ones: bool [n].

    Pairwise exchanges that active nodes begin with passive ones, never otherwise, cannot wait for
    each other in a circle. A bipartite graph keeps all of its edges between the two, any other
    one at least half; what is connected stays connected by these edges.

    Node by node from the lowest, in breadth-first order, each is put opposite to most of its
    neighbours that have been put; a tie goes to the smaller side.

    >>> from topologies import complete, ring
    >>> active_nodes(ring(6)).tolist()
    [True, False, True, False, True, False]
    >>> int(active_nodes(complete(9)).sum())
    5
    """
    neighbors = graph.to_undirected(as_view=True) if graph.is_directed() else graph
    active, placed = np.zeros(len(graph), dtype=bool), np.zeros(len(graph), dtype=bool)
    for first in range(len(graph)):
        if placed[first]:
            continue
        order = [first, *(node for _, node in nx.bfs_edges(neighbors, first))]
        for node in order:
            known = np.fromiter(neighbors[node], dtype=np.int64)
            known = known[placed[known] & (known != node)]
            balance = 2 * int(active[known].sum()) - len(known)
            active[node] = balance < 0 if balance else 2 * active.sum() <= placed.sum()
            placed[node] = True
    return active
