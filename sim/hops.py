"""Hops: what is left of rows that a ring adds up when every hop encodes the sum so far.

The share of an owner begins with the row behind its own and goes through all rows, in order and
around, to its own. So while a worker goes through the rows once, and as far again as it has owners,
it can take the shares of many with it: what each row adds lies side by side in it, and no share
waits for others.

Legend: m members, P parameters, k chunks of a share, c values of a chunk, o owners, h hops.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sim.compute.layout import Layout
from sim.compute.workers import Workers
from sim.payload import Compressor, Context

_AT_ONCE = 2**13
"""Values of the shares that a worker takes with it."""
_ADDED = 2**17
"""Values that are added to them before more are read: they fit its cache."""


class Relay(ABC):
    """What a codec may be beside a `Compressor`: it makes hops without a payload in between."""

    @abstractmethod
    def relays(self, chunks: Tensor) -> bool:
        """Whether it does so with chunks of this type and place."""

    @abstractmethod
    def relay(self, chunks: Tensor, own: Tensor, spans: np.ndarray) -> None:
        """At each hop encode and decode some chunks, each by itself, and add what is their own.

        To the bit what encoding and decoding give.

        Args:
            chunks: [n, c], changed in place.
            own: [h, n, c].
            spans: of each hop, the first chunk and the one after the last, int64 [h, 2].
        """


@dataclass(frozen=True)
class Hops:
    """The hops of a ring.

    Args:
        codec: of a chunk.
        chunks: k, of a member's share.
        divide: when the sum is divided by the number of members: "before", by the "owner", "after".
    """

    codec: Compressor
    chunks: int
    divide: str

    def around(self, rows: Tensor, weights: Tensor | None, workers: Workers) -> Tensor:
        """The mean [P] of rows [m, P], by `weights` [m], that every member has in the end."""
        m, P = rows.shape
        share = -(-P // (self.chunks * m)) * self.chunks
        whole = P // share
        scale = None if weights is None else (weights * (m / weights.sum())).to(rows)[:, None]
        pieces = min(whole, max(workers.n, -(-P // _AT_ONCE)))
        cuts = [whole * i // max(1, pieces) for i in range(pieces + 1)]
        blocks = [(a, rows[:, a * share : b * share]) for a, b in pairwise(cuts)]
        if rest := P - whole * share:  # of the last owner who has something
            blocks.append((whole, F.pad(rows[:, whole * share :], (0, share - rest))))
        made = workers.map(lambda _, block: self._shares(*block, share, scale), blocks)
        result = torch.cat(made)[:P]
        return result / m if self.divide == "after" else result

    def _shares(self, first: int, columns: Tensor, share: int, scale: Tensor | None) -> Tensor:
        """What becomes of the shares of o owners from `first` on, [o share].

        Args:
            columns: theirs of the rows, [m, o share].
        """
        m, width = columns.shape
        o, most = width // share, max(1, _ADDED // width)
        chunks = columns.new_empty(o * self.chunks, share // self.chunks)
        sums, space = chunks.view(o, share), columns.new_empty(most, width)
        steps = np.arange(1, o + m)  # owner i begins at step i + 1 and ends at step i + m
        spans = np.stack([np.maximum(0, steps - m), np.minimum(o, steps - 1)], axis=1) * self.chunks
        done, row = 0, (first + 1) % m
        while done < len(steps):
            h = min(most, len(steps) - done, m - row)
            own = self._own(columns, scale, slice(row, row + h), space)
            if begin := max(0, min(h, o - done)):
                these = own.view(h, o, share)[:begin, done : done + begin]
                sums[done : done + begin] = these.diagonal().T
            self._pass_on(chunks, own.view(h, *chunks.shape), spans[done : done + h])
            done, row = done + h, (row + h) % m
        if self.divide == "owner":
            chunks /= m
        nothing = torch.zeros_like(chunks)[None]  # the code of the owner is handed around
        self._pass_on(chunks, nothing, np.array([[0, len(chunks)]]))
        return chunks.flatten()

    def _own(self, columns: Tensor, scale: Tensor | None, at: slice, space: Tensor) -> Tensor:
        """What some rows add, [h, o share], in memory that is used again."""
        own, out = columns[at], space[: at.stop - at.start]
        if scale is not None:
            own = torch.mul(own, scale[at], out=out)
        return torch.div(own, len(columns) if self.divide == "before" else 1, out=out)

    def _pass_on(self, chunks: Tensor, own: Tensor, spans: np.ndarray) -> None:
        """What `Relay.relay` does, with any codec."""
        if isinstance(self.codec, Relay) and self.codec.relays(chunks):
            self.codec.relay(chunks, own, spans)
            return
        for added, (first, stop) in zip(own, spans.tolist()):
            if first == stop:
                continue
            some = chunks[first:stop]
            ctx = Context(Layout.flat(some.shape[1]), 0, np.zeros(len(some), np.int64), seed=0)
            payload, _ = self.codec.encode(some, None, ctx)
            torch.add(payload.decode(), added[first:stop], out=some)
