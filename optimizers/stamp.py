"""Stamp: 24 bytes beside a payload, which say what it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from optimizers.compression.flags import of_all, of_any, of_sum
from sim.compute.layout import Layout
from sim.delivery import Message
from sim.payload import Compressor, Context, Payload, State, Wire


class Header(NamedTuple):
    """What a stamp says: three integers of 8 bytes."""

    version: int = -1
    """Which parameters this is about: server versions count from 0; -1 is none of them."""
    steps: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Stamp(Compressor):
    """A codec whose payloads carry a `Header`.

    Encoding leaves it blank, `stamped` fills it in. Bytes: 24, and those of the codec.

    Args:
        codec: of the values; None sends the header alone, and zeros are decoded.
    """

    codec: Compressor | None = None

    deterministic = of_all("deterministic")
    zero_preserving = of_all("zero_preserving")
    sized_by_data = of_any("sized_by_data")
    passes = of_sum("passes")

    def __post_init__(self) -> None:
        if isinstance(self.codec, Stamp):
            raise ValueError(f"codec={self.codec!r}: must not be a Stamp; one is enough")

    @property
    def codecs(self) -> tuple[Compressor, ...]:
        """The codec inside, if there is one."""
        return () if self.codec is None else (self.codec,)

    def init(self, layout: Layout, n: int) -> State:
        return None if self.codec is None else self.codec.init(layout, n)

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        header = Wire(torch.zeros(len(x), 3, dtype=torch.int64))
        if self.codec is None:
            return Payload(self, x.shape[1:], Wire(x.flatten(1)[:, :0]), header=header), state
        inner, state = self.codec.encode(x, state, ctx)
        return Payload(self, x.shape[1:], inner, header=header), state

    def decode(self, payload: Payload) -> Tensor:
        if self.codec is None:
            return payload.body.new_zeros(payload.n, *payload.shape)
        return payload.body


def stamped(payload: Payload, header: Header) -> Payload:
    """One node's payload with a header beside it."""
    return Payload(Stamp(payload.codec), payload.shape, payload, header=_wire(header))


def bare(like: Tensor, header: Header = Header()) -> Payload:
    """A header alone, where parameters [P] might have been."""
    return Payload(Stamp(), like.shape, Wire(like[None, :0]), header=_wire(header))


def header_of(message: Message) -> Header:
    """The header of a message."""
    return Header(*message.payload["header"][0].tolist())


def _wire(header: Header) -> Wire:
    return Wire(torch.from_numpy(np.array([header], dtype=np.int64)))
