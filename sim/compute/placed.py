"""Placed: rows of nodes where they lie among those of others, to be changed without moving them.

Legend: b rows, M rows of the memory that they lie in, P values of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Placed:
    """Rows [b, P], some of those of a bigger tensor."""

    memory: Tensor
    """[M, P]"""
    at: np.ndarray
    """The number of each row in the memory, int64 [b]; no two are equal."""

    @staticmethod
    def of(rows: Tensor) -> Placed:
        """All rows of a tensor."""
        return Placed(rows, np.arange(len(rows)))

    def __len__(self) -> int:
        return len(self.at)

    def read(self) -> Tensor:
        """The rows [b, P] in order: themselves if they follow each other, else a copy."""
        return self.memory[self._index]

    def write(self, rows: Tensor) -> None:
        """Replace the rows by [b, P]; costs nothing for the rows themselves, changed in place."""
        index = self._index
        own = self.memory[index] if isinstance(index, slice) else None
        if own is None or own.data_ptr() != rows.data_ptr():
            self.memory[index] = rows

    def add(self, x: Tensor, scale: float = 1.0, keep: float = 1.0) -> None:
        """`rows = keep * rows + scale * x`, in place.

        With `keep` 0 it does not matter what they held.
        """
        rows = self.read()
        if keep == 0:
            torch.mul(x, scale, out=rows)
        else:
            kept = rows if keep == 1 else rows.mul_(keep)
            kept.add_(x, alpha=scale)
        self.write(rows)

    @cached_property
    def _index(self) -> slice | Tensor:
        if len(self.at) == 1 or (len(self.at) and (np.diff(self.at) == 1).all()):
            return slice(int(self.at[0]), int(self.at[-1]) + 1)
        return torch.from_numpy(self.at).to(self.memory.device)
