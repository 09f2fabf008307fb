"""How elements become bytes: whole numbers of a type, codes of a few bits, digits of a base.

Legend: m elements of a row.

- Sizes are exact: `format.nbytes(m) == len(format.pack(values))`.
- Bit streams are least significant bit first, so two 12-bit codes take three bytes.
- Codes are integers. Tensors of a floating type, int8, int16 or int32 hold *signed* codes,
  centred on zero; bool, uint8 and int64 (torch's type of indices) hold codes that count from zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sim.compiled import compiled

DTYPES = (
    "float64",
    "float32",
    "bfloat16",
    "float16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int64",
    "int32",
    "uint32",
    "uint16",
    "uint8",
)
"""Names of the number types that have a format of their own."""

_SATURATING = (torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
"""Types so narrow that numbers beyond their range become the largest instead of infinite."""


class Format(ABC):
    """What one element costs on the wire, and how a row of them is written."""

    @abstractmethod
    def nbytes(self, m: int) -> int:
        """Bytes of m elements."""

    @abstractmethod
    def pack(self, values: Tensor) -> bytes:
        """The bytes of `values [m]`; ValueError if one of them does not fit the format."""

    @abstractmethod
    def unpack(self, data: bytes, m: int, dtype: torch.dtype) -> Tensor:
        """The m values that `data` holds, in `dtype`."""

    def rounded(self, values: Tensor) -> Tensor:
        """The values as they will arrive."""
        return values

    def values(self, m: float) -> float:
        """Coefficients that m elements stand for: one each, unless they are packed already."""
        return m


@dataclass(frozen=True)
class Number(Format):
    """Elements of a number type, little-endian; floats below 32 bits but bfloat16 saturate."""

    dtype: torch.dtype

    def nbytes(self, m: int) -> int:
        return m * self.dtype.itemsize

    def pack(self, values: Tensor) -> bytes:
        stored = values.to(self.dtype)
        if not self.dtype.is_floating_point and not torch.equal(stored.to(values.dtype), values):
            raise ValueError(f"{self}: an element does not fit, of {_span(values)}")
        # A column of one element passes for contiguous whatever its stride; a clone has stride 1.
        stored = stored.clone(memory_format=torch.contiguous_format)
        return stored.view(torch.uint8).numpy().tobytes()

    def unpack(self, data: bytes, m: int, dtype: torch.dtype) -> Tensor:
        return torch.frombuffer(bytearray(data), dtype=self.dtype).to(dtype) if m else _empty(dtype)

    def rounded(self, values: Tensor) -> Tensor:
        if not (self.dtype.is_floating_point and values.dtype.is_floating_point):
            return values
        if self.dtype == values.dtype:
            return values
        if self.dtype in _SATURATING:
            most = torch.finfo(self.dtype).max
            values = values.clamp(-most, most)
        if self.dtype == torch.bfloat16 and values.dtype == torch.float32 and values.is_cpu:
            return _bfloat16(values)
        return values.to(self.dtype).to(values.dtype)


@dataclass(frozen=True)
class Signs(Format):
    """Elements -1 or +1, one bit each: set where negative."""

    def nbytes(self, m: int) -> int:
        return -(-m // 8)

    def pack(self, values: Tensor) -> bytes:
        if not (values.abs() == 1).all():
            raise ValueError(f"one signed bit holds -1 or +1 only, not {_span(values)}")
        return np.packbits((values < 0).numpy(), bitorder="little").tobytes()

    def unpack(self, data: bytes, m: int, dtype: torch.dtype) -> Tensor:
        negative = np.unpackbits(np.frombuffer(data, np.uint8), count=m, bitorder="little")
        return 1 - 2 * torch.from_numpy(negative).to(dtype)


@dataclass(frozen=True)
class Bits(Format):
    """Codes `low .. low + 2**bits - 1`, one after the other in a stream of bits."""

    bits: int
    low: int = 0

    def nbytes(self, m: int) -> int:
        return -(-m * self.bits // 8)

    def pack(self, values: Tensor) -> bytes:
        codes = _codes(values, self.low, 1 << self.bits)
        stream = (codes[:, None] >> np.arange(self.bits)) & 1
        return np.packbits(stream.astype(np.uint8).ravel(), bitorder="little").tobytes()

    def unpack(self, data: bytes, m: int, dtype: torch.dtype) -> Tensor:
        raw = np.frombuffer(data, np.uint8)
        stream = np.unpackbits(raw, count=m * self.bits, bitorder="little")
        codes = stream.reshape(m, self.bits).astype(np.int64) @ (1 << np.arange(self.bits))
        return torch.from_numpy(codes + self.low).to(dtype)


@dataclass(frozen=True)
class Digits(Format):
    """Codes `low .. low + base - 1`; as many as fit share a byte, as digits in that base."""

    base: int
    low: int = 0

    @property
    def per_byte(self) -> int:
        """Digits in a byte: five trits, eight bits."""
        return next(g for g in range(8, 0, -1) if self.base**g <= 256)

    def nbytes(self, m: int) -> int:
        return -(-m // self.per_byte)

    def pack(self, values: Tensor) -> bytes:
        codes = _codes(values, self.low, self.base)
        digits = np.zeros((self.nbytes(len(codes)), self.per_byte), np.int64)
        digits.ravel()[: len(codes)] = codes
        return (digits @ self._places).astype(np.uint8).tobytes()

    def unpack(self, data: bytes, m: int, dtype: torch.dtype) -> Tensor:
        digits = np.frombuffer(data, np.uint8)[:, None] // self._places % self.base
        return torch.from_numpy(digits.ravel()[:m] + self.low).to(dtype)

    @property
    def _places(self) -> np.ndarray:
        return self.base ** np.arange(self.per_byte)


@dataclass(frozen=True)
class Bitmap(Format):
    """Elements that are k ascending numbers below e at a time: e bits, of which k are set."""

    k: int
    e: int

    def nbytes(self, m: int) -> int:
        return -(-(m // max(1, self.k)) * self.e // 8)

    def pack(self, values: Tensor) -> bytes:
        numbers = values.reshape(-1, max(1, self.k)).numpy()
        ascending = bool((np.diff(numbers) > 0).all())
        if not ascending or (numbers.size and not 0 <= numbers.min() <= numbers.max() < self.e):
            raise ValueError(f"{self}: {_span(values)} are not ascending numbers below {self.e}")
        marks = np.zeros((len(numbers), self.e), np.uint8)
        np.put_along_axis(marks, numbers, 1, axis=1)
        return np.packbits(marks.ravel(), bitorder="little").tobytes()

    def unpack(self, data: bytes, m: int, dtype: torch.dtype) -> Tensor:
        count = m // max(1, self.k) * self.e
        marks = np.unpackbits(np.frombuffer(data, np.uint8), count=count, bitorder="little")
        return torch.from_numpy(marks.reshape(-1, self.e).nonzero()[1]).to(dtype)


@lru_cache(maxsize=64)
def number(dtype: str | torch.dtype) -> Number:
    """The format of a number type, by its name in `DTYPES` or its torch type."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
    return Number(getattr(torch, name))


def bits(width: int, dtype: torch.dtype) -> Format:
    """The format of codes of `width` bits held in tensors of `dtype`.

    A width of 32 or 64 means the float of that width for floating tensors; one signed bit is a
    sign, -1 or +1.
    """
    if dtype.is_floating_point and width in (32, 64):
        return number(f"float{width}")
    if isinstance(width, bool) or width not in range(1, 64):
        raise ValueError(
            f"bits={width!r}: must be an integer from 1 to 63, or 32 or 64 for floats; a fraction "
            "of a bit is written as symbols, for example symbols=3"
        )
    if not _signed(dtype):
        return Bits(width)
    return Signs() if width == 1 else Bits(width, low=-(1 << (width - 1)))


def symbols(count: int, dtype: torch.dtype) -> Format:
    """The format of codes with `count` different values, held in tensors of `dtype`.

    As many as fit share a byte; or they are a stream of bits, where that is shorter (64 symbols).
    """
    if isinstance(count, bool) or count not in range(2, 257):
        raise ValueError(f"symbols={count!r}: must be an integer from 2 to 256")
    low = -(count // 2) if _signed(dtype) else 0
    digits, width = Digits(count, low), (count - 1).bit_length()
    return digits if digits.per_byte * width >= 8 else Bits(width, low)


def _bfloat16(values: Tensor) -> Tensor:
    """Float32 rounded to bfloat16, in one pass over memory instead of two."""
    values = values.contiguous()
    rounded = torch.empty_like(values)
    _nearest_bfloat16(values.view(-1).numpy(), rounded.view(-1).numpy())
    return rounded


@compiled(__file__)
def _nearest_bfloat16(values, rounded):
    """The nearest floats whose lower 16 bits are zero; of two the one with an even last bit."""
    bits, found = values.view(np.uint32), rounded.view(np.uint32)
    for i in range(len(bits)):
        up = np.uint32(0x7FFF) + (bits[i] >> np.uint32(16) & np.uint32(1))
        near = bits[i] + up & np.uint32(0xFFFF0000)
        exceeds = (bits[i] & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)  # not a number
        found[i] = np.uint32(0x7FC00000) if exceeds else near


def _signed(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype in (torch.int8, torch.int16, torch.int32)


def _codes(values: Tensor, low: int, levels: int) -> np.ndarray:
    """The codes, counted from zero: int64 [m]."""
    integers = values.to(torch.int64)
    fits = (integers == values) & (integers >= low) & (integers < low + levels)
    if not fits.all():
        wrong = values[~fits][0].item()
        raise ValueError(f"code {wrong!r}: must be an integer from {low} to {low + levels - 1}")
    return (integers - low).numpy()


def _span(values: Tensor) -> str:
    return f"values from {values.min().item()!r} to {values.max().item()!r}"


def _empty(dtype: torch.dtype) -> Tensor:
    return torch.empty(0, dtype=dtype)
