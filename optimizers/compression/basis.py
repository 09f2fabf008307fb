"""A codec in two halves, a change of basis and the rest, for strategies that work in that basis.

DeMo's codec turns every block into cosine coefficients and sends some of them. The turn is linear
and orthonormal, so a momentum may be kept as coefficients: what was not sent is then known without
turning it back, which halves the arithmetic.

Legend: b rows of a block, P values in a flat row, K values that are sent of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from optimizers.compression.combine import Chain, PerTensor, shapes_of
from optimizers.compression.flags import of_all, of_any, of_sum
from optimizers.compression.stacks import stack_by_stack
from optimizers.compression.transform import DCT, Blocks, turn_rows, turn_rows_back, turned_shapes
from sim.compute.block import Block
from sim.compute.layout import Layout
from sim.compute.placed import Placed
from sim.payload import Compressor, Context, Dense, Payload, State


def halves(codec: Compressor) -> tuple[Compressor, Compressor]:
    """A transform that loses nothing, and a codec of the `coefficients` that it makes.

    Encoding with one after the other gives the payload of `codec`. The halves of
    `PerTensor(Chain(DCT(64), ...))` are the cosines and the rest; of a codec that selects among
    the values as they are, nothing and itself.

    >>> from optimizers.compression import TopK
    >>> halves(PerTensor(TopK(k=2)))[0]
    Dense(dtype='native')
    """
    if isinstance(codec, PerTensor) and codec.uniform and _turns(codec.codec):
        assert isinstance(codec.codec, Chain)
        first, *rest = codec.codec.codecs
        return PerTensor(first), AfterTransform(codec, PerTensor(Chain(*rest)))
    return Dense("native"), codec


def coefficients(transformed: Payload) -> Tensor:
    """What the first half made: flat rows [b, P] of the caller's own, to write to."""
    if not isinstance(transformed.content, tuple):
        return transformed.innermost.clone()
    return torch.cat([part.innermost.flatten(1) for part in transformed.content], dim=1)


def accumulate(
    transform: Compressor, layout: Layout, x: Tensor, out: Placed, keep: float, scale: float
) -> None:
    """`out = keep * out + scale * coefficients of x`, in place, for rows `[b, P]` of a layout.

    Args:
        transform: the first of two `halves`.
    """
    if x.is_meta:
        return
    if isinstance(transform, PerTensor):
        assert isinstance(transform.codec, DCT | Blocks)
        turn_rows(transform.codec, shapes_of(layout), x, out, keep, scale)
    else:
        out.add(x, scale, keep)


def restore(transform: Compressor, layout: Layout, coefficients: Placed, out: Placed) -> None:
    """Write to `out` the rows `[b, P]` of a layout that have these coefficients.

    Args:
        transform: the first of two `halves`.
    """
    there = coefficients.read()
    if isinstance(transform, PerTensor) and not there.is_meta:
        assert isinstance(transform.codec, DCT | Blocks)
        turn_rows_back(transform.codec, shapes_of(layout), there, out)
    else:
        out.add(there, keep=0.0)


def extract(select: Compressor, rows: Placed, block: Block, exact: bool) -> Payload:
    """The payload of coefficients `[b, P]` of a block's nodes; takes out, in place, what it holds.

    Args:
        select: the second of two `halves`.
        exact: take out the values from before quantising stages, as `Payload.unquantised`.
    """
    if isinstance(select, AfterTransform) and select.selects_at_once(rows.memory):
        return select.extract(rows, block.context, exact)
    here = rows.read()
    payload = block.encode(select, here)
    if here.is_meta:
        return payload
    payload = payload.apart_from(here)  # it may hold the rows themselves
    rows.write(here - select.decode(payload.dequantised() if exact else payload))
    return payload


@dataclass(frozen=True)
class AfterTransform(Compressor):
    """The stages of `whole` after its first: rows are coefficients, payloads are those of `whole`.

    So payloads cost, combine and decode as if `whole` had made them; only `decode` of this codec
    gives coefficients.

    Args:
        whole: a `PerTensor(Chain(transform, ...))`.
        rest: the same without the transform.
    """

    whole: PerTensor
    rest: PerTensor

    deterministic = of_all("deterministic")
    zero_preserving = of_all("zero_preserving")
    sized_by_data = of_any("sized_by_data")
    passes = of_sum("passes")

    @property
    def codecs(self) -> tuple[Compressor, ...]:
        """The codec of the coefficients."""
        return (self.rest,)

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        chain = self.whole.codec
        assert isinstance(chain, Chain)
        transform = chain.codecs[0]
        assert isinstance(transform, DCT | Blocks)
        shapes, at_once = shapes_of(ctx.layout), self.whole.selecting
        if at_once is not None and at_once.takes(x):
            return Payload(self.whole, x.shape[1:], at_once.encode_turned(x, shapes, ctx)), state
        blocks = turned_shapes(transform, shapes)
        turned = replace(ctx, layout=Layout(dict(zip(ctx.layout.shapes, blocks))))
        inner, state = self.rest.encode(x, state, turned)
        parts = tuple(
            Payload(chain, shape, Payload(transform, shape, part.content))
            for shape, part in zip(shapes, inner.content)
        )
        return Payload(self.whole, x.shape[1:], parts), state

    def selects_at_once(self, rows: Tensor) -> bool:
        """Whether coefficients of their type and place can be encoded where they lie."""
        at_once = self.whole.selecting
        return at_once is not None and at_once.takes(rows)

    def extract(self, rows: Placed, ctx: Context, exact: bool) -> Payload:
        """Encode rows that are selected from at once, and take out what is sent; see `extract`."""
        at_once = self.whole.selecting
        assert at_once is not None
        parts = at_once.extract(rows, shapes_of(ctx.layout), ctx, exact)
        return Payload(self.whole, rows.memory.shape[1:], parts)

    def decode(self, payload: Payload) -> Tensor:
        parts = [part.content.content for part in payload.content]
        return stack_by_stack(parts, lambda stack, _: stack.decode())


def _turns(codec: Compressor) -> bool:
    """Whether a codec is a chain of a change of basis and something after it."""
    if not isinstance(codec, Chain) or len(codec.codecs) < 2:
        return False
    return isinstance(codec.codecs[0], DCT | Blocks)
