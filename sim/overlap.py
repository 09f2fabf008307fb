"""Overlap: whether a reduction waits for the whole step, or follows the backward pass.

| `overlap=` | what is sent together | when it is sent |
| --- | --- | --- |
| `none` | everything | after the step |
| `bucketed` | gradients from the last layer on, until they fill a bucket | its last one released |
| `layerwise` | one layer | when its gradient is released |

Parts go one after the other through a first-in, first-out stream, in the order of their release:
a part waits for its gradient and for the parts before it. Only time differs: what is learned is
what is learned without overlap, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import simpy

from sim.compute.layout import Layout
from sim.payload import Compressor
from sim.units import Quantity, nearest, size

if TYPE_CHECKING:
    from sim.simulation import Simulation

MODES = ("none", "bucketed", "layerwise")
"""What `overlap` may be."""


@dataclass(frozen=True)
class Overlap:
    """How a strategy's reductions overlap with its backward passes.

    Args:
        mode: `"none"`, `"bucketed"` or `"layerwise"`.
        bucket: bytes of gradients, in the workload's width, at which a bucket is full.
        streams: reductions of a strategy that may be under way at the same time.
        key: the name of the option that holds the mode, for messages.
    """

    mode: str = "none"
    bucket: Quantity = "25MB"
    streams: int = 1
    key: str = "strategy.overlap"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            close = nearest(str(self.mode), list(MODES))
            raise ValueError(
                f"{self.key}={self.mode!r}: must be one of {', '.join(MODES)}; try {close!r}"
            )
        object.__setattr__(self, "bucket", size(self.bucket, "strategy.bucket", positive=True))
        if self.streams < 1:
            raise ValueError(f"strategy.streams={self.streams}: must be >= 1; the nearest is 1")

    def check(self, codec: Compressor) -> Overlap:
        """Itself, unless the codec cannot encode a part of a row by itself.

        Raises:
            ValueError: the codec's payload needs all values of a row, or they decide its size.
        """
        if self.mode != "none" and codec.sized_by_data:
            raise ValueError(
                f"{self.key}={self.mode}: {codec!r} decides its size when all is computed; use "
                "a codec of fixed size, such as TopK, or 'none'"
            )
        if self.mode != "none" and not codec.separable:
            raise ValueError(
                f"{self.key}={self.mode}: {codec!r} needs the whole row, and layers are sent one "
                "after the other; use PerTensor around it, or 'none'"
            )
        return self

    def bind(self, sim: Simulation) -> Parts | None:
        """The parts of a run's reductions, and their stream; None without overlap."""
        if self.mode == "none":
            return None
        limit = None if self.mode == "layerwise" else float(self.bucket)
        return Parts(sim, limit, self.streams)


class Parts:
    """What the reductions of a run are cut into, and the stream that they go through.

    Args:
        sim: the run.
        limit: bytes that fill a bucket; None for one part per layer.
        streams: parts that may be under way at the same time.
    """

    def __init__(self, sim: Simulation, limit: float | None, streams: int) -> None:
        self._workload, self._limit = sim.workload, limit
        self.stream = simpy.Resource(sim, streams)
        """First come, first served: ask for a turn in the order of release."""
        self._cuts: dict[Layout, list[Layout]] = {}

    def of(self, charged: Layout | None) -> list[Layout]:
        """The parts of a fragment of the workload (all of it if None), in order of release."""
        layout = self._workload.layout if charged is None else charged
        if layout not in self._cuts:
            timeline, width = self._workload.timeline, self._workload.bytes_per_value
            self._cuts[layout] = timeline.cut(layout, self._limit, width)
        return self._cuts[layout]
