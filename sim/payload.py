"""What makes a payload of rows: Compressor (interface) and Dense, the codec that only casts.

All that a codec is written with is found here: beside these `Payload`, `Wire` and `Context`.

Legend: b rows of a block, n rows of a payload (one per node), P parameters.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sim.compute.layout import Layout
from sim.compute.placed import Placed
from sim.context import Context
from sim.encoded import Payload
from sim.wire import Wire

__all__ = ["Compressor", "Context", "Dense", "Payload", "State", "Wire"]

_DECODED_AT_ONCE = 1 << 20
"""Values: enough to be worth a call, and few enough for a cache."""

State = Any
"""None, a tensor `[n, ...]`, or a tuple or dict of states: one row per node, stacked."""


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

    def encode_(self, x: Tensor, state: State, ctx: Context) -> Payload:
        """The same; `Placed` rows take the place of the tensors of a state, and are changed.

        A codec whose state is as large as the rows overrides this, so as not to make it twice.
        """
        payload, after = self.encode(x, map_state(lambda rows: rows.read().clone(), state), ctx)
        map_state(Placed.write, state, after)
        return payload

    @abstractmethod
    def decode(self, payload: Payload) -> Tensor:
        """Reconstruct `[n, *payload.shape]` from `payload.body` and side tensors."""

    def add(self, payload: Payload, rows: Placed, scale: float) -> None:
        """`rows += scale * decoded`, in place: the work of `Payload.add_to`.

        A codec whose payload is much smaller than the rows overrides this.
        """
        rows.add(self.decode(payload).flatten(1), scale)

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


def map_state(fn: Callable, state: State, *others: State) -> Any:
    """Apply `fn` to every tensor of a state, and those at its place in other states."""
    if state is None:
        return None
    if isinstance(state, dict):
        return {k: map_state(fn, v, *(o[k] for o in others)) for k, v in state.items()}
    if isinstance(state, tuple):
        return tuple(map_state(fn, v, *(o[i] for o in others)) for i, v in enumerate(state))
    return fn(state, *others)


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
