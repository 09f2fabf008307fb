"""Codec state: what a codec keeps for every node, such as the error that it feeds back.

A state is None, a tensor [N, ...], or a tuple or dict of states: one row per node, stacked.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

from sim.compute.layout import Layout
from sim.compute.placed import Placed
from sim.payload import Compressor, Context, Payload, State, map_state


class CodecState:
    """The states of one codec for the nodes of this process.

    Args:
        codec: whose state; `init` gives what a node begins with.
        layout: of the rows that it encodes.
        own: the nodes whose states are kept here.
        like: a tensor with the device and the floating type of the fleet.
    """

    def __init__(self, codec: Compressor, layout: Layout, own: range, like: Tensor) -> None:
        self._own = own
        with torch.device(like.device):
            start = codec.init(layout, 1)
        self._start = map_state(lambda x: x.to(like.dtype) if x.is_floating_point() else x, start)
        self._rows = map_state(lambda x: x.repeat(len(own), *[1] * (x.dim() - 1)), self._start)

    def of(self, ids: np.ndarray) -> State:
        """The states of some nodes where they lie, as `Compressor.encode_` wants them."""

        def place(rows: Tensor) -> Placed:
            assert ids.min() in self._own
            assert ids.max() in self._own
            return Placed(rows, ids - self._own.start)

        return map_state(place, self._rows)

    def reset(self, node: int) -> None:
        """A node begins anew."""
        if node in self._own:
            map_state(Placed.write, self.of(np.array([node])), self._start)

    @property
    def is_empty(self) -> bool:
        """The codec keeps nothing, so anybody may encode for a node."""
        return self._start is None


class Codecs:
    """The states of all codecs that a fleet encodes with.

    Args:
        own: the nodes whose states are kept here.
        like: a tensor with the device and the floating type of the fleet.
    """

    def __init__(self, own: range, like: Tensor) -> None:
        self._own, self._like = own, like
        self._states: dict[tuple[Compressor, Layout], CodecState] = {}
        # On the meta device payloads of as many rows are all alike, and encoding one is slow.
        self._valueless: dict[tuple[Compressor, Layout, int], Payload] = {}
        self._making = threading.Lock()

    def encode(self, codec: Compressor, x: Tensor, context: Context) -> Payload:
        """Encode rows `x` of the context's nodes with their own states, which are kept."""
        if not self._like.is_meta:
            states = self._state(codec, context.layout)
            return codec.encode_(x, states.of(context.nodes), context)
        if codec.sized_by_data:
            raise ValueError(
                f"compute=meta with {codec!r}: its size depends on values, which a timing-only run "
                "does not have; choose a codec of fixed size, such as TopK"
            )
        alike = (codec, context.layout, len(x))
        if alike not in self._valueless:
            state = self._state(codec, context.layout).of(context.nodes)
            self._valueless[alike] = codec.encode_(x, state, context)
        return self._valueless[alike]

    def is_stateless(self, codec: Compressor, layout: Layout) -> bool:
        """Whether the codec keeps nothing of a node from one time to the next."""
        return self._state(codec, layout).is_empty

    def reset(self, node: int) -> None:
        """A node begins anew."""
        for state in self._states.values():
            state.reset(node)

    def _state(self, codec: Compressor, layout: Layout) -> CodecState:
        key = (codec, layout)
        if key not in self._states:
            with self._making:
                if key not in self._states:
                    self._states[key] = CodecState(codec, layout, self._own, self._like)
        return self._states[key]
