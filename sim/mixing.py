"""Mixing: weighted sums of neighbours' rows, as gossip needs them.

Legend: n nodes, m nodes that sent, c columns, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from sim.compute.block import Block
from sim.compute.kernels import mixing as kernels
from sim.compute.placed import Placed
from sim.compute.workers import Workers
from sim.dense_rows import DenseRows
from sim.rows import Columns, Rows

if TYPE_CHECKING:
    from sim.compute.fleet import Fleet
    from sim.group import Group
    from sim.members import Members
    from sim.payload import Payload

Step = tuple[Tensor, str]
"""Rates [n, 1], and the rows that are gradients."""
Mixer = Callable[[slice, Placed, int, Tensor | None], None]
"""Mixes some columns, given the m rows that were sent, their first column, and gradients [n, c]."""
_VALUES = 2**19
"""Values that are mixed at a time, so that they stay in the cache while each is used often."""
_LEAST, _MOST = 256, 4096
"""Columns that are mixed at a time: with fewer, memory is read in too small pieces."""


@dataclass(frozen=True)
class Heard:
    """What the members of a group have heard from their neighbours.

    Args:
        group: those who exchanged, n.
        payload: what each of them sent; None if there are none.
        rows: instead of that, where every value was sent: the rows that they are.
        arrived: [n, n], true at (i, j) where what member j sent has reached member i.
    """

    group: Group
    payload: Payload | None
    rows: DenseRows | None
    arrived: scipy.sparse.csr_array

    def missing(self, links: scipy.sparse.sparray) -> scipy.sparse.csr_array:
        """1 at (i, j) where i lacks what j sent although both are still here, [n, n].

        Args:
            links: [n, n], not zero at (i, j) where i was to hear from j.
        """
        here, meant = np.isin(self.group.index, self.group.present), links.tocoo()
        row, column = meant.row, meant.col
        some = (meant.data != 0) & (row != column) & here[row] & here[column]
        came, n = self.arrived.tocoo(), links.shape[0]
        lacking = some & ~np.isin(row * n + column, came.row * n + came.col)
        places = row[lacking], column[lacking]
        return scipy.sparse.csr_array((np.ones(len(places[0])), places), shape=links.shape)

    def weights(
        self, here: Members, weights: scipy.sparse.csr_array, missing: str = "self"
    ) -> tuple[np.ndarray, scipy.sparse.csr_array]:
        """What remains of a mixing matrix: what members `here` keep of their rows, and add to that.

        Args:
            weights: [n, n]; entry (i, j) weighs what member i gets from member j.
            missing: where the weight of a neighbour goes that is not in the group, or whose message
                was lost: to the node's own row, `"self"`, or to all that it has, `"rescale"`.
                Either keeps rows summing to one. `"self"` keeps symmetry as well: of two who hear
                each other both do without an exchange that has not reached both, and know it.
        """
        if missing not in ("self", "rescale"):
            raise ValueError(f"missing={missing!r}: must be 'self' or 'rescale'")
        off = scipy.sparse.csr_array(weights.multiply(self.arrived))
        if missing == "self":
            mutual = off.multiply(weights.T != 0)
            off = scipy.sparse.csr_array(off - mutual + mutual.multiply(self.arrived.T))
        others = np.asarray(off.sum(axis=1)).ravel()
        stay = 1.0 - others
        if missing == "rescale":
            stay = weights.diagonal()
            off, stay = off / (stay + others)[:, None], stay / (stay + others)
        at = self.group.positions(here.ids).numpy()
        return stay[at], scipy.sparse.csr_array(off)[at]

    def columns(self) -> Columns:
        """The rows that all members sent, as they arrive; to be asked for once."""
        assert self.rows is not None, "payloads are to be decoded"
        return self.rows.columns()


def mix(
    rows: Rows,
    name: str,
    stay: np.ndarray,
    off: scipy.sparse.csr_array,
    sent: Columns | Placed,
    step: Step | None = None,
) -> None:
    """`stay * own + off @ sent - rate * grad` replaces the rows of a name, in place.

    Some columns of all rows at a time, which the workers share. Sums are over neighbours first, in
    their order, then the node's own row, then its step, whatever else is computed beside it.

    Args:
        stay: [n], what a node keeps of its own row.
        off: [n, m], what it takes of those that were sent.
        sent: m rows by columns; or where they lie, which is not where rows of the name do.
        step: rate and gradients of a step that is made as well.
    """
    fleet, ids = rows.sim.fleet, rows.index
    if fleet.shard.exchanges:  # what was sent is a copy then, so rows may be done one by one

        def some(block: np.ndarray) -> None:
            at = np.searchsorted(ids, block)
            by = None if step is None else (step[0][torch.from_numpy(at)], step[1])
            _mix(fleet, Workers(1), name, block, stay[at], off[at], sent, by)

        fleet.map(some, ids)
    elif len(ids) and not fleet.is_meta:
        fleet.map(partial(fleet.place, name), ids)  # who shares a row gets one: by all workers
        _mix(fleet, fleet.crew.workers, name, ids, stay, off, sent, step)
    if name == "params":
        rows.sim.charge_step(ids)


def _mix(
    fleet: Fleet,
    workers: Workers,
    name: str,
    ids: np.ndarray,
    stay: np.ndarray,
    off: scipy.sparse.csr_array,
    sent: Columns | Placed,
    step: Step | None,
) -> None:
    values, width = fleet.layout.numel, min(_MOST, max(_LEAST, _VALUES // len(ids)))
    grads = None if step is None else fleet.table(step[1]).columns(ids)
    with Block(fleet, ids).in_place(name) as placed:
        mixer = (_compiled if _takes(placed.memory) else _by_torch)(placed, stay, off, step)

        def columns(_: int, first: int) -> None:
            at = slice(first, min(first + width, values))
            c = at.stop - at.start
            grad = None if grads is None else grads(at, fleet.space("grads", (len(ids), c)))
            if isinstance(sent, Placed):
                mixer(at, sent, at.start, grad)
            else:
                copied = sent(at, fleet.space("sent", (off.shape[1], c)))
                mixer(at, Placed.of(copied), 0, grad)

        workers.map(columns, range(0, values, width))


def _compiled(x: Placed, stay: np.ndarray, off: scipy.sparse.csr_array, step: Step | None) -> Mixer:
    values, dtype = x.memory.detach().numpy(), np.dtype(str(x.memory.dtype)[6:])
    matrix = off.sorted_indices().astype(dtype)
    weights = stay.astype(dtype), matrix.indptr, matrix.indices, matrix.data
    rate = np.empty(0, dtype) if step is None else step[0].numpy().ravel()
    none = np.empty((0, 0), dtype)

    def mixer(at: slice, sent: Placed, first: int, grad: Tensor | None) -> None:
        by, c = (rate, none if grad is None else grad.numpy()), at.stop - at.start
        rows = sent.memory.numpy(), sent.at, first
        kernels.mix(values, x.at, at.start, c, *weights, *rows, *by)

    return mixer


def _by_torch(x: Placed, stay: np.ndarray, off: scipy.sparse.csr_array, step: Step | None) -> Mixer:
    like, entries = x.memory, off.sorted_indices().tocoo()
    matrix = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64)),
        torch.from_numpy(entries.data),
        entries.shape,
        dtype=like.dtype,
        device=like.device,
        is_coalesced=True,
        check_invariants=False,
    )
    kept, rows = torch.from_numpy(stay).to(like)[:, None], torch.from_numpy(x.at).to(like.device)

    def mixer(at: slice, sent: Placed, first: int, grad: Tensor | None) -> None:
        others = sent.memory[:, first : first + at.stop - at.start]
        mixed = like[:, at][rows] * kept + matrix @ others[torch.from_numpy(sent.at).to(rows)]
        if step is not None and grad is not None:
            mixed.addcmul_(grad, step[0], value=-1)
        like[:, at][rows] = mixed

    return mixer


def _takes(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
