"""Group: the nodes of a round, and the collectives they make.

A collective is two things at once: its cost in simulated time, which the network knows, and its
value, which is computed from the rows of those whose share arrived.

Legend: n members, m contributors (members whose share arrived), P parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
import simpy
import torch
from torch import Tensor

from sim.compute.layout import Fragment
from sim.compute.work import Program, Work
from sim.payload import Compressor, Payload
from sim.rows import Lazy, Rows

if TYPE_CHECKING:
    from sim.network.collectives import Collective
    from sim.simulation import Simulation

Source = Tensor | Lazy | Payload | Work
"""What a collective can carry: rows [n, P], lazy rows, payloads, or a computation in progress."""


class Round:
    """One membership epoch of a strategy's loop, ended by its coordinator.

    Args:
        sim: the run.
        number: counts from 0.
        members: ids of the nodes in it.
    """

    def __init__(self, sim: Simulation, number: int, members: list[int]) -> None:
        self._sim, self.number, self.members = sim, number, members
        self.over = sim.event()
        """Its coordinator ends the round: what has not arrived is not in the result."""
        self.heard = sim.event()
        """Somebody heard somebody; made anew each time."""
        self.received = np.zeros(sim.fleet.n_nodes, dtype=np.int64)
        """Of how many members each node holds the contribution, int64 [N]; its own counts."""

    def hear(self, dst: list[int] | np.ndarray, count: int = 1) -> None:
        """More contributions, one unless said otherwise, have reached each of these members."""
        self.received[dst] += count
        heard, self.heard = self.heard, self._sim.event()
        heard.succeed()


@dataclass(frozen=True)
class _Encode:
    """Encoding as a function of gradients, after whatever `then` does to them already."""

    codec: Compressor
    before: Callable[[Any, Tensor], Tensor | Payload] | None

    def __call__(self, rows: Any, grad: Tensor) -> Payload:
        x = grad if self.before is None else self.before(rows, grad)
        return x if isinstance(x, Payload) else rows.encode(self.codec, x)


class Group(Rows):
    """An ordered, immutable set of nodes.

    A member that leaves is absent from the results of collectives; the group itself does not
    change until the next `coordinator.round()`.
    """

    def __init__(
        self,
        sim: Simulation,
        ids: Iterable[int],
        round: Round | None = None,
        fragment: Fragment | None = None,
    ) -> None:
        self.ids = sorted(int(i) for i in ids)
        super().__init__(sim, self.ids, fragment=fragment)
        self.round = round

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def params(self) -> Lazy:
        """Parameters; assign [P] and all share one row, assign [n, P] or lazy rows for rows."""
        return self["params"]

    @params.setter
    def params(self, value: Tensor | Lazy) -> None:
        self["params"] = value

    @property
    def online(self) -> Group:
        """Its members that have not left since it was made; one that came back lost its rows."""
        return Group(self.sim, self.present.tolist(), self.round, self._fragment)

    def positions(self, ids: Iterable[int]) -> Tensor:
        """Where these members stand in the group: indices into a value [n, ...]."""
        return torch.from_numpy(np.searchsorted(self.index, np.array(list(ids), dtype=np.int64)))

    def part(self, fragment: Fragment) -> Group:
        """The same nodes, of whose rows only a fragment's columns are meant and charged."""
        part = Group(self.sim, self.ids, self.round, fragment)
        part._departures = self._departures
        return part

    def average(
        self, x: Source, compressor: Compressor, weights: Tensor | None = None
    ) -> simpy.Event:
        """The mean [P] by the cheapest collective that can carry the codec; None if all left.

        A codec that is summable in flight goes around a ring (`all_reduce`); any other is
        gathered and decoded by everybody (`all_gather`), which moves n - 1 payloads per member.
        """
        if compressor.summable:
            return self.all_reduce(x, compressor, weights)
        if not self.ids:
            return self.sim.event().succeed(None)
        source, codec = self._prepare(x, compressor)
        return self.sim.program(self._gather_mean(source, codec, weights))

    def all_reduce(
        self, x: Source, compressor: Compressor | None = None, weights: Tensor | None = None
    ) -> simpy.Event:
        """The mean of the contributors, [P], by a ring that sums in flight.

        Args:
            x: one row per member. With a `Work`, a member takes part from when its own part is
                ready.
            compressor: how a value is written on the wire; must be summable in flight.
            weights: [n], relative weights of the members; equal if None.

        Returns:
            An event whose value is None if nobody's share arrived.

        Raises:
            ValueError: the codec cannot be summed in flight.
        """
        codec = compressor or self.sim.dense
        if not codec.summable:
            raise ValueError(
                f"compressor={codec!r}: a ring all-reduce adds values in flight and this codec is "
                "not summable; use all_gather, or average, which chooses between the two"
            )
        if not self.ids:
            return self.sim.event().succeed(None)
        return self.sim.program(self._reduce_mean(*self._prepare(x, codec), weights))

    def all_gather(self, x: Source, compressor: Compressor | None = None) -> simpy.Event:
        """The payload with one row per contributor, or None if nobody's share arrived."""
        if not self.ids:
            return self.sim.event().succeed(None)
        return self.sim.program(self._gather(*self._prepare(x, compressor)))

    def broadcast(self, src: int, x: Tensor) -> simpy.Event:
        """Send one vector [P] from a member to all; value: the ids that received it."""
        payload = self.sim.node(src).encode(self.sim.dense, x[None])
        return self.sim.process(self._broadcast(src, payload))

    def neighbor_all_reduce(self, x: Tensor | Lazy, weights: scipy.sparse.spmatrix) -> simpy.Event:
        """`weights @ x` over the overlay, restricted to the group: rows [n, P].

        Args:
            x: rows [n, P], as they are now.
            weights: [N, N] mixing matrix; entry (i, j) weighs what node i gets from node j.

        The weight of a neighbour that is not in the group, or whose message was lost, returns to
        the diagonal, which keeps rows summing to one. What neighbours send is rounded to the
        workload's width, a node's own row is not.
        """
        rows = x.tensor() if isinstance(x, Lazy) else x
        sent = self.encode(self.sim.dense, rows) if len(self) else None
        return self.sim.program(self._mix(rows, sent, scipy.sparse.csr_matrix(weights)))

    # -- time and values of the collectives ---------------------------------------------------

    def _reduce_mean(
        self, source: Work | Payload, codec: Compressor, weights: Tensor | None
    ) -> Program:
        size = max(self._sizes(source, codec).values(), default=0)
        ready = self._ready(source, codec)
        here = self.online.ids
        outcome = yield self._bounded(self.sim.network.all_reduce(here, size, ready))
        if not outcome.contributors:
            self.sim.empty_exchanges += 1
            return None
        if self.round is not None:  # who has the sum has heard everybody in it
            self.round.hear(outcome.contributors, len(outcome.contributors))
        yield self.sim.timeout(self._decoding(codec, 0.0))
        payload = self._rows_of(source, outcome.contributors)
        return payload.combine("all", self._weights(weights, outcome.contributors))

    def _gather_mean(
        self, source: Work | Payload, codec: Compressor, weights: Tensor | None
    ) -> Program:
        contributors, payload = yield from self._gathered(source, codec)
        if payload is None:
            return None
        return payload.combine("all", self._weights(weights, contributors))

    def _gather(self, source: Work | Payload, codec: Compressor) -> Program:
        _, payload = yield from self._gathered(source, codec)
        return payload

    def _gathered(self, source: Work | Payload, codec: Compressor) -> Program:
        sizes, ready = self._sizes(source, codec), self._ready(source, codec)
        here = self.online.ids
        collective = self.sim.network.all_gather(here, sizes, ready, on_heard=self._hear)
        for node, event in ready.items():  # what it computed itself a member has heard
            event.callbacks.append(partial(self._hear_own, node))
        outcome = yield self._bounded(collective)
        if not outcome.contributors:
            self.sim.empty_exchanges += 1
            return [], None
        received = float(sum(sizes[i] for i in outcome.contributors))
        yield self.sim.timeout(self._decoding(codec, received))
        return outcome.contributors, self._rows_of(source, outcome.contributors)

    def _broadcast(self, src: int, payload: Payload) -> Program:
        size = self.sim.charged_sizes(payload)[0]
        yield self.sim.timeout(float(self.sim.codec_seconds(payload.codec, np.array([src]))[0]))
        outcome = yield self._bounded(self.sim.network.broadcast(src, self.online.ids, size))
        return self.online.ids if outcome.contributors else []

    def _mix(self, rows: Tensor, sent: Payload | None, weights: scipy.sparse.csr_matrix) -> Program:
        local = weights[self.ids][:, self.ids].tocoo()
        here = set(self.online.ids)
        pairs = [
            (self.ids[j], self.ids[i])
            for i, j in zip(local.row, local.col)
            if i != j and self.ids[i] in here and self.ids[j] in here
        ]
        size = self.sim.charged_bytes(self.sim.dense)
        delivered = set()
        if pairs and sent is not None:
            ready = self._ready(sent, self.sim.dense)
            exchange = self.sim.network.exchange(pairs, size, ready)
            yield self._bounded(exchange)
            degree = max(Counter(dst for _, dst in pairs).values())
            yield self.sim.timeout(self._decoding(self.sim.dense, float(degree * size)))
            if self.round is not None:  # a node hears its neighbours only: that is all there is
                self.round.hear(self.index, len(self))
            delivered = set(exchange.heard)
        keep = [(self.ids[j], self.ids[i]) in delivered for i, j in zip(local.row, local.col)]
        off = scipy.sparse.coo_matrix(
            (local.data[keep], (local.row[keep], local.col[keep])), shape=local.shape
        )
        stay = scipy.sparse.diags(1.0 - np.asarray(off.sum(axis=1)).ravel())
        own = _sparse_times(scipy.sparse.csr_matrix(stay), rows)
        if sent is None:
            return own
        return own + _sparse_times(scipy.sparse.csr_matrix(off), sent.decode())

    # -- small pieces -------------------------------------------------------------------------

    def _prepare(self, x: Source, codec: Compressor | None) -> tuple[Work | Payload, Compressor]:
        """What will be sent, and by which codec; rows are encoded as they are now."""
        if isinstance(x, Payload):
            return x, x.codec
        if isinstance(x, Work):
            if codec is not None:
                return x.then(_Encode(codec, x.function)), codec
            payload = x.rows(x.members)  # only its function knows the codec, hence the size
            assert isinstance(payload, Payload), "all_gather needs payloads: encode in `then`"
            return x, payload.codec
        codec = codec or self.sim.dense
        return self.encode(codec, x), codec

    def _sizes(self, source: Work | Payload, codec: Compressor) -> dict[int, int]:
        """Bytes that each member's payload is charged."""
        if not codec.sized_by_data:
            return dict.fromkeys(self.ids, self.sim.charged_bytes(codec, self._fragment))
        if isinstance(source, Work):
            members, payload = source.members, source.rows(source.members)
        else:
            members, payload = self.ids, source
        sizes = dict(zip(members, self.sim.charged_sizes(payload, self._fragment)))
        return {i: sizes.get(i, 0) for i in self.ids}

    def _ready(self, source: Work | Payload, codec: Compressor) -> dict[int, simpy.Event]:
        """Per member the event of its payload being encoded."""
        delay = dict(
            zip(self.ids, self.sim.codec_seconds(codec, self.index, self._fragment).tolist())
        )
        if isinstance(source, Work):
            return source.ready(delay)
        return {i: self.sim.timeout(delay[i]) for i in self.online.ids}

    def _rows_of(self, source: Work | Payload, contributors: list[int]) -> Payload:
        if isinstance(source, Work):
            source.drop(source.members)  # whoever is late when a round ends is late for good
            return source.rows(contributors)
        return source.rows(self.positions(contributors))

    def _bounded(self, collective: Collective) -> simpy.Event:
        """The collective, cut short when the coordinator ends the round."""
        if self.round is not None and not self.round.over.triggered:
            self.round.over.callbacks.append(lambda _: collective.cut())
        elif self.round is not None:
            collective.cut()
        return collective

    def _hear(self, src: int, dst: int | None) -> None:
        if self.round is not None:
            self.round.hear(self.index[self.index != src] if dst is None else [dst])

    def _hear_own(self, node: int, _: simpy.Event) -> None:
        self._hear(node, node)

    def _weights(self, weights: Tensor | None, contributors: list[int]) -> Tensor | None:
        if weights is None:
            return None
        return weights[self.positions(contributors)]

    def _decoding(self, codec: Compressor, received: float) -> float:
        """Seconds until the slowest member has read `received` bytes and decoded once."""
        reading = self.sim.devices.memory_seconds(received, self.index)
        seconds = reading + self.sim.codec_seconds(codec, self.index, self._fragment)
        here = [s for s, i in zip(seconds, self.ids) if i in self.sim.online]
        return float(max(here, default=0.0))


def _sparse_times(weights: scipy.sparse.csr_matrix, rows: Tensor) -> Tensor:
    """`weights` [n, n] @ `rows` [n, P]."""
    if rows.is_meta:
        return torch.empty_like(rows)
    entries = weights.tocoo()
    matrix = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64)),
        torch.from_numpy(entries.data),
        entries.shape,
        dtype=rows.dtype,
        device=rows.device,
        is_coalesced=True,
        check_invariants=False,
    )
    return matrix @ rows
