"""Mixing: weighted sums of neighbours' rows, as gossip needs them.

Legend: n nodes, m nodes that sent, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from sim.compute.workers import Workers

if TYPE_CHECKING:
    from sim.group import Group
    from sim.payload import Payload

_VALUES = 2**19
"""Values that are mixed at a time, so that they stay in the cache while each is used often."""


@dataclass(frozen=True)
class Heard:
    """What the members of a group have heard from their neighbours.

    Args:
        group: those who exchanged, n.
        payload: what each of them sent; None if there are none.
        arrived: [n, n], true at (i, j) where what member j sent has reached member i.
    """

    group: Group
    payload: Payload | None
    arrived: scipy.sparse.csr_array

    def missing(self, links: scipy.sparse.sparray) -> scipy.sparse.csr_array:
        """1 at (i, j) where i lacks what j sent although both are still here, [n, n].

        Args:
            links: [n, n], not zero at (i, j) where i was to hear from j.
        """
        here = scipy.sparse.diags_array(np.isin(self.group.index, self.group.present).astype(float))
        meant = (here @ links @ here != 0).astype(float)
        meant = meant - scipy.sparse.diags_array(meant.diagonal())
        return scipy.sparse.csr_array(meant - meant.multiply(self.arrived))


def mix(
    workers: Workers, stay: np.ndarray, off: scipy.sparse.spmatrix, own: Tensor, sent: Tensor
) -> Tensor:
    """`stay[:, None] * own + off @ sent`, rows [n, P], in columns that the workers share.

    Args:
        stay: [n], what a node keeps of its own row.
        off: [n, m], what it takes of those that were sent.
    """
    if own.is_meta:
        return torch.empty_like(own)
    entries, out = scipy.sparse.csr_matrix(off).sorted_indices().tocoo(), torch.empty_like(own)
    matrix = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64)),
        torch.from_numpy(entries.data),
        entries.shape,
        dtype=own.dtype,
        device=own.device,
        is_coalesced=True,
        check_invariants=False,
    )
    kept = torch.from_numpy(stay).to(own)[:, None]

    width = min(4096, max(256, _VALUES // max(1, len(own))))

    def columns(_: int, first: int) -> None:
        at = slice(first, first + width)
        torch.mul(own[:, at], kept, out=out[:, at])
        out[:, at] += matrix @ sent[:, at]

    workers.map(columns, range(0, own.shape[1], width))
    return out
