"""Wire: one tensor of a payload, and what its elements cost on the wire.

Legend: n rows (one per node), m elements of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sim.packing import Format, Number, number
from sim.packing import bits as bits_format
from sim.packing import symbols as symbols_format


class Wire:
    """A tensor `[n, ...]` and the format of one element; give at most one of the four formats.

    What is built is what arrives: data are rounded to the wire's float type at construction, and
    kept in their own type for computing. `sim.packing` says which codes a tensor may hold.

    Args:
        data: the values as the receiver sees them.
        bits: bits of an integer code, 1 to 63; one signed bit is -1 or +1. For floating data, 32
            and 64 mean the float of that width.
        symbols: codes take this many values, 2 to 256; as many as fit share a byte (five trits),
            or they are a stream of bits where that is shorter.
        dtype: the name of a number type, `sim.packing.DTYPES`. With no format at all, or
            `"native"`, the type of the data, and one bit for bool.
        format: any other of `sim.packing`.
        counts: ragged rows: only the first `counts[i]` elements of row i (flattened) are sent.

    >>> Wire(torch.tensor([[1.0, -1.0, 0.0, 1.0, 1.0, 0.0]]), symbols=3).sizes
    [2]
    """

    __slots__ = ("counts", "data", "format")

    def __init__(
        self,
        data: Tensor,
        bits: int | None = None,
        symbols: int | None = None,
        dtype: str | torch.dtype | None = None,
        counts: Iterable[int] | Tensor | None = None,
        format: Format | None = None,
    ) -> None:
        if sum(f is not None for f in (bits, symbols, dtype, format)) > 1:
            raise ValueError(f"{bits=}, {symbols=}, {dtype=}, {format=}: give at most one of them")
        self.format: Format
        if format is not None:
            self.format = format
        elif symbols is not None:
            self.format = symbols_format(symbols, data.dtype)
        elif bits is not None or (data.dtype == torch.bool and dtype is None):
            self.format = bits_format(1 if bits is None else bits, data.dtype)
        else:
            self.format = Number(data.dtype) if dtype in (None, "native") else number(dtype)
        self.data = self.format.rounded(data)
        self.counts = None if counts is None else [int(c) for c in counts]

    @property
    def n(self) -> int:
        """Rows."""
        return self.data.shape[0]

    @property
    def numel(self) -> float:
        """Elements of one row that are sent; the mean over the rows if they are ragged."""
        return self._m if self.counts is None else sum(self.counts) / max(1, self.n)

    @property
    def values(self) -> float:
        """Coefficients that these elements stand for."""
        return self.format.values(self.numel)

    @property
    def nbytes(self) -> int:
        """Bytes of one row; of the longest if they are ragged."""
        return self.format.nbytes(self._m if self.counts is None else max(self.counts, default=0))

    @property
    def sizes(self) -> list[int]:
        """Bytes of each row."""
        return [self.format.nbytes(m) for m in self._row_counts()]

    def rows(self, index: Sequence[int] | Tensor | slice) -> Wire:
        """These rows only, in this order; a view if they are a slice."""
        if not isinstance(index, slice):
            index = torch.as_tensor(index, dtype=torch.int64, device=self.data.device)
        counts = None
        if self.counts is not None:
            counts = torch.tensor(self.counts, dtype=torch.int64)[index].tolist()
        return self._like(self.data[index], counts)

    def copy(self) -> Wire:
        """The same in memory of its own."""
        return self._like(self.data.clone(), self.counts)

    @staticmethod
    def cat(wires: Sequence[Wire]) -> Wire:
        """Stack the rows of wires of one format; ragged rows are padded to a common width."""
        if wires[0].counts is None:
            return wires[0]._like(torch.cat([w.data for w in wires]), None)
        width = max(w.data.shape[1] for w in wires)
        data = torch.cat([F.pad(w.data, (0, width - w.data.shape[1])) for w in wires])
        return wires[0]._like(data, [m for w in wires for m in w._row_counts()])

    def pack(self) -> list[bytes]:
        """The bytes of each row.

        Raises:
            ValueError: if an element does not fit the format, or on the meta device.
        """
        if self.data.is_meta:
            raise ValueError("a wire on the meta device has no values to pack")
        flat = self.data.detach().cpu().reshape(self.n, self._m)
        return [self.format.pack(row[:m]) for row, m in zip(flat, self._row_counts())]

    def unpack(self, rows: Sequence[bytes], counts: Sequence[int] | None = None) -> Wire:
        """The wire of this format and row shape that packs to `rows`; ragged ones need `counts`."""
        ms = [self._m] * len(rows) if self.counts is None else list(counts or [])
        width = max(ms, default=self._m)
        data = torch.zeros(len(rows), width, dtype=self.data.dtype)
        for out, row, m in zip(data, rows, ms):
            out[:m] = self.format.unpack(row, m, self.data.dtype)
        if self.counts is None:
            return self._like(data.reshape(len(rows), *self.data.shape[1:]), None)
        return self._like(data, ms)

    def _like(self, data: Tensor, counts: list[int] | None) -> Wire:
        """A wire of this format, for data that are rounded already."""
        wire = object.__new__(Wire)
        wire.data, wire.format, wire.counts = data, self.format, counts
        return wire

    @property
    def _m(self) -> int:
        return math.prod(self.data.shape[1:])

    def _row_counts(self) -> list[int]:
        return [self._m] * self.n if self.counts is None else self.counts
