"""Context: who encodes and when, and the draws that a codec may make.

Legend: b rows of a block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sim.compute.layout import Layout
from sim.streams import hashes, uniforms


@dataclass(frozen=True)
class Context:
    """Who encodes, when: all that a codec may depend on besides its input and state.

    Args:
        layout: the named tensors that the rows hold.
        step: the round, one integer or one per row.
        nodes: the node of each row, int64 [b].
        seed: the run's seed.
        recorded: draws by name, `[b, ...]`, that are used instead of the seed's: to repeat what
            another program computed with them.
    """

    layout: Layout
    step: int | np.ndarray
    nodes: np.ndarray
    seed: int
    recorded: Mapping[str, Tensor] = field(default_factory=dict)

    def uniforms(self, name: str, like: Tensor) -> Tensor:
        """Draws in [0, 1) of the shape of `like [b, ...]`, by (seed, name, tensor, node, step)."""
        if like.is_meta:
            return torch.empty_like(like)
        if name in self.recorded:
            return self.recorded[name].to(like, copy=True).reshape(like.shape)
        count = math.prod(like.shape[1:])
        steps = np.asarray(self.step)
        draws = uniforms(self.seed, self._stream(name), self.nodes, steps, count)
        rows = torch.from_numpy(draws).to(like.dtype).reshape(like.shape)
        below_one = 1 - torch.finfo(like.dtype).eps / 2  # float32 would round some draws up to 1
        return rows.clamp_(max=below_one).to(like.device)

    def shared_seeds(self, name: str) -> Tensor:
        """An int64 [b] that every node draws alike, by (seed, name, tensor, step)."""
        nobody = np.zeros(len(self.nodes), np.uint64)
        words = hashes(self.seed, self._stream(name), nobody, np.asarray(self.step), 1)
        return torch.from_numpy(words[:, 0].copy().view(np.int64))

    def _stream(self, name: str) -> str:
        return "/".join(("codec", name, *self.layout.shapes))
