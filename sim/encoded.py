"""Payload: encoded rows as they travel, with their exact bytes.

A codec turns rows into a body, the tensor that a following codec may encode further, and side
tensors. Decoding walks the same nesting backwards. Headers (names, lengths, checksums) are charged
by the network, not here.

Legend: n rows (one per node).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sim.wire import Wire

if TYPE_CHECKING:
    from sim.compute.placed import Placed
    from sim.payload import Compressor


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

    def add_to(self, rows: Placed, scale: float = 1.0) -> None:
        """Add `scale` times what is decoded to rows `[n, P]` of flat tensors, in place."""
        self.codec.add(self, rows, scale)

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
            return self.content.values
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


def _rows_at(at: slice, wires: list[Wire]) -> Wire:
    return wires[0].rows(at)


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
