"""Aggregation: how the rows that the members of a collective have sent become one.

A mean may be added up on the way, around a ring. Any other rule needs the rows of all members at
every member: they are gathered, n - 1 payloads for each, decoded, and combined there.

Legend: n rows, b of a block, c columns of a piece, P values of a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sim.compute.layout import Fragment
from sim.compute.workers import Workers
from sim.payload import Dense, Payload

_BLOCK = 2**21
"""Values of a block of rows, but 16 rows at least: calls cost little beside the arithmetic."""
_PIECE = 2**18
"""Values of a piece of columns: 1 MB of float32, which stays in the cache of a core."""
_SLAB = 2**24
"""Values that are decoded at a time for the sake of their columns: 64 MB of float32."""
_TILES = 16
"""Parts of a Gram matrix, which must not depend on the number of workers."""


class Gathered:
    """The rows that everybody has gathered: decoded in pieces, on the workers, never all at once.

    Cuts depend on n and P alone and results are put together in order, so these have the same bits
    whatever the number of workers.

    Args:
        payload: what arrived, one row per member.
        workers: threads that compute.
    """

    def __init__(self, payload: Payload, workers: Workers) -> None:
        self._payload, self._workers = payload, workers
        self._like = payload.rows(slice(0, 1)).decode()[0]
        self.n = payload.n
        """Rows, in order of nodes."""
        self.width = self._like.numel()
        """P."""

    def zeros(self) -> Tensor:
        """A row of zeros, [P], of the type and on the device of the rows."""
        return torch.zeros_like(self._like)

    def each(self, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """`fn` of blocks of rows [b, P], which gives [b, ...]: together [n, ...]."""
        return torch.cat(self._blocks(lambda rows, _: fn(rows)))

    def total(self, fn: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """`fn(rows [b, P], their places)` of blocks, which gives [P]: the sum in order of rows."""
        first, *others = self._blocks(fn)
        return sum(others, first)

    def columns(self, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """`fn` of pieces of columns [n, c], which gives [c]: together [P]."""
        out, size = self.zeros(), max(1, _PIECE // self.n)
        for first, slab in self._slabs():
            into = out[first : first + slab.shape[1]]
            piece = partial(_piece, fn, slab, into, size)
            self._workers.map(piece, range(0, len(into), size))
        return out

    def gram(self) -> Tensor:
        """The products of rows with rows, float64 [n, n].

        In float64, since distances that are found from it are differences of large numbers.
        """
        gram = self._like.new_zeros((self.n, self.n), dtype=torch.float64)
        size = -(-self.n // _TILES)
        for _, slab in self._slabs():
            self._workers.map(partial(_add_tile, gram, slab, size), range(0, self.n, size))
        return gram.triu() + gram.triu(1).T

    def _blocks(self, fn: Callable[[Tensor, slice], Tensor]) -> list[Tensor]:
        size = max(16, _BLOCK // self.width)
        cuts = [slice(i, min(i + size, self.n)) for i in range(0, self.n, size)]
        return self._workers.map(lambda _, at: fn(self._payload.rows(at).decode(), at), cuts)

    def _slabs(self) -> Iterator[tuple[int, Tensor]]:
        """All rows, some columns at a time: the first one, and [n, many of them].

        Values that travelled as they are need no decoding, and are one slab.
        """
        if isinstance(self._payload.codec, Dense):
            yield 0, self._payload.decode()
            return
        size = max(1, _SLAB // self.n)
        for first in range(0, self.width, size):
            slab = self._like.new_empty((self.n, min(size, self.width - first)))
            self._blocks(partial(_fill, slab, first))
            yield first, slab


class Aggregation(ABC):
    """A rule. Implementations are frozen dataclasses: configuration only.

    Members may send anything; in which measure that is harmless is what rules differ by.
    """

    summable: bool = False
    """It is a (weighted) mean, so a ring may add rows up on the way."""
    weighted: bool = False
    """It has a form for members of unequal weight."""
    carries: bool = False
    """It begins at its result of the time before: members keep that, and joiners download it."""
    passes: float = 2.0
    """Reads and writes of memory of the size of a row that combining costs, for each row."""

    @abstractmethod
    def tolerates(self, n: int) -> int:
        """How many of n members may send anything without deciding the result.

        Raises:
            ValueError: n are too few for a number that was promised.
        """

    @abstractmethod
    def combine(self, rows: Gathered, weights: Tensor | None, before: Tensor | None) -> Tensor:
        """The rows as one, [P].

        Args:
            rows: of those whose share arrived, one at least.
            weights: [n], relative; None if they are equal, always so unless `weighted`.
            before: the result of the time before, [P], if it `carries`; None the first time.
        """


@dataclass(frozen=True)
class Mean(Aggregation):
    """The (weighted) mean: one member that lies decides it."""

    summable = True
    weighted = True
    passes = 1.0

    def tolerates(self, n: int) -> int:
        return 0

    def combine(self, rows: Gathered, weights: Tensor | None, before: Tensor | None) -> Tensor:
        share = shares(rows, weights)
        return rows.total(lambda block, at: share[at] @ block)


def check_weights(rule: Aggregation, weights: Tensor | None) -> None:
    """Refuse weights that a rule cannot use.

    Raises:
        ValueError: it has no form for members of unequal weight.
    """
    if weights is not None and not rule.weighted:
        raise ValueError(
            f"weights: {rule!r} has no form for members of unequal weight; leave them out, or "
            "choose a rule that is `weighted`, such as the mean or a median"
        )


def combined(
    rule: Aggregation,
    payload: Payload,
    workers: Workers,
    weights: Tensor | None = None,
    before: Tensor | None = None,
) -> Tensor:
    """What a rule makes of gathered rows, [P]; unknown values on the meta device."""
    if any(wire.data.is_meta for wire in payload.wires()):
        return torch.empty(payload.shape, device="meta")
    return rule.combine(Gathered(payload, workers), weights, before)


def key_of_result(names: Iterable[str], fragment: Fragment | None) -> str:
    """Where in `sim.shared` a rule that `carries` keeps its result.

    Args:
        names: of the rows that are combined.
    """
    tensors = [] if fragment is None else [fragment.names[0]]  # which is in no other fragment
    return ".".join(["aggregate", *sorted(names), *tensors])


def shares(rows: Gathered, weights: Tensor | None) -> Tensor:
    """The weights of rows, which sum to one, [n]."""
    like = rows.zeros()
    given = like.new_ones(rows.n) if weights is None else torch.as_tensor(weights).to(like)
    return given / given.sum()


def _piece(
    fn: Callable[[Tensor], Tensor], slab: Tensor, out: Tensor, size: int, _: int, first: int
) -> None:
    out[first : first + size] = fn(slab[:, first : first + size])


def _fill(slab: Tensor, first: int, rows: Tensor, at: slice) -> Tensor:
    slab[at] = rows[:, first : first + slab.shape[1]]
    return slab[at]


def _add_tile(gram: Tensor, slab: Tensor, size: int, _: int, first: int) -> None:
    """Add the products of some rows with these and later ones, over the columns of a slab."""
    step = max(1, _PIECE // len(slab))
    for start in range(0, slab.shape[1], step):
        later = slab[first:, start : start + step].double()
        gram[first : first + size, first:] += later[:size] @ later.T
