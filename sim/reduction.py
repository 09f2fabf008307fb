"""Reduction: how a mean is made, where a plain ring or gather is not what is wanted.

| reduction | what travels | the mean |
| --- | --- | --- |
| `Hierarchical` | a ring inside each site, one across sites, a broadcast inside | as of a ring |
| `CodedRing` | codes: every hop of a ring encodes the sum so far | what its codec leaves of it |
| `Reducers` | codes, to members who decode, add and encode, and back | of what was decoded |

All go through `Group.average(..., by=...)`. Losses are those of the network's collectives: the
mean is over the members whose share arrived.

Legend: m members, k chunks of a member, P parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import simpy
from torch import Tensor

from sim.aggregation import Aggregation
from sim.cargo import Cargo
from sim.compute.layout import Layout
from sim.compute.workers import Workers
from sim.hops import Hops
from sim.payload import Compressor, Dense
from sim.strategy import NodeState
from sim.units import nearest

if TYPE_CHECKING:
    from sim.network.collectives import Collective
    from sim.simulation import Simulation

Ready = Mapping[int, simpy.Event]
"""Per member, from when it takes part."""


class Reduction(ABC):
    """How a mean travels, and what it is then."""

    wanted: str = ""
    """What is wanted of a `Cargo`, if that is more than the mean."""

    def check(self, compressor: Compressor, rule: Aggregation) -> None:
        """Refuse what cannot be carried; ValueError says what can."""
        if not rule.summable:
            raise ValueError(
                f"rule={rule!r} with reduction={self!r}: the rule needs the rows of all members, "
                "which a reduction adds up; use one of the two"
            )

    def handed(self, compressor: Compressor) -> Compressor:
        """The codec in which a member hands over its row."""
        return compressor

    def coder(self, handed: Compressor) -> Compressor:
        """The codec whose decoding a member spends time on."""
        return handed

    @abstractmethod
    def collective(
        self,
        sim: Simulation,
        members: Sequence[int],
        codec: Compressor,
        charged: Layout | None,
        ready: Ready,
    ) -> Collective:
        """Start it.

        Args:
            codec: what `handed` gave.
            charged: the tensors of the workload that travel; all of them if None.
        """

    def mean(
        self, sim: Simulation, cargo: Cargo, contributors: Sequence[int], weights: Tensor | None
    ) -> Tensor | None:
        """The mean [P] over the contributors, weighed by `weights` [m]; None if there are none."""
        return cargo.mean(contributors, weights)


@dataclass(frozen=True)
class Hierarchical(Reduction):
    """An all-reduce inside each site, then across sites, then a broadcast inside.

    Members weigh the same however large their site is. See `sim.network.hierarchical`.

    Args:
        sites: `"router"`: members that hang on one router are a site; or the name of an attribute
            of the topology's hosts, such as `"region"` or `"site"`.
    """

    sites: str = "router"

    def check(self, compressor: Compressor, rule: Aggregation) -> None:
        super().check(compressor, rule)
        if not compressor.summable:
            raise ValueError(
                f"compressor={compressor!r}: a hierarchical all-reduce adds values in flight and "
                "this codec is not summable; use Dense, or no reduction, which gathers"
            )

    def collective(
        self,
        sim: Simulation,
        members: Sequence[int],
        codec: Compressor,
        charged: Layout | None,
        ready: Ready,
    ) -> Collective:
        size = sim.workload.nbytes(codec, charged)
        where = sim.network.sites(self.sites)
        return sim.network.all_reduce(members, size, ready, "hierarchical", where)


@dataclass(frozen=True)
class Reducers(Reduction):
    """Codes go to members that decode and add them, and the encoded result comes back.

    The way back is charged the bytes of a payload too. The mean is that of what was decoded: a
    strategy encodes it once more by its own rule (a majority by its sign, 1-bit Adam with the
    error of the servers).

    Args:
        algorithm: `"parameter_server"`: one member adds all, `(m - 1) S` each way for it, S for the
            others; `"butterfly"`: each adds a shard, `2 (m - 1) / m S` for everybody.
    """

    algorithm: str = "parameter_server"

    def check(self, compressor: Compressor, rule: Aggregation) -> None:
        super().check(compressor, rule)
        if compressor.sized_by_data:
            raise ValueError(
                f"compressor={compressor!r}: what comes back has the size of what was sent, so "
                "that must not depend on the values; choose a codec of fixed size, such as Sign"
            )

    def __post_init__(self) -> None:
        accepted = ["parameter_server", "butterfly"]
        if self.algorithm not in accepted:
            close = nearest(str(self.algorithm), accepted)
            raise ValueError(
                f"algorithm={self.algorithm!r}: must be one of {', '.join(accepted)}; try {close!r}"
            )

    def collective(
        self,
        sim: Simulation,
        members: Sequence[int],
        codec: Compressor,
        charged: Layout | None,
        ready: Ready,
    ) -> Collective:
        size = sim.workload.nbytes(codec, charged)
        return sim.network.all_reduce(members, size, ready, self.algorithm)


@dataclass(frozen=True)
class CodedRing(Reduction):
    """A ring all-reduce that encodes at every hop, as the int8 ring of PRIME (arXiv 2412.01152).

    Each member's row is cut into k m chunks, the last ones filled up with zeros. m - 1 hops: the
    partial sum of a chunk is encoded, the next member decodes it and adds its own. The last one
    owns the chunk: it encodes the sum, takes the decoded value for its own, and the code is handed
    around. Bytes of each member: `2 (m - 1) k` times those of an encoded chunk, which with the
    256 bins of `optimizers.compression.CodeBook` and k = 2 is `2 (m - 1) / m P + 4 (m - 1) 1024`.
    A whole table goes with every chunk, however short: among more than P / 683 members it sends
    more than a ring of float32 does, `8 (m - 1) / m P`.

    Members stand in order of their ids. A member that was lost is in no hop of the value.

    Args:
        codec: of a chunk; must depend on nothing but the values.
        chunks: k, of one member's share, under way at the same time.
        divide: `"before"`: rows by m, and hops carry parts of the mean; `"owner"`: its sum,
            before it encodes it, which is PRIME's AVG; `"after"`: the decoded sum.
    """

    codec: Compressor
    chunks: int = 2
    divide: str = "before"

    wanted = "rows"

    def __post_init__(self) -> None:
        if self.chunks < 1:
            raise ValueError(f"chunks={self.chunks}: must be an integer >= 1")
        if self.divide not in ("before", "owner", "after"):
            raise ValueError(f"divide={self.divide!r}: must be 'before', 'owner' or 'after'")
        state = self.codec.init(Layout.flat(1), 1)
        if state is not None or not self.codec.deterministic or self.codec.sized_by_data:
            raise ValueError(
                f"codec={self.codec!r}: every hop encodes other values, so the codec must be of "
                "fixed size, without state and draws; choose CodeBook, Quantize or Dense"
            )

    def check(self, compressor: Compressor, rule: Aggregation) -> None:
        super().check(compressor, rule)
        if not isinstance(compressor, Dense):
            raise ValueError(
                f"compressor={compressor!r}: a ring that encodes at every hop starts from the "
                "values as they are; use Dense, and give the codec to the ring"
            )

    def handed(self, compressor: Compressor) -> Compressor:
        return Dense("native")

    def coder(self, handed: Compressor) -> Compressor:
        return self.codec

    def collective(
        self,
        sim: Simulation,
        members: Sequence[int],
        codec: Compressor,
        charged: Layout | None,
        ready: Ready,
    ) -> Collective:
        layout, m = sim.workload.layout if charged is None else charged, len(members)
        chunk = Layout.flat(-(-layout.numel // (self.chunks * m)))
        header = (self.chunks - 1) * sim.network.header_bytes  # that of one chunk it adds itself
        size = m * (self.chunks * sim.workload.nbytes(self.codec, chunk) + header)
        return sim.network.all_reduce(members, size, ready, "ring")

    def mean(
        self, sim: Simulation, cargo: Cargo, contributors: Sequence[int], weights: Tensor | None
    ) -> Tensor | None:
        if not contributors:
            return None
        rows = cargo.rows(contributors).decode()
        if sim.fleet.is_meta:
            return rows[0]
        with sim.profile("strategy"):
            return self.around(rows, weights, sim.fleet.crew.workers)

    def around(
        self, rows: Tensor, weights: Tensor | None = None, workers: Workers | None = None
    ) -> Tensor:
        """The mean [P] of rows [m, P] that every member has in the end."""
        hops = Hops(self.codec, self.chunks, self.divide)
        return hops.around(rows, weights, workers or Workers(1))


def coder(compressor: Compressor, by: Reduction | None) -> Compressor:
    """The codec of what travels when rows are averaged."""
    return compressor if by is None else by.coder(by.handed(compressor))


def averaged(
    compressor: Compressor, rule: Aggregation, by: Reduction | None, *, own: bool
) -> NodeState:
    """What the simulation keeps of each node when a strategy averages one row of each.

    Args:
        own: nodes train, with parameters of their own; if not, they share them and send gradients.
    """
    gathers = not rule.summable or (by is not None and by.wanted == "rows")
    codec = compressor if by is None else by.handed(compressor)
    if isinstance(codec, Dense) and not gathers:  # added up as they come
        return NodeState(params=own, local=own)
    return NodeState(params=own, local=own, sends=codec, gathers=gathers)
