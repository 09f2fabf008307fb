"""Means of rows of which some coefficients were sent: compiled, or by torch.

Sums run in the order of the rows, so a mean does not depend on how the rows were stacked.

Legend: R rows, n of a run, K values sent of a row, P values of the tensors they are from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optimizers.compression.selection import takes
from sim.compiled import compiled

_kept = compiled(__file__)


def scattered_mean(
    values: Tensor,
    index: Tensor,
    size: int,
    over: str,
    weights: Tensor | None,
    runs: int = 1,
    counts: Tensor | None = None,
) -> Tensor:
    """The mean over the rows of each run of `values [R, K]`, `[runs, P]`.

    Args:
        index: where in its row a value belongs, int64 [R, K].
        size: P.
        over: `"all"` divides by all rows, `"senders"` by those that sent the coefficient.
        weights: of the n rows of a run; equal if None.
        runs: the R rows are so many runs of n, one after the other.
        counts: of each row [R], how many of its K values were sent; all if None.
    """
    weight = values.new_ones(len(values) // runs)
    if weights is not None:
        weight = torch.as_tensor(weights).to(values)
    add_up = _added_up if takes(values) else _added_up_by_torch
    total, share = add_up(values, index, weight, values.new_zeros(2, runs, size), counts)
    if over == "all":
        return total / weight.sum()
    return torch.where(share > 0, total / share, 0)


def _added_up(
    values: Tensor, index: Tensor, weight: Tensor, sums: Tensor, counts: Tensor | None
) -> Tensor:
    """`sums` with the weighted values added by index, and the weights: [2, runs, P]."""
    if counts is None:
        counts = torch.full((len(values),), values.shape[1])
    inputs = (values.detach(), index, weight, counts)
    within = _add_up(*(tensor.contiguous().numpy() for tensor in inputs), sums.numpy())
    assert within, f"an index lies outside of the {sums.shape[2]} values of a row"
    return sums


def _added_up_by_torch(
    values: Tensor, index: Tensor, weight: Tensor, sums: Tensor, counts: Tensor | None
) -> Tensor:
    (R, K), (_, runs, size) = values.shape, sums.shape
    starts = torch.arange(0, runs * size, size, device=index.device).repeat_interleave(R // runs)
    shares = weight.repeat(runs)[:, None].expand(values.shape)
    if counts is not None:
        shares = shares * (torch.arange(K, device=index.device) < counts[:, None])
    at = (index + starts[:, None]).flatten()
    for into, part in zip(sums.view(2, -1), (values * shares, shares)):
        if values.is_cuda:  # index_add_ adds in any order there; this sorts first
            into.index_put_((at,), part.flatten(), accumulate=True)
        else:
            into.index_add_(0, at, part.flatten())
    return sums


@_kept
def _add_up(values, index, weight, counts, sums):
    """Fill `sums` [2, runs, P]; False as soon as an index lies outside."""
    n, size = len(weight), sums.shape[2]
    for r in range(len(values)):
        total, share, factor = sums[0, r // n], sums[1, r // n], weight[r % n]
        for j in range(counts[r]):
            at = index[r, j]
            if at < 0 or at >= size:
                return False
            total[at] += factor * values[r, j]
            share[at] += factor
    return True
