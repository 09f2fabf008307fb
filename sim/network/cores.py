"""Core paths: the shortest paths between the gates of a network, found when asked for.

A *gate* is a node where routes branch: all nodes but the hosts that hang on a single neighbour.
Paths between gates are few where hosts are many (25 regions, 100,000 hosts), so they are searched
when first wanted and remembered, as rows of growing arrays.

- The shortest path by latency, ties by fewest hops, then by the lower number of the node before;
  or the other way round, fewest hops first. Latencies are compared in whole picoseconds, so that
  ties are ties whatever the order in which they are summed.
- A direct link that no detour can beat is taken without a search.

Legend: G gates, C links between gates, K paths remembered.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray
from scipy import sparse
from scipy.sparse import csgraph

_MOST_PATHS = 1_000_000
"""Paths remembered before starting over: some 200 MB when every pair of many gates is used."""
_MOST_SEARCHED = 8_000_000
"""Nodes in remembered searches, 4 bytes each, before the oldest are dropped."""


class Cores:
    """Paths between gates 0 .. G-1 over links that have numbers in a larger network.

    Args:
        tail, head: gates at which the links begin and end; int64 [C].
        links: their numbers; int64 [C].
        n: G.
        latency, cap: seconds, and bytes/s of one connection, of every link of the network.
        fewest_hops: whether hops count before latency.

    Attributes:
        ptr, links: path k is `links[ptr[k]:ptr[k + 1]]`; int64, with room at the end.
        latency, cap: sum, and minimum, over the links of each path; float64.
        version: changes when all paths are forgotten, and their numbers with them: when a link
            between gates goes up or down, and when too many are remembered.
    """

    def __init__(
        self,
        tail: ndarray,
        head: ndarray,
        links: ndarray,
        n: int,
        latency: ndarray,
        cap: ndarray,
        fewest_hops: bool,
    ) -> None:
        self.n, self._fewest_hops = n, fewest_hops
        order = np.argsort(tail * n + head)
        self._tail, self._head, self._link = tail[order], head[order], links[order]
        self._keys = self._tail * n + self._head
        self._first = np.searchsorted(self._tail, np.arange(n + 1))
        self._picoseconds = np.rint(latency[self._link] * 1e12).astype(np.int64)
        weights = self._picoseconds.astype(float), np.ones(len(order))
        self._weights = weights[::-1] if fewest_hops else weights
        self._of_links = latency, cap
        self._up = np.ones(len(order), bool)
        self.version = -1
        self._forget()

    def find(self, a: int, b: int) -> int:
        """The number of the path from gate a to gate b, empty if they are the same; -1: none."""
        key = a * self.n + b
        number = self._ids.get(key)
        if number is None:
            self._bound()
            self._add(np.array([key], np.int64))
            number = self._ids[key]
        return number

    def find_many(self, a: ndarray, b: ndarray) -> ndarray:
        """`find` for arrays of gates; int64, of their shape [m]."""
        keys, where = np.unique(a * self.n + b, return_inverse=True)
        new = [key for key in keys.tolist() if key not in self._ids]
        if new:
            if self._bound():
                new = keys.tolist()
            self._add(np.array(new, np.int64))
        return np.array([self._ids[key] for key in keys.tolist()], np.int64)[where]

    def set_up(self, a: int, b: int, up: bool) -> None:
        """Take the link from gate a to gate b out of, or back into, what paths may use."""
        self._up[np.searchsorted(self._keys, a * self.n + b)] = up
        self._forget()

    def _forget(self) -> None:
        self.version += 1
        self._ids: dict[int, int] = {}
        self._count = 0
        self.ptr, self.links = np.zeros(65, np.int64), np.zeros(64, np.int64)
        self.latency, self.cap = np.zeros((2, 64))
        self._searches: dict[int, ndarray] = {}
        usable = np.flatnonzero(self._up)
        leaves = self._tail[usable]
        self._nearest = np.full(self.n, np.iinfo(np.int64).max)
        """Picoseconds of the shortest link that leaves each gate; int64 [G]."""
        np.minimum.at(self._nearest, leaves, self._picoseconds[usable])
        self._only = np.full(self.n, -1)
        """Position of the link by which all paths leave a gate, -1 if there are several; [G]."""
        self._only[leaves] = usable
        self._only[np.bincount(leaves, minlength=self.n) != 1] = -1

    def _bound(self) -> bool:
        """Start over if too much is remembered."""
        full = len(self._ids) > _MOST_PATHS
        if full:
            self._forget()
        return full

    def _add(self, keys: ndarray) -> None:
        """Find and store the paths of new pairs, given as `a * G + b`."""
        direct = self._direct(keys)
        linked = direct >= 0
        self._store(keys[linked], np.ones(linked.sum(), np.int64), direct[linked])
        keys = keys[~linked]
        a, b = np.divmod(keys, self.n)
        only = np.where(a == b, -1, self._only[a])
        root = np.where(only < 0, a, self._head[only] if len(self._head) else a)
        order = np.argsort(root, kind="stable")
        cuts = np.flatnonzero(np.diff(root[order])) + 1
        for some in np.split(order, cuts) if len(keys) else []:
            self._add_from(int(root[some[0]]), keys[some], only[some], b[some])

    def _add_from(self, root: int, keys: ndarray, first: ndarray, ends: ndarray) -> None:
        """Store paths that have one search in common: `first` leads to its root, if not -1."""
        before, at, steps = self._searched(root), ends, []
        while (link := before[at]).max() >= 0:
            steps.append(link)
            at = np.where(link < 0, at, self._tail[link])
        found = at == root
        self._ids.update(dict.fromkeys(keys[~found].tolist(), -1))
        positions = np.stack([first, *steps[::-1]], axis=1)[found]
        crossed = positions >= 0
        self._store(keys[found], crossed.sum(axis=1), self._link[positions[crossed]])

    def _direct(self, keys: ndarray) -> ndarray:
        """The link between the two gates, where no detour can beat it; -1 elsewhere.

        By latency that is so if no link that leaves the first gate is shorter.
        """
        at = np.searchsorted(self._keys, keys)
        at[at == len(self._keys)] = -1
        if not len(self._keys):
            return at
        best = (self._keys[at] == keys) & self._up[at]
        if not self._fewest_hops:
            best &= self._picoseconds[at] <= self._nearest[keys // self.n]
        return np.where(best, self._link[at], -1)

    def _store(self, keys: ndarray, lengths: ndarray, links: ndarray) -> None:
        """Append paths: their links lie one after the other."""
        old, self._count = self._count, self._count + len(keys)
        begin, new = self.ptr[old], slice(old, self._count)
        self.ptr = _roomy(self.ptr, self._count + 1)
        self.ptr[old + 1 : self._count + 1] = begin + np.cumsum(lengths)
        self.links = _roomy(self.links, self.ptr[self._count])
        self.links[begin : self.ptr[self._count]] = links
        self.latency, self.cap = (_roomy(x, self._count) for x in (self.latency, self.cap))
        latency, cap = self._of_links
        path = np.repeat(np.arange(len(keys)), lengths)
        self.latency[new] = np.bincount(path, latency[links], minlength=len(keys))
        self.cap[new] = np.inf
        np.minimum.at(self.cap[new], path, cap[links])
        self._ids.update(zip(keys.tolist(), range(old, self._count)))

    def _searched(self, root: int) -> ndarray:
        """What `_search` finds, remembered."""
        if root not in self._searches:
            while len(self._searches) * self.n > _MOST_SEARCHED:
                del self._searches[next(iter(self._searches))]
            self._searches[root] = self._search(root)
        return self._searches[root]

    def _search(self, root: int) -> ndarray:
        """For each gate the position of the link that reaches it, -1 if none; int32 [G].

        Dijkstra twice: by the first measure, then by the second over the links that are part of a
        path that is shortest by the first. Sums of whole numbers in floats are exact.
        """
        links = np.flatnonzero(self._up)
        for weight in self._weights:
            first = np.searchsorted(self._tail[links], np.arange(self.n + 1))
            csr = (weight[links], self._head[links], first)
            length = csgraph.dijkstra(sparse.csr_array(csr, (self.n, self.n)), indices=root)
            reached = length[self._tail[links]] + weight[links]
            links = links[np.isfinite(reached) & (reached == length[self._head[links]])]
        before = np.full(self.n, -1, np.int32)
        before[self._head[links][::-1]] = links[::-1]  # the last one written has the lowest tail
        return before


def _roomy(array: ndarray, size: int) -> ndarray:
    """The array, or a copy of twice the size, with room for `size` elements."""
    if size <= len(array):
        return array
    grown = np.zeros(max(2 * len(array), size), array.dtype)
    grown[: len(array)] = array
    return grown
