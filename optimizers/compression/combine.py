"""Codecs made of codecs: Chain, one after the other; PerTensor, one for each named tensor.

Legend: b rows of a block, P values in a flat row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from optimizers.compression.flags import of_all, of_any, of_sum
from optimizers.compression.selecting import Selecting
from optimizers.compression.sign import Sign
from optimizers.compression.sparsify import TopK
from optimizers.compression.stacks import places, stack_by_stack, stacked_context
from optimizers.compression.transform import DCT, Blocks, Shapes
from sim.compute.layout import Layout
from sim.compute.placed import Placed
from sim.payload import Compressor, Context, Dense, Payload, State


@dataclass(frozen=True, init=False)
class Chain(Compressor):
    """Each codec encodes the body that the one before it made; decoding runs backwards.

    Sizes add up: what is sent are the side tensors of all and the body of the last. A quantising
    stage keeps its exact input on the sender, for `Payload.unquantised`. Only the first codec may
    have state (put `ErrorFeedback` around the chain), and one that is sized by the data comes last.

    >>> from optimizers.compression import DCT, TopK
    >>> Chain(DCT(64), TopK(k=2))
    Chain(codecs=(DCT(chunk=64), TopK(k=2, ratio=None, unit='last', value_dtype='float32', \
index='bytes')))
    """

    codecs: tuple[Compressor, ...]

    summable = of_all("summable")
    shared_support = of_all("shared_support")
    unbiased = of_all("unbiased")
    deterministic = of_all("deterministic")
    linear = of_all("linear")
    zero_preserving = of_all("zero_preserving")
    sized_by_data = of_any("sized_by_data")
    quantises = of_any("quantises")
    separable = of_all("separable")
    passes = of_sum("passes")

    def __init__(self, *codecs: Compressor) -> None:
        if not codecs:
            raise ValueError("Chain(): give at least one codec, for example Chain(TopK(k=32))")
        for codec in codecs:
            if not isinstance(codec, Compressor):
                raise ValueError(
                    f"Chain got {codec!r}, which must be a Compressor; in YAML, write "
                    "`_convert_: all` beside `_args_`, or Hydra hands over configurations"
                )
        for codec in codecs[:-1]:
            if isinstance(codec, PerTensor | Sign) or codec.sized_by_data:
                raise ValueError(
                    f"{codec!r} must be the last of a Chain; or put the Chain inside it"
                )
        object.__setattr__(self, "codecs", codecs)

    def init(self, layout: Layout, n: int) -> State:
        first, *later = self.codecs
        stateful = [c for c in later if c.init(Layout({}), 0) is not None]
        if stateful:
            raise ValueError(f"{stateful[0]!r} has state, so it must be the first of a Chain")
        return first.init(layout, n)

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        first, *later = self.codecs
        payload, state = first.encode(x, state, ctx)
        for codec in later:
            inner, _ = codec.encode(payload.innermost, None, ctx)
            payload = payload.nest(inner, exact=codec.quantises)
        return Payload(self, x.shape[1:], payload), state

    def decode(self, payload: Payload) -> Tensor:
        return payload.body

    def add(self, payload: Payload, rows: Placed, scale: float) -> None:
        payload.content.add_to(rows, scale)

    def aggregate(
        self, payload: Payload, over: str, weights: Tensor | None, runs: int = 1
    ) -> Tensor:
        inner = payload.content
        return inner.codec.aggregate(inner, over, weights, runs)


@dataclass(frozen=True)
class PerTensor(Compressor):
    """Apply a codec to each named tensor of the layout, in its own shape, instead of the flat row.

    Tensors of one shape go through the codec together, as rows of one call, where nothing tells
    them apart: if it has no state and draws nothing. Each has its own payload all the same.

    `PerTensor(Chain(DCT(64), TopK(32)))` is DeMo's codec; `PerTensor(LowRank(4), vectors=Dense())`
    approximates matrices, and sends vectors whole.

    Args:
        codec: encodes `[b, *shape]` of each tensor.
        dense_below: tensors of fewer values are sent whole in float32; None sends none so.
        vectors: the codec of tensors of one axis, and of scalars; None for the same codec.
        names: codecs of the tensors whose names match a pattern, such as `{"*embed*": Dense()}`;
            the first that matches counts, before all other rules.
    """

    codec: Compressor
    dense_below: int | None = None
    vectors: Compressor | None = None
    names: Mapping[str, Compressor] | tuple[tuple[str, Compressor], ...] = ()

    summable = of_all("summable")
    shared_support = of_all("shared_support")
    unbiased = of_all("unbiased")
    deterministic = of_all("deterministic")
    linear = of_all("linear")
    zero_preserving = of_all("zero_preserving")
    sized_by_data = of_any("sized_by_data")
    quantises = of_any("quantises")
    separable = True

    def __post_init__(self) -> None:
        pairs = self.names.items() if isinstance(self.names, Mapping) else self.names
        object.__setattr__(self, "names", tuple((str(name), codec) for name, codec in pairs))
        for codec in self.codecs:
            if not isinstance(codec, Compressor):
                raise ValueError(
                    f"PerTensor got {codec!r}, which must be a Compressor; in YAML, write "
                    "`_convert_: all` beside `names`, or Hydra hands over configurations"
                )

    @property
    def passes(self) -> float:  # type: ignore[override]
        """A tensor goes through one codec; the most costly counts for all."""
        return max(codec.passes for codec in self.codecs)

    @property
    def named(self) -> tuple[tuple[str, Compressor], ...]:
        """The patterns of names, and the codec of each."""
        return cast(tuple[tuple[str, Compressor], ...], self.names)

    @property
    def uniform(self) -> bool:
        """Whether every tensor gets the same codec."""
        return self.dense_below is None and len(self.codecs) == 1

    @property
    def codecs(self) -> tuple[Compressor, ...]:
        """The codecs that the tensors get."""
        named = [codec for _, codec in self.named]
        return (self.codec, *([] if self.vectors is None else [self.vectors]), *named)

    def init(self, layout: Layout, n: int) -> State:
        states = {p.name: p.codec.init(p.layout, n) for p in _parts(self, layout)}
        return None if all(s is None for s in states.values()) else states

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        if x.shape[1:] != (ctx.layout.numel,):
            raise ValueError(
                f"{self!r} got rows of shape {tuple(x.shape[1:])}: expected flat rows of "
                f"{ctx.layout.numel} values, as the layout has"
            )
        at_once = self.selecting
        if at_once is not None and at_once.takes(x):
            selected = at_once.encode(x, shapes_of(ctx.layout), ctx)
            return Payload(self, x.shape[1:], selected), None
        parts, columns = _parts(self, ctx.layout), ctx.layout.slices
        views = {p.name: x[:, columns[p.name]].reshape(len(x), *p.shape) for p in parts}
        if state is None and self.deterministic:
            return Payload(self, x.shape[1:], self._encode_stacks(views, ctx)), None
        payloads, states = [], {}
        for p in parts:
            old, part_ctx = None if state is None else state[p.name], replace(ctx, layout=p.layout)
            payload, states[p.name] = p.codec.encode(views[p.name], old, part_ctx)
            payloads.append(payload)
        return Payload(self, x.shape[1:], tuple(payloads)), None if state is None else states

    def decode(self, payload: Payload) -> Tensor:
        at_once = self.selecting
        if at_once is not None and _is_here(payload):
            return at_once.decode(payload.content)
        return stack_by_stack(payload.content, lambda stack, _: stack.decode())

    def add(self, payload: Payload, rows: Placed, scale: float) -> None:
        at_once = self.selecting
        if at_once is not None and at_once.scatters and at_once.takes(rows.memory):
            at_once.add(payload.content, rows, scale)
        else:
            super().add(payload, rows, scale)

    def aggregate(
        self, payload: Payload, over: str, weights: Tensor | None, runs: int = 1
    ) -> Tensor:
        at_once = self.selecting
        if runs == 1 and at_once is not None and _is_here(payload):
            return at_once.mean(payload.content, over, weights)

        def mean(stack: Payload, tensors: int) -> Tensor:
            return stack.codec.aggregate(stack, over, weights, tensors * runs)

        return stack_by_stack(payload.content, mean)

    @property
    def selecting(self) -> Selecting | None:
        """Its codec in stages, if that selects, and does to each tensor what it does to all."""
        at_once = _selecting(self.codec)
        return at_once if self.deterministic and self.uniform else None

    def _encode_stacks(self, views: dict[str, Tensor], ctx: Context) -> tuple[Payload, ...]:
        parts = _parts(self, ctx.layout)
        payloads: dict[int, Payload] = {}
        for alike in places((p.shape, id(p.codec)) for p in parts):
            first = parts[alike[0]]
            stack = torch.cat([views[parts[i].name] for i in alike])
            stack_ctx = stacked_context(ctx, first.layout, len(alike))
            whole, _ = first.codec.encode(stack, None, stack_ctx)
            payloads.update(zip(alike, whole.split(len(alike))))
        return tuple(payloads[i] for i in range(len(parts)))


@dataclass(frozen=True)
class _Part:
    """A named tensor, alone in its layout, and the codec that it gets."""

    name: str
    layout: Layout
    codec: Compressor

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape; a scalar is a vector of one."""
        return self.layout.shapes[self.name] or (1,)


@lru_cache(maxsize=256)
def _parts(codec: PerTensor, layout: Layout) -> tuple[_Part, ...]:
    tensors = [(name, layout.select([name])) for name in layout.shapes]
    return tuple(_Part(name, alone, _codec_of(codec, name, alone)) for name, alone in tensors)


def _is_here(payload: Payload) -> bool:
    """Whether compiled code takes it."""
    return next(payload.wires()).data.device.type == "cpu"


_WHOLE = Dense()


def _codec_of(codec: PerTensor, name: str, alone: Layout) -> Compressor:
    """What encodes a tensor, which is alone in a layout."""
    for pattern, named in codec.named:
        if fnmatchcase(name, pattern):
            return named
    if alone.numel < (codec.dense_below or 0):
        return _WHOLE
    return codec.codec if codec.vectors is None or len(alone.shapes[name]) > 1 else codec.vectors


@lru_cache(maxsize=256)
def _selecting(codec: Compressor) -> Selecting | None:
    chain = codec if isinstance(codec, Chain) else None
    first, *rest = (codec,) if chain is None else chain.codecs
    transform = None
    if rest and isinstance(first, DCT | Blocks):
        transform, (first, *rest) = first, rest
    if not isinstance(first, TopK):
        return None
    return Selecting(chain, transform, first, tuple(rest))


@lru_cache(maxsize=256)
def shapes_of(layout: Layout) -> Shapes:
    """The shapes of the tensors; a scalar is a vector of one."""
    return tuple(shape or (1,) for shape in layout.shapes.values())
