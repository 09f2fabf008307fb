"""Codec state: what a codec keeps for every node, such as the error that it feeds back.

A state is None, a tensor [N, ...], or a tuple or dict of states: one row per node, stacked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sim.compute.layout import Layout
from sim.payload import Compressor, State


class CodecState:
    """The states of one codec for all nodes.

    Args:
        codec: whose state; `init` gives what a node begins with.
        layout: of the rows that it encodes.
        n_nodes: N.
        like: a tensor with the device and the floating type of the fleet.
    """

    def __init__(self, codec: Compressor, layout: Layout, n_nodes: int, like: Tensor) -> None:
        with torch.device(like.device):
            start = codec.init(layout, 1)
        self._start = _map(lambda x: x.to(like.dtype) if x.is_floating_point() else x, start)
        self._rows = _map(lambda x: x.repeat(n_nodes, *[1] * (x.dim() - 1)), self._start)

    def get(self, ids: np.ndarray) -> State:
        """The states of some nodes, stacked in their order."""
        return _map(lambda x: x[torch.from_numpy(ids)], self._rows)

    def put(self, ids: np.ndarray, state: State) -> None:
        """Replace the states of some nodes."""

        def write(rows: Tensor, new: Tensor) -> Tensor:
            rows[torch.from_numpy(ids)] = new
            return rows

        _map(write, self._rows, state)

    def reset(self, node: int) -> None:
        """A node begins anew."""
        self.put(np.array([node]), self._start)


def _map(fn: Callable, state: State, *others: State) -> Any:
    """Apply `fn` to every tensor of a state, and those at its place in other states."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return fn(state, *others)
    if isinstance(state, dict):
        return {k: _map(fn, v, *(o[k] for o in others)) for k, v in state.items()}
    return tuple(_map(fn, v, *(o[i] for o in others)) for i, v in enumerate(state))
