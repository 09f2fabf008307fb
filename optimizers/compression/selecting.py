"""Selecting: a codec of every tensor that is a TopK, done for all tensors of a row at once.

It makes the payloads that the codec would make of one tensor after the other. What it saves are
calls: a small GPT has some thirty tensors, most of them short.

Legend: b rows of a block, P values of a row, K values sent of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optimizers.compression import selection
from optimizers.compression.scattered import scattered_mean
from optimizers.compression.sparsify import TopK, payloads_of_each, starts_of, units_of
from optimizers.compression.stacks import places, stack_by_stack, stacked_context
from optimizers.compression.transform import (
    DCT,
    Blocks,
    Shapes,
    places_in_rows,
    turn_rows,
    turn_rows_back,
    turned_shapes,
)
from sim.compute.layout import Layout
from sim.compute.placed import Placed
from sim.payload import Compressor, Context, Payload

_AT_ONCE = 2**18
"""Values that change their basis at a time: 1 MB of float32."""


@dataclass(frozen=True)
class Selecting:
    """What a codec does to a tensor, in stages.

    Args:
        chain: the codec, if it is made of several.
        transform: its first stage, if that changes the basis.
        top_k: the next.
        later: what encodes the values further.
    """

    chain: Compressor | None
    transform: DCT | Blocks | None
    top_k: TopK
    later: tuple[Compressor, ...]

    def takes(self, rows: Tensor) -> bool:
        """Whether rows of their type and place can be encoded so."""
        return selection.takes(rows)

    @property
    def scatters(self) -> bool:
        """Whether what is sent are values of the rows themselves, in whatever order."""
        return not isinstance(self.transform, DCT)

    def encode(self, x: Tensor, shapes: Shapes, ctx: Context) -> tuple[Payload, ...]:
        """The payload of each tensor of rows `[b, P]`.

        A few rows at a time change their basis, in memory that stays in the cache.
        """
        if self.transform is None:
            return self.encode_turned(x, shapes, ctx)
        some = max(1, min(len(x), _AT_ONCE // x.shape[1]))
        space, found = x.new_empty(some, x.shape[1]), []
        for rows in x.split(some):
            turned = Placed.of(space[: len(rows)])
            turn_rows(self.transform, shapes, rows, turned)
            found.append(self._select(turned, shapes, False))
        values, index = (torch.cat(pieces) for pieces in zip(*found))
        return self._payloads(values, index, shapes, ctx)

    def encode_turned(self, turned: Tensor, shapes: Shapes, ctx: Context) -> tuple[Payload, ...]:
        """The payload of each tensor; `turned` are rows in the basis of the selection."""
        return self._payloads(*self._select(Placed.of(turned), shapes, False), shapes, ctx)

    def extract(
        self, turned: Placed, shapes: Shapes, ctx: Context, exact: bool
    ) -> tuple[Payload, ...]:
        """The same; what the payloads hold is taken out of the rows, in place.

        Args:
            exact: the values from before `later` stages that quantise.
        """
        values, index = self._select(turned, shapes, True)
        payloads = self._payloads(values, index, shapes, ctx)
        keeps = self.later and not (exact and all(codec.quantises for codec in self.later))
        if keeps or not self.top_k.sends_exactly(values.dtype):
            sent, places = self.sent(payloads, exact)
            selection.add(turned, values - sent, places)
        return payloads

    def _select(self, turned: Placed, shapes: Shapes, take: bool) -> tuple[Tensor, Tensor]:
        return selection.select(turned, units_of(self.top_k, self._turned_shapes(shapes)), take)

    def _payloads(
        self, values: Tensor, index: Tensor, shapes: Shapes, ctx: Context
    ) -> tuple[Payload, ...]:
        parts = payloads_of_each(self.top_k, values, index, self._turned_shapes(shapes))
        if self.later:
            parts = self._encode_later(parts, ctx)
        for codec in (self.transform, self.chain):
            if codec is not None:
                parts = tuple(Payload(codec, s, part) for s, part in zip(shapes, parts))
        return parts

    def sent(self, payloads: Sequence[Payload], exact: bool = False) -> tuple[Tensor, Tensor]:
        """What the payloads of the tensors hold.

        Args:
            exact: the values from before `later` stages that quantise.

        Returns:
            values `[b, K]` and where in a row of coefficients they belong, int64 `[b, K]`.
        """
        parts = self._selections(payloads)
        if self.later and exact:
            parts = [part.dequantised() for part in parts]
        if self.later:
            values = stack_by_stack(parts, lambda stack, _: stack.body)
        else:
            values = torch.cat([part.body.flatten(1) for part in parts], dim=1)
        index = torch.cat([part["indices"].flatten(1) for part in parts], dim=1)
        return values, index.add_(starts_of(self.top_k, tuple(part.shape for part in parts)))

    def decode(self, payloads: Sequence[Payload]) -> Tensor:
        """The rows `[b, P]` that the payloads of the tensors hold."""
        values, index = self._scattered(payloads)
        shapes = tuple(payload.shape for payload in payloads)
        rows = values.new_zeros(len(values), sum(map(math.prod, shapes)))
        selection.add(Placed.of(rows), values, index)
        return self._turned_back(rows, shapes)

    def add(self, payloads: Sequence[Payload], rows: Placed, scale: float) -> None:
        """Add `scale` times what they hold to rows, in place, if it `scatters`."""
        selection.add(rows, *self._scattered(payloads), scale)

    def mean(self, payloads: Sequence[Payload], over: str, weights: Tensor | None) -> Tensor:
        """The mean of the rows that the payloads of the tensors hold, `[1, P]`."""
        values, index = self._scattered(payloads)
        shapes = tuple(payload.shape for payload in payloads)
        mean = scattered_mean(values, index, sum(map(math.prod, shapes)), over, weights)
        return self._turned_back(mean, shapes)

    def _scattered(self, payloads: Sequence[Payload]) -> tuple[Tensor, Tensor]:
        """As `sent`; the places are those in the rows themselves if it `scatters`."""
        values, index = self.sent(payloads)
        if isinstance(self.transform, Blocks):
            shapes = tuple(payload.shape for payload in payloads)
            index = places_in_rows(self.transform, shapes)[index]
        return values, index

    def _turned_back(self, rows: Tensor, shapes: Shapes) -> Tensor:
        """Rows `[b, P]` out of the basis of cosines."""
        if not isinstance(self.transform, DCT):
            return rows
        out = torch.empty_like(rows)
        turn_rows_back(self.transform, shapes, rows, Placed.of(out))
        return out

    def _turned_shapes(self, shapes: Shapes) -> Shapes:
        return shapes if self.transform is None else turned_shapes(self.transform, shapes)

    def _selections(self, payloads: Sequence[Payload]) -> list[Payload]:
        """The payloads of the TopK that others are wrapped around."""
        parts = list(payloads)
        for codec in (self.chain, self.transform):
            if codec is not None:
                parts = [part.content for part in parts]
        return parts

    def _encode_later(self, parts: Sequence[Payload], ctx: Context) -> tuple[Payload, ...]:
        """The parts with their values encoded further, those of tensors of one shape together."""
        made = list(parts)
        for alike in places(part.shape for part in parts):
            tensor = Layout({"tensor": parts[alike[0]].shape})
            alone = stacked_context(ctx, tensor, len(alike))
            for codec in self.later:
                stack = torch.cat([made[i].innermost for i in alike])
                inner, _ = codec.encode(stack, None, alone)
                for i, piece in zip(alike, inner.split(len(alike))):
                    made[i] = made[i].nest(piece, exact=codec.quantises)
        return tuple(made)
