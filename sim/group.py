"""Group: the nodes of a round, and the collectives they make.

A collective is two things at once: its cost in simulated time, which the network knows, and its
value, which is computed from the rows of those whose share arrived.

Legend: n members, m contributors (members whose share arrived), P parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse
import simpy
import torch
from torch import Tensor

from sim.cargo import Cargo, Source
from sim.compute.layout import Fragment, Layout
from sim.compute.work import Program, Work
from sim.mixing import mix
from sim.overlap import Parts
from sim.payload import Compressor, Payload
from sim.rows import Lazy, Rows

if TYPE_CHECKING:
    from simpy.resources.resource import Request

    from sim.network.collectives import Collective, OnHeard
    from sim.simulation import Simulation


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
        return Group(self.sim, self.present.tolist(), self.round, self.fragment)

    def positions(self, ids: Iterable[int]) -> Tensor:
        """Where these members stand in the group: indices into a value [n, ...]."""
        return torch.from_numpy(np.searchsorted(self.index, np.array(list(ids), dtype=np.int64)))

    def part(self, fragment: Fragment) -> Group:
        """The same nodes, of whose rows only a fragment's columns are meant and charged."""
        part = Group(self.sim, self.ids, self.round, fragment)
        part._departures = self._departures
        return part

    @property
    def charged(self) -> Layout | None:
        """The tensors of the workload that are meant; all of them if None."""
        return None if self.fragment is None else self.fragment.charged

    def average(
        self,
        x: Source,
        compressor: Compressor,
        weights: Tensor | None = None,
        *,
        after: Work | None = None,
        parts: Parts | None = None,
    ) -> simpy.Event:
        """The mean [P] by the cheapest collective that can carry the codec; None if all left.

        A codec that is summable in flight goes around a ring (`all_reduce`); any other is
        gathered and decoded by everybody (`all_gather`), which moves n - 1 payloads per member.
        """
        if compressor.summable:
            return self.all_reduce(x, compressor, weights, after=after, parts=parts)
        if not self.ids:
            return self.sim.event().succeed(None)
        cargo = Cargo(self, x, compressor, after, parts is not None, wanted=_wanted(weights))
        return self.sim.program(self._mean("all_gather", cargo, parts, weights))

    def all_reduce(
        self,
        x: Source,
        compressor: Compressor | None = None,
        weights: Tensor | None = None,
        *,
        after: Work | None = None,
        parts: Parts | None = None,
    ) -> simpy.Event:
        """The mean of the contributors, [P], by a ring that sums in flight.

        Args:
            x: one row per member. With a `Work`, a member takes part from when its own part is
                ready.
            compressor: how a value is written on the wire; must be summable in flight.
            weights: [n], relative weights of the members; equal if None.
            after: local steps under way that leave the lazy rows `x`, which are read when these
                end, of those that are still here.
            parts: it travels in parts, see `sim.overlap`. Of a `Work`, or `after` one, a part is
                sent when it is released. A contributor is a member whose share of all arrived.

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
        cargo = Cargo(self, x, codec, after, parts is not None, wanted=_wanted(weights))
        return self.sim.program(self._mean("all_reduce", cargo, parts, weights))

    def all_gather(
        self,
        x: Source,
        compressor: Compressor | None = None,
        *,
        after: Work | None = None,
        parts: Parts | None = None,
    ) -> simpy.Event:
        """The payload with one row per contributor, or None if nobody's share arrived.

        Arguments are those of `all_reduce`.
        """
        if not self.ids:
            return self.sim.event().succeed(None)
        cargo = Cargo(self, x, compressor, after, parts is not None)
        return self.sim.program(self._gather(cargo, parts))

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

    def _mean(self, op: str, cargo: Cargo, parts: Parts | None, weights: Tensor | None) -> Program:
        contributors = yield from self._moved(op, cargo, parts)
        if weights is not None:
            weights = weights[self.positions(contributors)]
        return cargo.mean(contributors, weights)

    def _gather(self, cargo: Cargo, parts: Parts | None) -> Program:
        contributors = yield from self._moved("all_gather", cargo, parts)
        return cargo.rows(contributors) if contributors else None

    def _moved(self, op: str, cargo: Cargo, parts: Parts | None) -> Program:
        """Let a cargo travel; returns the members whose share of all of it arrived."""
        if parts is None:
            yield from cargo.settled()
            if not len(self.online):
                return []
            contributors = yield from self._travel(op, cargo)
        else:
            cuts = parts.of(self.charged)
            turns = [parts.stream.request() for _ in cuts]  # in the order of their release
            travels = [
                self.sim.program(self._travel(op, cargo, part, turn, last=part is cuts[-1]))
                for part, turn in zip(cuts, turns)
            ]
            arrived = set(self.ids)
            for travel in travels:
                arrived &= set((yield travel))
            yield from cargo.settled()
            contributors = cargo.known(sorted(arrived))
        if not contributors:
            self.sim.empty_exchanges += 1
        return contributors

    def _travel(
        self,
        op: str,
        cargo: Cargo,
        part: Layout | None = None,
        turn: Request | None = None,
        *,
        last: bool = True,
    ) -> Program:
        """One collective, when it is its turn; returns the members whose share arrived."""
        sizes, ready = cargo.sizes(part), cargo.ready(part)
        if turn is not None:
            yield turn
        contributors: list[int] = []
        if here := self.online.ids:
            if op == "all_reduce":
                size = max(sizes.values(), default=0)
                collective = self.sim.network.all_reduce(here, size, ready)
            else:
                listens = last and self.sim.coordinator.listens
                on_heard = self._hear_gathered(ready) if listens else None
                collective = self.sim.network.all_gather(here, sizes, ready, on_heard=on_heard)
            contributors = (yield self._bounded(collective)).contributors
        if turn is not None:
            turn.resource.release(turn)
        if contributors:
            received = 0.0
            if op == "all_gather":
                received = float(sum(sizes[i] for i in contributors))
            told = op == "all_gather" and self.sim.coordinator.listens
            if last and not told and self.round is not None:  # who has the result has heard all
                self.round.hear(contributors, len(contributors))
            yield self.sim.timeout(self._decoding(cargo.codec, received, part))
        return contributors

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
        delivered = set()
        if pairs and sent is not None:
            size = self.sim.workload.nbytes(self.sim.dense)
            ready = Cargo(self, sent, None).ready(None)
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
        stay = 1.0 - np.asarray(off.sum(axis=1)).ravel()
        if sent is None:
            return rows
        return mix(self.sim.fleet.crew.workers, stay, off, rows, sent.decode())

    # -- small pieces -------------------------------------------------------------------------

    def _bounded(self, collective: Collective) -> simpy.Event:
        """The collective, cut short when the coordinator ends the round."""
        if self.round is not None and not self.round.over.triggered:
            self.round.over.callbacks.append(lambda _: collective.cut())
        elif self.round is not None:
            collective.cut()
        return collective

    def _hear_gathered(self, ready: dict[int, simpy.Event]) -> OnHeard:
        """What a gather calls as payloads arrive; what it computed itself a member has heard."""
        for node, event in ready.items():
            if event.processed:
                self._hear(node, node)
            else:
                event.callbacks.append(partial(self._hear_own, node))
        return self._hear

    def _hear(self, src: int, dst: int | None) -> None:
        if self.round is not None:
            self.round.hear(self.index[self.index != src] if dst is None else [dst])

    def _hear_own(self, node: int, _: simpy.Event) -> None:
        self._hear(node, node)

    def _decoding(self, codec: Compressor, received: float, part: Layout | None = None) -> float:
        """Seconds until the slowest member has read `received` bytes and decoded once."""
        charged = self.charged if part is None else part
        reading = self.sim.devices.memory_seconds(received, self.index)
        seconds = reading + self.sim.codec_seconds(codec, self.index, charged)
        here = [s for s, i in zip(seconds, self.ids) if i in self.sim.online]
        return float(max(here, default=0.0))


def _wanted(weights: Tensor | None) -> str:
    return "mean" if weights is None else "weighted mean"
