"""What travels, and its size: Payload, Compressor (interface) and Dense, the codec that only casts.

Legend: b rows of a block, n rows of a payload (one per node), P parameters.

A codec turns rows `[b, ...]` into a `Payload`: a body, the tensor that a following codec may
encode further, and side tensors. Decoding walks the same nesting backwards. Headers (names,
lengths, checksums) are charged by the network, not here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sim.compute.layout import Layout
from sim.context import Context
from sim.wire import Wire

__all__ = ["Compressor", "Context", "Dense", "Payload", "State", "Wire"]

_DECODED_AT_ONCE = 1 << 20
"""Values: enough to be worth a call, and few enough for a cache."""

State = Any
"""None, a tensor `[n, ...]`, or a tuple or dict of states: one row per node, stacked."""


class Payload:
    """Encoded rows: for each of n nodes a body and side tensors, with their exact bytes.

    Args:
        codec: the compressor that can decode it.
        shape: of one node's tensor before it was encoded (without n).
        body: a wire; or the payload that a following codec made of it; or several payloads, of
            parts that were encoded apart.
        side: tensors that accompany the body, sent before it. Ragged wires need a side `count`.
    """

    __slots__ = ("codec", "content", "exact", "nodes", "shape", "side")

    def __init__(
        self,
        codec: Compressor,
        shape: Sequence[int],
        body: Wire | Payload | tuple[Payload, ...],
        **side: Wire,
    ) -> None:
        self.codec = codec
        self.shape = tuple(shape)
        self.content: Any = body
        """The body as it is: a wire, a payload, or a tuple of payloads."""
        self.side = side
        self.exact: Any = None
        """The body before a quantising stage; local, never sent."""
        self.nodes: Sequence[int] | None = None
        """Whose rows they are, in order; known of what a gather has brought."""
        wires = [w for w in (body, *side.values()) if isinstance(w, Wire)]
        if any(w.counts is not None for w in wires) and "count" not in side:
            raise ValueError("ragged wires without count=Wire(counts, dtype='int32') beside them")

    @property
    def n(self) -> int:
        """Rows."""
        content = self.content
        return content[0].n if isinstance(content, tuple) else content.n

    @property
    def body(self) -> Any:
        """The body, decoded, whatever later stages did to it: `[n, ...]`, or a tuple of those."""
        if isinstance(self.content, Wire):
            return self.content.data
        if isinstance(self.content, Payload):
            return self.content.decode()
        return tuple(part.decode() for part in self.content)

    @property
    def innermost(self) -> Tensor:
        """The body that nothing has encoded yet, `[n, ...]`: the input of the next codec."""
        if isinstance(self.content, tuple):
            raise ValueError(f"{self.codec!r} makes several bodies: put later codecs inside it")
        return self.content.data if isinstance(self.content, Wire) else self.content.innermost

    def __getitem__(self, name: str) -> Tensor:
        """A side tensor, `[n, ...]`."""
        return self.side[name].data

    @property
    def sizes(self) -> list[int]:
        """Exact bytes of each row: `sizes[i] == len(pack()[i])`."""
        wires = list(self.wires())
        fixed = sum(w.nbytes for w in wires if w.counts is None)
        ragged = [w.sizes for w in wires if w.counts is not None]
        return [fixed + sum(r) for r in zip(*ragged)] if ragged else [fixed] * self.n

    @property
    def nbytes(self) -> int:
        """Bytes of a row; of the longest if they differ."""
        return max(self.sizes, default=0)

    @property
    def kept(self) -> float:
        """Coefficients sent, as a fraction of those encoded; 1 for a dense codec."""
        return self._coefficients() / max(1, math.prod(self.shape))

    def wires(self) -> Iterator[Wire]:
        """Everything that is sent, in the order in which it is packed."""
        yield from self.side.values()
        if isinstance(self.content, Wire):
            yield self.content
        else:
            for part in self._parts():
                yield from part.wires()

    def decode(self) -> Tensor:
        """What the receivers reconstruct, `[n, *shape]`."""
        return self.codec.decode(self)

    def unquantised(self) -> Tensor:
        """What would be decoded, had the quantising stages of its Chains sent exact values.

        Psyche's DeMo subtracts this from its momentum while it sends only signs. Equals `decode()`
        where nothing was quantised, and after `unpack_like`: the exact values are not sent.
        """
        return self.codec.decode(self.dequantised())

    def dequantised(self) -> Payload:
        """The same, where quantising stages have their exact input: local, never sent."""
        if self.exact is not None:
            return Payload(self.codec, self.shape, self.exact, **self.side)
        if isinstance(self.content, Wire):
            return self
        parts = tuple(part.dequantised() for part in self._parts())
        if all(new is old for new, old in zip(parts, self._parts())):
            return self
        content = parts if isinstance(self.content, tuple) else parts[0]
        return Payload(self.codec, self.shape, content, **self.side)

    def combine(self, over: str = "all", weights: Tensor | None = None) -> Tensor:
        """The mean of the rows, `[*shape]`: codes are summed first and decoded once if possible.

        Args:
            over: `"all"` divides by all n rows; `"senders"` divides each coefficient by the rows
                that sent it (zero where nobody did), as DeMo does.
            weights: [n], for a weighted mean.
        """
        if over not in ("all", "senders"):
            raise ValueError(f"over={over!r}: must be 'all' or 'senders'")
        if self.n == 0:
            raise ValueError("cannot combine a payload of no rows")
        return self.codec.aggregate(self, over, weights)[0]

    def rows(self, index: Sequence[int] | Tensor | slice) -> Payload:
        """These rows only, in this order; the payload itself if they are all of them.

        Of a slice they are views.
        """
        if isinstance(index, slice):
            return _rebuild([self], partial(_rows_at, index))
        index = torch.as_tensor(index, dtype=torch.int64, device="cpu")
        if torch.equal(index, torch.arange(self.n)):
            return self
        return _rebuild([self], lambda wires: wires[0].rows(index))

    def apart_from(self, memory: Tensor) -> Payload:
        """The payload, copied if a tensor of it lies in this memory, which will be reused."""
        place = memory.untyped_storage().data_ptr()
        inside = [w.data.untyped_storage().data_ptr() == place for w in self.wires()]
        return _rebuild([self], lambda wires: wires[0].copy()) if any(inside) else self

    def split(self, parts: int) -> list[Payload]:
        """Cut the rows into `parts` equal pieces, which are views; `cat` puts them together."""
        size = self.n // parts
        pieces = [slice(i * size, (i + 1) * size) for i in range(parts)]
        return [_rebuild([self], partial(_rows_at, at)) for at in pieces]

    @staticmethod
    def cat(payloads: Sequence[Payload]) -> Payload:
        """Stack the rows of payloads of one codec."""
        return payloads[0] if len(payloads) == 1 else _rebuild(payloads, Wire.cat)

    def pack(self) -> list[bytes]:
        """The bytes of each row, which `unpack_like` reads."""
        return [b"".join(row) for row in zip(*(wire.pack() for wire in self.wires()))]

    def unpack_like(self, rows: Sequence[bytes]) -> Payload:
        """The payload that packs to `rows`, read with the format of this one.

        Values and number of rows of this payload do not matter; `codec.template(layout)` will do.

        Raises:
            ValueError: if a row is too short or too long for the format.
        """
        offsets = [0] * len(rows)
        payload = self._read(rows, offsets)
        for i, (row, offset) in enumerate(zip(rows, offsets)):
            if len(row) != offset:
                raise ValueError(f"row {i}: {len(row)} bytes where the format takes {offset}")
        return payload

    def nest(self, inner: Payload, exact: bool = False) -> Payload:
        """Replace the innermost body by its encoding `inner`; `exact` keeps the former too."""
        if isinstance(self.content, Wire):
            nested = Payload(self.codec, self.shape, inner, **self.side)
            nested.exact = Wire(self.content.data) if exact else None
            return nested
        return Payload(self.codec, self.shape, self.content.nest(inner, exact), **self.side)

    def __repr__(self) -> str:
        return f"<Payload {self.codec!r} n={self.n} shape={self.shape} nbytes={self.nbytes}>"

    def _parts(self) -> tuple[Payload, ...]:
        return self.content if isinstance(self.content, tuple) else (self.content,)

    def _coefficients(self) -> float:
        if isinstance(self.content, Wire):
            return self.content.numel
        return sum(part._coefficients() for part in self._parts())

    def _read(self, rows: Sequence[bytes], offsets: list[int]) -> Payload:
        side: dict[str, Wire] = {}
        counts: list[int] = []
        for name, wire in self.side.items():
            side[name] = _read_wire(wire, rows, offsets, counts)
            counts = side[name].data.flatten().tolist() if name == "count" else counts
        body: Any
        if isinstance(self.content, Wire):
            body = _read_wire(self.content, rows, offsets, counts)
        else:
            parts = tuple(part._read(rows, offsets) for part in self._parts())
            body = parts if isinstance(self.content, tuple) else parts[0]
        return Payload(self.codec, self.shape, body, **side)


class Compressor(ABC):
    """A codec. Implementations are frozen dataclasses: configuration only, state is passed.

    Encoding and decoding treat rows independently, for any number of them, keep float32 and
    float64 apart, and run on the meta device (no branch on values; there the bytes of models too
    large to hold are found) unless the size depends on the data. `sim.testing.check_compressor`
    verifies the flags and all of this.
    """

    summable: bool = False
    """Codes may be summed in flight by the network: `linear`, and sums fit on the wire."""
    shared_support: bool = False
    """Every row of a step sends the same coefficients."""
    unbiased: bool = False
    """The mean of what is decoded, over seeds and steps, is what was encoded."""
    deterministic: bool = True
    """The payload depends on rows and state only, not on seed, node, step and names of tensors."""
    linear: bool = False
    """Rows share all that decoding needs but the body, and decoding is linear in that."""
    sized_by_data: bool = False
    """The bytes depend on the values, so they are unknown before encoding."""
    zero_preserving: bool = True
    """Zeros decode to zeros."""
    telescopes: bool = False
    """Sent plus residual equals the sum of the inputs; the residual is the state's first tensor."""
    separable: bool = False
    """Each named tensor is encoded by itself: a model sent part by part decodes to the same."""
    quantises: bool = False
    """As a later stage of a Chain it codes values coarsely; see `Payload.unquantised`."""
    passes: float = 4.0
    """Parameter-sized reads and writes of memory that encoding costs."""

    def init(self, layout: Layout, n: int) -> State:
        """State of n nodes before their first step, on torch's default device; None if none."""
        return None

    @abstractmethod
    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        """Encode rows `x [b, *shape]`, with the state of these rows; neither is modified."""

    @abstractmethod
    def decode(self, payload: Payload) -> Tensor:
        """Reconstruct `[n, *payload.shape]` from `payload.body` and side tensors."""

    def aggregate(
        self, payload: Payload, over: str, weights: Tensor | None, runs: int = 1
    ) -> Tensor:
        """The mean over the rows, `[1, *shape]`: the work of `Payload.combine`, which see.

        A codec that leaves out coefficients overrides this to count senders.

        Args:
            runs: the rows are this many runs of equal length, one after the other; each has its
                own mean, `[runs, *shape]`. `PerTensor` stacks tensors of one shape so.
            weights: of the rows of a run.
        """
        if not self.linear or isinstance(payload.content, tuple):
            return _decoded_mean(payload, weights, runs)
        inner = payload.content
        if isinstance(inner, Payload):
            body = inner.codec.aggregate(inner, over, weights, runs)
        else:
            body = _mean(payload.body, weights, runs)
        first = slice(None, None, payload.n // runs)
        side = {name: wire.rows(first) for name, wire in payload.side.items()}
        return self.decode(Payload(self, payload.shape, Wire(body), **side))

    def nbytes(self, layout: Layout) -> int:
        """Bytes of one node's payload for a model of this layout; nothing is allocated.

        Raises:
            ValueError: if the size depends on the values.
        """
        if self.sized_by_data:
            raise ValueError(
                f"{self!r}: its size depends on the values, so a layout does not give it; encode "
                "rows and read payload.sizes, or choose a codec of fixed size such as TopK"
            )
        return self.template(layout).nbytes

    def template(self, layout: Layout, dtype: torch.dtype = torch.float32) -> Payload:
        """An encoded flat row, of the format of every payload of this codec and layout.

        On the meta device, so without values, unless the codec's size depends on the data.
        """
        with torch.device("cpu" if self.sized_by_data else "meta"):
            row = torch.zeros(1, layout.numel, dtype=dtype)
            state = self.init(layout, 1)
        ctx = Context(layout, step=0, nodes=np.zeros(1, np.int64), seed=0)
        return self.encode(row, state, ctx)[0]


@dataclass(frozen=True)
class Dense(Compressor):
    """Every value, cast to `dtype` for the way; `"native"` sends the type that it is given.

    Bytes: 4 P in float32, 2 P in bfloat16 and float16 (which saturates at 65504).

    >>> Dense("bfloat16").nbytes(Layout.flat(1000))
    2000
    """

    dtype: str = "float32"

    summable = True
    shared_support = True
    linear = True
    separable = True
    passes = 2.0

    def __post_init__(self) -> None:
        accepted = ("native", "float64", "float32", "bfloat16", "float16")
        if self.dtype not in accepted:
            raise ValueError(f"dtype={self.dtype!r}: must be one of {', '.join(accepted)}")

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """Whether a float32 survives: rounding to 16 bits is small, but not zero on average."""
        return self.dtype not in ("bfloat16", "float16")

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        return Payload(self, x.shape[1:], Wire(x, dtype=self.dtype)), state

    def decode(self, payload: Payload) -> Tensor:
        return payload.body


def _rows_at(at: slice, wires: list[Wire]) -> Wire:
    return wires[0].rows(at)


def _mean(rows: Tensor, weights: Tensor | None, runs: int) -> Tensor:
    """The (weighted) means of `[runs n, ...]` over the rows of each run, `[runs, ...]`."""
    rows = rows.unflatten(0, (runs, -1))
    if weights is None:
        return rows.mean(1)
    weights = torch.as_tensor(weights, dtype=rows.dtype, device=rows.device)
    return torch.tensordot(weights, rows, dims=([0], [1])) / weights.sum()


def _decoded_mean(payload: Payload, weights: Tensor | None, runs: int) -> Tensor:
    """The (weighted) means of the decoded rows of each run; only some rows are there at a time."""
    n, some = payload.n // runs, max(1, _DECODED_AT_ONCE // max(1, math.prod(payload.shape)))
    if payload.n <= some:
        return _mean(payload.decode(), weights, runs)
    shares = torch.ones(n) if weights is None else torch.as_tensor(weights)
    total: Any = 0
    for start in range(0, n, some):
        stop = min(start + some, n)
        at = (slice(run * n + start, run * n + stop) for run in range(runs))
        blocks = (payload.rows(rows).decode().flatten(1) for rows in at)
        total = total + torch.stack([shares[start:stop].to(rows) @ rows for rows in blocks])
    return (total / shares.sum().to(total)).reshape(runs, *payload.shape)


def _rebuild(payloads: Sequence[Payload], fn: Callable[[list[Wire]], Wire]) -> Payload:
    """A payload of the same nesting, each wire being `fn` of those at its place."""
    first = payloads[0]
    side = {name: fn([p.side[name] for p in payloads]) for name in first.side}
    body: Any
    if isinstance(first.content, Wire):
        body = fn([p.content for p in payloads])
    else:
        parts = tuple(_rebuild(same, fn) for same in zip(*(p._parts() for p in payloads)))
        body = parts if isinstance(first.content, tuple) else parts[0]
    rebuilt = Payload(first.codec, first.shape, body, **side)
    if all(p.exact is not None for p in payloads):
        rebuilt.exact = fn([p.exact for p in payloads])
    return rebuilt


def _read_wire(
    wire: Wire, rows: Sequence[bytes], offsets: list[int], counts: Sequence[int]
) -> Wire:
    """Read one wire at the offsets of the rows, which move on."""
    chunks = []
    ms = counts if wire.counts is not None else [int(wire.numel)] * len(rows)
    for i, row in enumerate(rows):
        stop = offsets[i] + wire.format.nbytes(ms[i])
        if stop > len(row):
            raise ValueError(f"row {i}: {len(row)} bytes where the format takes at least {stop}")
        chunks.append(row[offsets[i] : stop])
        offsets[i] = stop
    return wire.unpack(chunks, counts)
