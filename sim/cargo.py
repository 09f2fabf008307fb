"""Cargo: what a collective carries, and when each member has it.

Rows that are there are encoded at once. Gradients in progress are encoded inside the flush that
computes them. Rows that a computation is about to leave (`after`) are encoded when it ends; the
time of sending may be earlier, when the backward pass has released a part of them.

Legend: n members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import simpy
import torch
from torch import Tensor

from sim.compute.layout import Layout
from sim.compute.work import Program, Work
from sim.dense_rows import DenseRows
from sim.payload import Compressor, Dense, Payload
from sim.rows import Lazy
from sim.wire import Wire

if TYPE_CHECKING:
    from sim.group import Group

Source = Tensor | Lazy | Payload | Work
"""What a collective can carry: rows [n, P], lazy rows, payloads, or gradients in progress."""


@dataclass(frozen=True)
class _Encode:
    """Encoding as a function of gradients, after whatever `then` does to them already."""

    codec: Compressor
    before: Callable[[Any, Tensor], Tensor | Payload] | None

    def __call__(self, rows: Any, grad: Tensor) -> Payload:
        x = grad if self.before is None else self.before(rows, grad)
        return x if isinstance(x, Payload) else rows.encode(self.codec, x)


class Cargo:
    """What the members of a group send.

    Args:
        group: who sends.
        x: one row per member.
        codec: how a value is written on the wire; what `x` says, or dense, if None.
        after: local steps that leave the rows `x`, when they are still under way.
        parts: it goes in parts; then those that a computation releases early leave early.
        wanted: "rows"; or, so that sums may stand for rows, only their "mean" or "weighted mean".
    """

    def __init__(
        self,
        group: Group,
        x: Source | DenseRows,
        codec: Compressor | None,
        after: Work | None = None,
        parts: bool = False,
        wanted: str = "rows",
    ) -> None:
        self._summed, self._wanted = False, wanted
        self._dense: DenseRows | None = None
        self._group, self._sim, self._after, self._parts = group, group.sim, after, parts
        self._work: Work | None = None
        self._payload: Payload | None = None
        self._ids = group.index
        self.codec = codec or group.sim.dense
        if isinstance(x, Work):
            self._begin(x, codec)
        elif isinstance(x, DenseRows):
            self._dense, self.codec = x, x.codec
        elif after is not None and not after.processed:
            # A callback now, not a process: it comes before whoever waits for the computation.
            after.callbacks.append(partial(self._encode_after, x))
        elif isinstance(x, Payload):
            self._payload, self.codec = x, x.codec
        else:
            self._encode(group, x)

    def settled(self) -> Program:
        """Wait until the rows are there."""
        if self._after is not None and not self._after.processed:
            yield self._after

    def sizes(self, part: Layout | None) -> dict[int, int]:
        """Bytes that each member's payload is charged, of a part of the workload if given."""
        group, sim = self._group, self._sim
        if not self.codec.sized_by_data:
            charged = group.charged if part is None else part
            return dict.fromkeys(group.ids, sim.workload.nbytes(self.codec, charged))
        if self._work is not None:
            members: Sequence[int] = self._work.members
            payload = self._work.rows(list(members))
        else:
            members, payload = self._ids.tolist(), self._payload
        sizes = dict(zip(members, sim.charged_sizes(payload, group.fragment)))
        return {i: sizes.get(i, 0) for i in group.ids}

    def ready(self, part: Layout | None) -> dict[int, simpy.Event]:
        """Per member the event of its payload, or that part of it, being encoded."""
        group, charged = self._group, self._group.charged if part is None else part
        seconds = self._sim.codec_seconds(self.codec, group.index, charged)
        delay = dict(zip(group.ids, seconds.tolist()))
        work = self._after if self._parts and self._after is not None else self._work
        if work is not None:
            return work.ready(delay, None if part is None else part.shapes)
        return {i: self._sim.timeout(delay[i]) for i in group.online.ids}

    def rows(self, contributors: Sequence[int]) -> Payload:
        """The payload of members that sent it; after `settled`."""
        with self._sim.profile("strategy"):
            if self._work is not None:
                self._work.drop(self._work.members)  # late when a round ends is late for good
                payload = self._work.rows(list(contributors))
                if isinstance(payload, Tensor):
                    payload = Payload(self.codec, payload.shape[1:], Wire(payload))
            else:
                assert self._payload is not None
                at = np.searchsorted(self._ids, np.array(contributors, dtype=np.int64))
                payload = self._payload.rows(torch.from_numpy(at))
        payload.nodes = tuple(contributors)
        return payload

    def mean(self, contributors: Sequence[int], weights: Tensor | None) -> Tensor | None:
        """The (weighted) mean of their rows, [P]; unknown values on the meta device.

        None if there are none. It is asked for once, when all is over.
        """
        fleet, dense, self._dense = self._sim.fleet, self._dense, None
        with self._sim.profile("strategy"):
            if dense is not None:
                return dense.mean(contributors, weights)
            if not contributors:
                return None
            if self._summed:
                assert self._work is not None
                self._work.drop(self._work.members)  # late when a round ends is late for good
                return self._work.total(list(contributors)) / len(contributors)
            payload = self.rows(contributors)
            if fleet.is_meta:
                return fleet.initial.new_empty(payload.shape)
            return payload.combine("all", weights)

    def known(self, members: Sequence[int]) -> list[int]:
        """Those of them whose row there is: they have not left before it was computed."""
        if self._work is not None:
            return list(members)
        return [m for m in members if m in self._ids]

    def _begin(self, work: Work, codec: Compressor | None) -> None:
        self._work = work
        if self._wanted == "mean" and isinstance(codec, Dense) and not self._sim.fleet.is_meta:
            self._summed = work.keep_sums()
        if work.function is None and _is_exact(codec, self._sim.fleet.initial):
            return  # what is computed is what is sent: no copies
        if codec is not None:
            work.then(_Encode(codec, work.function))
            return
        payload = work.rows(work.members)  # only its function knows the codec, hence the size
        assert isinstance(payload, Payload), "all_gather needs payloads: encode in `then`"
        self.codec = payload.codec

    def _encode_after(self, x: Tensor | Lazy | Payload, _: simpy.Event) -> None:
        assert isinstance(x, Lazy), "what a computation leaves is lazy rows, read when it is over"
        here = self._group.online
        self._ids = here.index
        if len(here):
            with self._sim.profile("strategy"):
                self._encode(here, x)

    def _encode(self, group: Group, x: Tensor | Lazy) -> None:
        lean = self._wanted != "rows" and not self._sim.fleet.is_meta
        if lean and isinstance(x, Lazy) and isinstance(self.codec, Dense):
            self._dense = DenseRows(group, self.codec, x)
        else:
            self._payload = group.encode(self.codec, x)


def _is_exact(codec: Compressor | None, like: Tensor) -> bool:
    """Whether a codec sends values as they are."""
    return isinstance(codec, Dense) and codec.dtype in ("native", str(like.dtype)[6:])
