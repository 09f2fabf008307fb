"""Recycled: memory of many rows, used again as soon as nobody has a tensor in it any more.

Memory that comes from the system is cleared page by page when it is first written, which costs
several times what is written there: gradients of all nodes, made anew in every round.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor

_LEAST = 2**22
"""Bytes; less is kept by the allocator anyway."""
_UNSEEN = 2
"""References to memory that nobody uses: the one here, and that of who counts."""


class Recycled:
    """The memory of the last large tensor."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def rows(self, n: int, like: Tensor) -> Tensor:
        """A tensor `[n, *like.shape]` of the same type and place, with whatever was left in it."""
        nbytes = n * like.numel() * like.itemsize
        if like.device.type != "cpu" or nbytes < _LEAST:
            return like.new_empty((n, *like.shape))
        if len(self._memory) < nbytes or sys.getrefcount(self._memory) > _UNSEEN:
            self._memory = torch.empty(nbytes, dtype=torch.uint8).numpy()
        part = self._memory[:nbytes]  # which keeps a reference to all, as long as its tensors live
        return torch.from_numpy(part).view(like.dtype).view(n, *like.shape)
