"""Values of a row in another order, compiled: those that stay side by side are moved together.

Legend: b rows, P values of a row.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sim.compiled import compiled
from sim.compute.placed import Placed

_kept = compiled(__file__)


def takes(x: Tensor) -> bool:
    """Whether the compiled function takes these rows."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def runs_of(places: Tensor) -> np.ndarray:
    """The stretches that keep their order where value j is that from `places[j]`, int64 [P].

    Returns:
        of each where it comes from, where it goes, and how long it is, int64 [runs, 3].
    """
    sources = places.numpy()
    begins = np.flatnonzero(np.diff(sources, prepend=sources[:1] - 2) != 1)
    lengths = np.diff(begins, append=len(sources))
    return np.stack([sources[begins], begins, lengths], axis=1)


def regroup(
    x: Tensor, runs: np.ndarray, out: Placed, keep: float = 0.0, scale: float = 1.0
) -> None:
    """`out = keep * out + scale * x`, in place, with stretches of rows `x [b, P]` moved.

    With `keep` 0 it does not matter what `out` held.
    """
    assert out.memory.is_contiguous()
    assert x.shape[1] == out.memory.shape[1] == runs[:, 2].sum()
    source, to = x.detach().contiguous().numpy(), out.memory.detach().numpy()
    _regroup(source, runs, to, out.at, to.dtype.type(keep), to.dtype.type(scale))


def regroup_back(x: Tensor, runs: np.ndarray, out: Placed) -> None:
    """Write rows `x [b, P]` to `out` with their stretches where they came from."""
    regroup(x, np.ascontiguousarray(runs[:, [1, 0, 2]]), out)


@_kept
def _regroup(x, runs, out, at, keep, scale):
    for r in range(len(x)):
        for q in range(len(runs)):
            source, begin, length = runs[q, 0], runs[q, 1], runs[q, 2]
            values, to = x[r, source : source + length], out[at[r], begin : begin + length]
            if keep == 0:
                for i in range(length):
                    to[i] = scale * values[i]
            else:
                for i in range(length):
                    to[i] = keep * to[i] + scale * values[i]
