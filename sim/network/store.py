"""Store: the arrays that the kernels of `sim.network.solver` work on, and their growth.

Slots of rows, blocks of elements and numbers of links are handed out here; the arrays double when
they are full. Kernels see them through `book`, a table of addresses, so this class alone may
replace an array.

Legend: F rows that share links.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from sim.network.solver import kernels
from sim.network.solver import layout as s

UNLIMITED = 1e30
"""Capacity in bytes/s of a link without a limit: finite, so that no inf - inf can arise."""
_INBOX = 1024
"""Plain flows that one instant may start before they are made in between."""


class Mover(Protocol):
    """What has a row: it is told its slot, and once that it has ended."""

    row: int

    def conclude(self, moved: float, ok: bool) -> None:
        """The row has ended, with so many bytes moved; sets `row` to -1."""


class Store:
    """Rows, elements, links and pairs of one network.

    Args:
        capacity: bytes/s of each link, >= 0 or inf; float64 [L].
        n_rows, n_elements: room to begin with.
    """

    def __init__(self, capacity: np.ndarray, n_rows: int = 64, n_elements: int = 256) -> None:
        n_rows, n_elements = max(n_rows, 1), max(n_elements, 4)
        self.n_links = len(capacity)
        self.movers: list[Mover | None] = []
        """Who has each slot."""
        self._free: list[int] = []
        self._limbo: list[int] = []
        self._free_links: list[int] = []
        n_links = max(self.n_links, 1)
        self.lf = np.zeros((n_links, s.LINK_FLOATS))
        self.lf[: self.n_links, s.CAPACITY] = np.minimum(capacity, UNLIMITED)
        self.li = _new_links(n_links)
        self.rf = np.zeros((n_rows, s.ROW_FLOATS))
        self.ri = np.zeros((n_rows, s.ROW_INTS), np.int32)
        self._el = np.zeros((n_elements, s.ELEMENT_INTS), np.int32)
        self._load = np.ones(n_elements)
        self._pf = np.zeros((n_elements, s.PAIR_FLOATS))
        self._pi = np.zeros((n_elements, s.PAIR_INTS), np.int32)
        self._buckets = np.full(1 << (n_elements - 1).bit_length(), -1, np.int32)
        self.st = np.zeros(s.COUNTERS, np.int64)
        self.st[s.FREE_PAIR] = self.st[s.BLOCKS :] = -1
        self.counts: Any = memoryview(self.st)  # type: ignore[arg-type]
        """The counters as Python numbers; the same memory as `st`."""
        self._room = n_elements
        self._core = np.zeros(0, np.int64)
        self._inbox_i = np.zeros((_INBOX, s.INBOX_INTS), np.int64)
        self._inbox_f = np.zeros((_INBOX, s.INBOX_FLOATS))
        self._integers: Any = memoryview(self._inbox_i.reshape(-1))  # type: ignore[arg-type]
        self._floats: Any = memoryview(self._inbox_f.reshape(-1))  # type: ignore[arg-type]
        self._n_inbox = 0
        self._net: s.Net
        self.book: np.ndarray
        lists = np.zeros((s.ROW_LISTS, 0), np.int32), np.zeros((s.LINK_LISTS, 0), np.int32)
        self._bind((np.zeros(0), np.zeros(0, np.int64)), *lists)

    # Rows

    def slot(self, mover: Mover, elements: int, now: float) -> int:
        """A free slot for a mover, and room for a row of so many elements."""
        if not self._free:
            self._more_rows(now)
        block = 2 if elements <= 2 else 4 if elements <= 4 else 2 * elements  # at most
        self._room -= block
        if self._room < 0:
            self._more_elements(block, now)
        row = self._free.pop()
        self.movers[row] = mover
        mover.row = row
        return row

    def release(self, row: int, waits: bool = False) -> None:
        """A slot is free again; one that waited to arrive only once the instant is over."""
        self.movers[row] = None
        (self._limbo if waits else self._free).append(row)

    def end_instant(self) -> None:
        """Slots of what was cancelled before it arrived may be given out again."""
        if self._limbo:
            self._free += self._limbo
            self._limbo.clear()

    def sharing(self, now: float) -> tuple[np.ndarray, np.ndarray]:
        """Slots of the rows that share links, int64 [F], and the bytes they have moved, [F]."""
        rows = np.flatnonzero(self.ri[: len(self.movers), s.STATE] == s.SHARING)
        row = self.rf[rows]
        left = row[:, s.REMAINING] - row[:, s.RATE] * (now - row[:, s.SINCE])
        grouped = self.ri[rows, s.GROUPED] > 0
        group = self.lf[self.ri[rows[grouped], s.HELD]]
        clock = group[:, s.CLOCK] + group[:, s.GROUP_LEVEL] * (now - group[:, s.CLOCK_SINCE])
        left[grouped] = (row[grouped, s.KEY] - clock) * row[grouped, s.WEIGHT]
        return rows, row[:, s.NBYTES] - np.maximum(left, 0.0)

    def rate(self, row: int) -> float:
        """Bytes/s; 0 for a row that does not share links yet."""
        if self.ri[row, s.STATE] == s.SHARING and self.ri[row, s.GROUPED]:
            level = self.lf[self.ri[row, s.HELD], s.GROUP_LEVEL]
            return float(level * self.rf[row, s.WEIGHT])
        return float(self.rf[row, s.RATE])

    # Plain flows, which are made together

    def post(
        self,
        row: int,
        route: tuple[int, int, int, int],
        nbytes: float,
        latency: float,
        cap: float,
        weight: float,
        now: float,
    ) -> None:
        """Put a plain flow into the inbox; see `sim.network.fluid.Links.flow`."""
        if self._n_inbox == _INBOX:
            self.take_in(now)
        at, integers = s.INBOX_INTS * self._n_inbox, self._integers
        integers[at] = row
        integers[at + 1], integers[at + 2], integers[at + 3], integers[at + 4] = route
        at, floats = s.INBOX_FLOATS * self._n_inbox, self._floats
        floats[at], floats[at + 1], floats[at + 2], floats[at + 3] = nbytes, latency, cap, weight
        self._n_inbox += 1

    def hand_over(self) -> None:
        """Tell the kernels how much is in the inbox; the next call takes it."""
        self.counts[s.N_INBOX], self._n_inbox = self._n_inbox, 0

    def take_in(self, now: float) -> None:
        """Make the rows of the inbox before the instant is over."""
        if self._n_inbox:
            self.hand_over()
            kernels.take_in(now, self.book)

    def core(self) -> np.ndarray:
        """Links that the routes of plain flows name pieces of."""
        return self._core

    def set_core(self, core: np.ndarray, now: float) -> None:
        """Other links; what is in the inbox still means the old ones."""
        self.take_in(now)
        self._core = np.ascontiguousarray(core, np.int64)
        at = self._net._fields.index("core")
        self._net = self._net._replace(core=self._core)
        self.book[at] = self._core.ctypes.data, len(self._core)

    # Links

    def add_links(self, capacities: Sequence[float]) -> list[int]:
        """New links of these capacities; their numbers."""
        while len(self._free_links) < len(capacities):
            self._free_links.append(self.n_links)
            self.n_links += 1
        if self.n_links > len(self.lf):
            n = max(self.n_links, 2 * len(self.lf))
            self.lf = _longer(self.lf, n)
            self.li = np.concatenate([self.li, _new_links(n - len(self.li))])
            self._rebind()
        numbers = [self._free_links.pop() for _ in capacities]
        self.lf[numbers, s.CAPACITY] = np.minimum(capacities, UNLIMITED)
        return numbers

    def remove_links(self, links: Iterable[int]) -> None:
        """Links that nothing crosses any more may be given out again."""
        self._free_links += links

    # Growth

    def _more_rows(self, now: float) -> None:
        self.take_in(now)
        used = len(self.movers)
        if used == len(self.rf):
            self.rf, self.ri = _longer(self.rf, 2 * used), _longer(self.ri, 2 * used)
            self._rebind()
        self.movers += [None] * (len(self.rf) - used)
        self._free += range(len(self.rf) - 1, used - 1, -1)

    def _more_elements(self, need: int, now: float) -> None:
        """Room was counted without blocks that were freed: look first, then grow."""
        self.take_in(now)
        length, top = len(self._el), int(self.st[s.TOP_ELEMENT])
        if length - top < max(need, length // 8):
            length = 2 * length + need
            self._el, self._load = _longer(self._el, length), _longer(self._load, length)
            self._pf, self._pi = _longer(self._pf, length), _longer(self._pi, length)
            self._buckets = np.zeros(1 << (length - 1).bit_length(), np.int32)
            self._rebind()
            kernels.rehash(self.book)
        self._room = length - top - need

    def _rebind(self) -> None:
        old = self._net
        self._bind((old.heap_key, old.heap_item), old.row_lists, old.link_lists)

    def _bind(
        self, heap: tuple[np.ndarray, np.ndarray], row_lists: np.ndarray, link_lists: np.ndarray
    ) -> None:
        """All arrays in one book; heaps and lists as long as rows and links need them."""
        n_links, n_rows = len(self.lf), len(self.rf)
        size = n_links + 2 * n_rows + 8
        self._net = s.Net(
            rf=self.rf,
            ri=self.ri,
            el=self._el,
            load=self._load,
            lf=self.lf,
            li=self.li,
            pf=self._pf,
            pi=self._pi,
            buckets=self._buckets,
            heap_key=_longer(heap[0], n_links + n_rows),
            heap_item=_longer(heap[1], n_links + n_rows),
            fill_key=np.zeros(size),
            fill_item=np.zeros(size, np.int64),
            row_lists=np.ascontiguousarray(_longer(row_lists.T, 2 * n_rows + 8).T),
            link_lists=np.ascontiguousarray(_longer(link_lists.T, n_links).T),
            st=self.st,
            core=self._core,
            inbox_i=self._inbox_i,
            inbox_f=self._inbox_f,
        )
        self.out = self._net.row_lists[s.OUT]
        """Rows that a kernel names."""
        self.book = s.book_of(self._net)


def _longer(array: np.ndarray, n: int) -> np.ndarray:
    """A copy with n rows, the new ones zero."""
    longer = np.zeros((n, *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer


def _new_links(n: int) -> np.ndarray:
    """The integers of n links that nothing crosses."""
    links = np.zeros((n, s.LINK_INTS), np.int32)
    links[:, [s.GUESTS, s.SINGLES, s.ROOT, s.PAIRS, s.PAIRS_HERE, s.GROUP_PLACE]] = -1
    return links
