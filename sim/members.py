"""Members: the nodes of a round, what is theirs, and how long they take over what they get.

Legend: n members, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import simpy
import torch
from torch import Tensor

from sim.aggregation import Aggregation, combined, key_of_result
from sim.compute.layout import Fragment, Layout
from sim.compute.work import Program
from sim.payload import Compressor, Payload
from sim.round import Round
from sim.rows import Lazy, Rows

if TYPE_CHECKING:
    from typing_extensions import Self

    from sim.network.collectives import Collective, OnHeard
    from sim.simulation import Simulation


class Members(Rows):
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
    def online(self) -> Self:
        """Its members that have not left since it was made; one that came back lost its rows."""
        return type(self)(self.sim, self.present.tolist(), self.round, self.fragment)

    def positions(self, ids: Iterable[int]) -> Tensor:
        """Where these members stand in the group: indices into a value [n, ...]."""
        return torch.from_numpy(np.searchsorted(self.index, np.array(list(ids), dtype=np.int64)))

    def among(self, ids: Iterable[int]) -> Self:
        """Some of its members, in the same round: for collectives of a few."""
        group = type(self)(self.sim, ids, self.round, self.fragment)
        group._departures = self._departures[self.positions(group.ids).numpy()]
        return group

    def part(self, fragment: Fragment) -> Self:
        """The same nodes, of whose rows only a fragment's columns are meant and charged."""
        part = type(self)(self.sim, self.ids, self.round, fragment)
        part._departures = self._departures
        return part

    @property
    def charged(self) -> Layout | None:
        """The tensors of the workload that are meant; all of them if None."""
        return None if self.fragment is None else self.fragment.charged

    def combined(
        self,
        received: Payload,
        rule: Aggregation,
        over: str = "all",
        weights: Tensor | None = None,
        key: str | None = None,
    ) -> Program:
        """What everybody makes of gathered rows, [P]; for `yield from`, as a rule takes its time.

        Args:
            over: of a mean, see `Payload.combine`. To any other rule what a member did not send of
                its row is zero.
            key: where in `sim.shared` the rule keeps what it carries to the next time.
        """
        if rule.summable:
            return received.combine(over, weights)
        key = key or key_of_result((), self.fragment)
        with self.sim.profile("strategy"):
            workers, before = self.sim.fleet.crew.workers, self.sim.shared.get(key)
            result = combined(rule, received, workers, weights, before)
        yield self.sim.timeout(self._combining(rule, received.codec, received.n))
        if rule.carries:
            self.sim.shared[key] = result
        return result

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
        return self._slowest(reading + self.sim.codec_seconds(codec, self.index, charged))

    def _combining(self, rule: Aggregation, codec: Compressor, n: int) -> float:
        """Seconds until the slowest member has decoded the other n - 1 rows and combined all n."""
        decoding = (n - 1) * self.sim.codec_seconds(codec, self.index, self.charged)
        return self._slowest(decoding + n * self.sim.codec_seconds(rule, self.index, self.charged))

    def _slowest(self, seconds: np.ndarray) -> float:
        """The longest of the members' times, of those that are here."""
        here = [s for s, i in zip(seconds, self.ids) if i in self.sim.online]
        return float(max(here, default=0.0))
