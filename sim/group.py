"""Group: the nodes of a round, and the collectives they make.

A collective is two things at once: its cost in simulated time, which the network knows, and its
value, which is computed from the rows of those whose share arrived.

Legend: n members, m contributors (members whose share arrived), P parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse
import simpy
from torch import Tensor

from sim.aggregation import Aggregation, Mean, check_weights, key_of_result
from sim.cargo import Cargo, Source
from sim.compute.layout import Layout
from sim.compute.work import Program, Work
from sim.dense_rows import DenseRows
from sim.members import Members
from sim.mixing import Heard
from sim.overlap import Parts
from sim.payload import Compressor, Payload
from sim.reduction import Reduction
from sim.rows import Lazy

if TYPE_CHECKING:
    from simpy.resources.resource import Request


MEAN = Mean()
"""What members average by if nothing else is said."""


class Group(Members):
    """Members that make collectives."""

    def average(
        self,
        x: Source,
        compressor: Compressor,
        weights: Tensor | None = None,
        *,
        rule: Aggregation = MEAN,
        by: Reduction | None = None,
        after: Work | None = None,
        parts: Parts | None = None,
    ) -> simpy.Event:
        """The mean [P] by the cheapest collective that can carry the codec; None if all left.

        A codec that is summable in flight goes around a ring (`all_reduce`); any other is
        gathered and decoded by everybody (`all_gather`), which moves n - 1 payloads per member.
        So does a rule that is not a mean: everybody decodes and combines the rows of all. What it
        carries to the next time lies in `sim.shared`, apart for each fragment and for rows of each
        name. `by` says how a mean is made instead, see `sim.reduction`.

        Raises:
            ValueError: the rule has no form for members of unequal weight, or the reduction none
                for the codec or the rule.
        """
        if by is not None:
            by.check(compressor, rule)
            if not self.ids:
                return self.sim.event().succeed(None)
            wanted, handed = by.wanted or _wanted(weights), by.handed(compressor)
            cargo = Cargo(self, x, handed, after, parts is not None, wanted)
            return self.sim.process(self._mean(by, cargo, parts, weights))
        if not rule.summable:
            check_weights(rule, weights)
            if not self.ids:
                return self.sim.event().succeed(None)
            cargo = Cargo(self, x, compressor, after, parts is not None)
            key = key_of_result(x.names if isinstance(x, Lazy) else (), self.fragment)
            return self.sim.process(self._combination(rule, cargo, parts, weights, key))
        if compressor.summable:
            return self.all_reduce(x, compressor, weights, after=after, parts=parts)
        if not self.ids:
            return self.sim.event().succeed(None)
        cargo = Cargo(self, x, compressor, after, parts is not None, wanted=_wanted(weights))
        return self.sim.process(self._mean("all_gather", cargo, parts, weights))

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
        codec = compressor or (x.codec if isinstance(x, Payload) else self.sim.dense)
        if not codec.summable:
            raise ValueError(
                f"compressor={codec!r}: a ring all-reduce adds values in flight and this codec is "
                "not summable; use all_gather, or average, which chooses between the two"
            )
        if not self.ids:
            return self.sim.event().succeed(None)
        cargo = Cargo(self, x, codec, after, parts is not None, wanted=_wanted(weights))
        return self.sim.process(self._mean("all_reduce", cargo, parts, weights))

    def all_gather(
        self,
        x: Source,
        compressor: Compressor | None = None,
        *,
        after: Work | None = None,
        parts: Parts | None = None,
    ) -> simpy.Event:
        """The payload with one row per contributor, or None if nobody's share arrived.

        Its `nodes` are the contributors: what others sent was lost.

        Arguments are those of `all_reduce`.
        """
        if not self.ids:
            return self.sim.event().succeed(None)
        cargo = Cargo(self, x, compressor, after, parts is not None)
        return self.sim.process(self._gather(cargo, parts))

    def broadcast(self, src: int, x: Tensor) -> simpy.Event:
        """Send one vector [P] from a member to all; value: the ids that received it."""
        payload = self.sim.node(src).encode(self.sim.dense, x[None])
        return self.sim.process(self._broadcast(src, payload))

    def neighbor_gather(
        self,
        x: Tensor | Lazy | Payload,
        links: scipy.sparse.sparray,
        compressor: Compressor | None = None,
        *,
        extra: float = 0.0,
    ) -> simpy.Event:
        """Each member sends its row to those that listen to it; value: `sim.mixing.Heard`.

        Args:
            x: one row per member, as it is now.
            links: [n, n], not zero at (i, j) where member i listens to member j.
            compressor: how a row is written on the wire; the workload's width if None.
            extra: bytes beside the payload in every message.
        """
        if isinstance(x, Payload) or not len(self):
            sent = x if isinstance(x, Payload) else None
        else:
            sent = self.encode(compressor or self.sim.dense, x)
        return self.sim.process(self._hear_neighbors(sent, scipy.sparse.csr_array(links), extra))

    def neighbor_rows(
        self,
        name: str,
        links: scipy.sparse.sparray,
        *,
        extra: float = 0.0,
        lasting: bool = False,
    ) -> simpy.Event:
        """As `neighbor_gather` of rows of a name as they are, to be mixed: see `sim.mixing`.

        Args:
            lasting: nobody writes the rows until what was heard is mixed: no copies are held.
        """
        rows = self[name]
        lasting = lasting or self.sim.fleet.is_meta
        sent = DenseRows(self, self.sim.dense, rows.lasting() if lasting else rows)
        return self.sim.process(self._hear_neighbors(sent, scipy.sparse.csr_array(links), extra))

    # -- time and values of the collectives ---------------------------------------------------

    def _mean(
        self, op: str | Reduction, cargo: Cargo, parts: Parts | None, weights: Tensor | None
    ) -> Program:
        contributors = yield from self._moved(op, cargo, parts)
        if weights is not None:
            weights = weights[self.positions(contributors)]
        if isinstance(op, Reduction):
            return op.mean(self.sim, cargo, contributors, weights)
        return cargo.mean(contributors, weights)

    def _gather(self, cargo: Cargo, parts: Parts | None) -> Program:
        contributors = yield from self._moved("all_gather", cargo, parts)
        return cargo.rows(contributors) if contributors else None

    def _combination(
        self,
        rule: Aggregation,
        cargo: Cargo,
        parts: Parts | None,
        weights: Tensor | None,
        key: str,
    ) -> Program:
        contributors = yield from self._moved("all_gather", cargo, parts)
        if not contributors:
            return None
        if weights is not None:
            weights = weights[self.positions(contributors)]
        received = cargo.rows(contributors)
        return (yield from self.combined(received, rule, weights=weights, key=key))

    def _moved(self, op: str | Reduction, cargo: Cargo, parts: Parts | None) -> Program:
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
                self.sim.process(self._travel(op, cargo, part, turn, last=part is cuts[-1]))
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
        op: str | Reduction,
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
            listens = last and self.sim.coordinator.listens
            with self.sim.profile("network"):
                if isinstance(op, Reduction):
                    charged = self.charged if part is None else part
                    collective = op.collective(self.sim, here, cargo.codec, charged, ready)
                elif op == "all_reduce":
                    size = max(sizes.values(), default=0)
                    collective = self.sim.network.all_reduce(here, size, ready)
                else:
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
            codec = op.coder(cargo.codec) if isinstance(op, Reduction) else cargo.codec
            yield self.sim.timeout(self._decoding(codec, received, part))
        return contributors

    def _broadcast(self, src: int, payload: Payload) -> Program:
        size = self.sim.charged_sizes(payload)[0]
        yield self.sim.timeout(float(self.sim.codec_seconds(payload.codec, np.array([src]))[0]))
        outcome = yield self._bounded(self.sim.network.broadcast(src, self.online.ids, size))
        return self.online.ids if outcome.contributors else []

    def _hear_neighbors(
        self, sent: Payload | DenseRows | None, links: scipy.sparse.csr_array, extra: float
    ) -> Program:
        """Let rows travel along links [n, n]; returns what was `Heard`."""
        among, here = links.tocoo(), np.isin(self.index, self.present)
        going = (among.row != among.col) & here[among.row] & here[among.col] & (among.data != 0)
        dst, src = among.row[going], among.col[going]
        heard: list[tuple[int, int | None]] = []
        if len(src) and sent is not None:
            cargo = Cargo(self, sent, None)
            sizes = extra + np.array(list(cargo.sizes(None).values()))[src]
            pairs = zip(self.index[src].tolist(), self.index[dst].tolist())
            exchange = self.sim.network.exchange(pairs, sizes.tolist(), cargo.ready(None))
            yield self._bounded(exchange)
            most = np.bincount(dst, sizes).max()
            yield self.sim.timeout(self._decoding(cargo.codec, float(most)))
            if self.round is not None:  # a node hears its neighbours only: that is all there is
                self.round.hear(self.index, len(self))
            heard = exchange.heard
        at = np.searchsorted(self.index, np.array(heard, dtype=np.int64).reshape(-1, 2))
        arrived = (np.ones(len(at), dtype=bool), (at[:, 1], at[:, 0]))
        matrix = scipy.sparse.csr_array(arrived, shape=links.shape)
        if isinstance(sent, DenseRows):
            return Heard(self, None, sent, matrix)
        return Heard(self, sent, None, matrix)


def _wanted(weights: Tensor | None) -> str:
    return "mean" if weights is None else "weighted mean"
