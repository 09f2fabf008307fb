"""Mixing: weighted sums of neighbours' rows, as gossip needs them.

Legend: n nodes, P parameters.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from sim.compute.workers import Workers

_COLUMNS = 4096
"""Columns that are mixed at a time: what is between is small beside the rows."""


def mix(
    workers: Workers, stay: np.ndarray, off: scipy.sparse.spmatrix, own: Tensor, sent: Tensor
) -> Tensor:
    """`stay[:, None] * own + off @ sent`, rows [n, P], in columns that the workers share.

    Args:
        stay: [n], what a node keeps of its own row.
        off: [n, n], what it takes of the others'.
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

    def columns(_: int, first: int) -> None:
        at = slice(first, first + _COLUMNS)
        torch.mul(own[:, at], kept, out=out[:, at])
        out[:, at] += matrix @ sent[:, at]

    workers.map(columns, range(0, own.shape[1], _COLUMNS))
    return out
