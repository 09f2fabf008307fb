"""Stacked (interface): the loss of a task for a block of nodes at once, batched by hand.

`vmap` batches any loss; a model that is used a lot is worth code of its own, which keeps a block's
activations in cache and allocates nothing.

Legend: c nodes of a block, r rows of parameters, g rows of gradients, P parameters.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np

from sim.compute.task import Batch

_LINE = 16
"""float32 values of a cache line."""


class Stacked(ABC):
    """Losses and gradients of a block; every worker has one of its own, with its memory.

    What a node gets must not depend on who else is in the block.
    """

    @abstractmethod
    def values_per_node(self, batch: Batch) -> int:
        """float32 values of work space that a node of a block takes, beside its rows."""

    @abstractmethod
    def gradients(
        self, params: np.ndarray, batch: Batch, grads: np.ndarray, losses: np.ndarray
    ) -> None:
        """Write the gradients and losses of c nodes.

        Args:
            params: float32 [r, P]: a row per node (r = c), or one that they share (r = 1).
            batch: what `Task.batch` gave for the nodes, on the CPU.
            grads: float32 [g, P], written: a row per node (g = c); or, of shared parameters, the
                sum of the nodes' gradients (g = 1).
            losses: float32 [c], written.
        """


class Space:
    """Named arrays that are reused from call to call: memory that was touched stays mapped."""

    def __init__(self) -> None:
        self._flat: dict[str, np.ndarray] = {}

    def __call__(self, name: str, *shape: int) -> np.ndarray:
        """A float32 array of this shape, whose contents are what was left there."""
        size = math.prod(shape)
        if name not in self._flat or self._flat[name].size < size:
            self._flat[name] = _aligned(size)
        return self._flat[name][:size].reshape(shape)


def _aligned(size: int) -> np.ndarray:
    """New memory that begins with a cache line, as vector loads like it."""
    memory = np.empty(size + _LINE, np.float32)
    start = -(memory.ctypes.data // memory.itemsize) % _LINE
    return memory[start : start + size]
