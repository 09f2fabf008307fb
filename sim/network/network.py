"""Network: transfers, messages and collectives between hosts, as events in simulated time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import simpy
from numpy import ndarray

from sim import units
from sim.network import collectives as ops
from sim.network import schedules
from sim.network.arguments import Ready, by_member, check_choice, per_item
from sim.network.coupled import Multicasts, RingReduce
from sim.network.gather import RingGather
from sim.network.hierarchical import Hierarchical, site_of_each
from sim.network.hops import HopRing
from sim.network.messages import Messages
from sim.network.options import CHOICES, NetworkOptions
from sim.network.orders import Orders
from sim.network.probe import Probe, run_probe
from sim.network.routes import Plan
from sim.network.scheduled import (
    AveragedSchedule,
    PhasedSchedule,
    SteppedSchedule,
    alone_seconds,
)
from sim.network.sharing import MaxMin, Sharing
from sim.network.stepwise import Exchange, RelayGather, SteppedReduce
from sim.network.transfer import Transfer, TransferLost
from sim.network.transport import Totals, Transport

__all__ = ["Network", "Probe", "Totals", "Transfer", "TransferLost"]

FIDELITIES = ["coupled", "hops", "flows", "auto"]
_FEW_FLOWS = 2000
"""Up to so many flows `collectives="auto"` uses flows: a ring of 32 members has 1,984."""
_REMEMBERED = 1000
"""Orders, and times of schedules, before starting over: memberships come and go."""


class Network(Transport):
    """A transport whose hosts also act together, and send small messages.

    Args:
        graph: networkx graph as `sim.network.routes` describes it.
        sharing: how activities share links; exact max-min unless given.
        collectives: the fidelity of collectives. "coupled": one activity, or one per phase, for a
            whole collective; exact alone and under steady competition. "flows": every step a flow
            of its own. "hops": a ring is one activity per hop, each at most half a chunk ahead of
            the one before it; what has no such form (all but rings whose members start together)
            is coupled. "auto": flows if there are at most 2,000 of them, else coupled.
        detection: seconds until a loss is noticed.
        header_bytes: bytes added to each message.
        approximate: 0 is exact; see `sim.network.fluid.Links`.
        connections: how many connections a transfer, or a hop of a collective, opens.
        all_reduce, all_gather: the algorithm of these, where the call names none.
        failure: what a loss does to a collective: "shrink", "abort", "wait" or "retry"; see
            `sim.network.collectives`.
        patience: seconds after a loss at which a collective that waits gives up.
        ring_order: "given": members in the order of the call; "min_max" or "min_sum": an order
            with the least slowest, or summed, time of a hop, found once per membership.
        probe_bytes: 0: what a hop takes is known for free; otherwise it is measured by transfers
            of so many bytes between all pairs, beside the first ring; see `sim.network.orders`.
        message_bytes: what `send` sends as a message, not as a transfer: up to so many bytes.
        rto: seconds until a lost message is sent again, at the least; then twice as long each time.
        attempts: how often a message is tried.

    >>> import networkx as nx
    >>> graph = nx.complete_graph(3)
    >>> nx.set_node_attributes(graph, "host", "kind")
    >>> nx.set_edge_attributes(graph, "8Mbps", "bandwidth")
    >>> nx.set_edge_attributes(graph, "50ms", "latency")
    >>> env, network = simpy.Environment(), Network(graph)
    >>> network.attach(env)
    >>> env.run(network.all_reduce([0, 1, 2], 3e6)).contributors
    [0, 1, 2]
    >>> env.now
    4.2
    """

    def __init__(
        self,
        graph: Any,
        sharing: Sharing | None = None,
        collectives: str = "coupled",
        detection: units.Quantity = "10s",
        header_bytes: units.Quantity = 0,
        approximate: float = 0.0,
        connections: int = 1,
        all_reduce: str = "ring",
        all_gather: str = "ring",
        failure: str = "shrink",
        patience: units.Quantity = "1min",
        ring_order: str = "given",
        probe_bytes: units.Quantity = 0,
        message_bytes: units.Quantity = 0,
        rto: units.Quantity = "200ms",
        attempts: int = 10,
    ) -> None:
        check_choice("collectives", collectives, FIDELITIES)
        options = NetworkOptions(
            sharing=sharing or MaxMin(),
            approximate=approximate,
            connections=connections,
            all_reduce=all_reduce,
            all_gather=all_gather,
            failure=failure,
            detection=detection,
            patience=patience,
            ring_order=ring_order,
            probe_bytes=probe_bytes,
            header_bytes=header_bytes,
            message_bytes=message_bytes,
            rto=rto,
            attempts=attempts,
        )
        super().__init__(graph, options.sharing, header_bytes, approximate, connections)
        self._places = [graph.nodes[host] for host in range(self.n)]
        self.collectives, self.failure, self.ring_order = collectives, failure, ring_order
        self.reduce_algorithm, self.gather_algorithm = all_reduce, all_gather
        self.detection = units.seconds(detection)
        self.patience, self.rto = units.seconds(patience), units.seconds(rto)
        self.message_bytes, self.attempts = units.size(message_bytes), attempts
        self.probe_bytes = units.size(probe_bytes)

    def attach(
        self,
        env: simpy.Environment,
        record: Callable[..., None] | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        """Start anew on a clock: everybody online, counters at zero.

        Args:
            record: `record(kind, **fields)` gets a row per transfer and collective when it ends.
            rng: which messages are lost, on links that lose some.
        """
        super().attach(env, record)
        self._messages = Messages(self, rng)
        self._orders = Orders(self, self.ring_order, self.probe_bytes)
        self._known_seconds: dict[tuple[str, tuple[int, ...], float], tuple[ndarray, float]] = {}

    def totals(self) -> Totals:
        """Bytes sent, received and wasted until now, those in motion included."""
        for collective in self._running:
            if isinstance(collective, RingGather):
                collective.count()
        return super().totals()

    # Small traffic

    def message(self, src: int, dst: int, nbytes: float) -> simpy.Event:
        """Send a message that takes no share of a link; the value is whether it was delivered.

        It takes the latency + nbytes / the slowest link of its path, whatever else is there, and
        longer if it is lost and sent again; see `sim.network.messages`.
        """
        self._check([src, dst], [nbytes])
        return self._messages.send(src, dst, nbytes)

    def send(self, src: int, dst: int, nbytes: float) -> simpy.Event:
        """Send bytes, as a message or as a transfer; the value is whether they were delivered."""
        if nbytes <= self.message_bytes:
            return self.message(src, dst, nbytes)
        event = self.env.event()

        def ended(transfer: simpy.Event) -> None:
            event.succeed(transfer.ok)

        self.transfer(src, dst, nbytes).callbacks.append(ended)
        return event

    def probe(self, members: Iterable[int], nbytes: float) -> simpy.Event:
        """Measure the bandwidth between all pairs of members; the value is a `Probe`.

        In rounds of a tournament, each a transfer of `nbytes` in both directions between disjoint
        pairs, so that no two of them share an access link.
        """
        members = self._members(members, [nbytes])
        return self.env.process(run_probe(self, members, nbytes))

    # Collectives

    def sites(self, by: str = "router") -> dict[int, Hashable]:
        """The site of each host, see `sim.network.hierarchical.site_of_each`."""
        return site_of_each(by, self.routes.gate.tolist(), self._places)

    def all_reduce(
        self,
        members: Iterable[int],
        nbytes: float,
        ready: Ready = None,
        algorithm: str | schedules.Algorithm | None = None,
        sites: Mapping[int, Hashable] | None = None,
    ) -> ops.Collective:
        """Everybody gets the sum of `nbytes` of each member.

        Args:
            ready: from when each member takes part; now if None.
            algorithm: "ring" (along `members`), "halving_doubling", "tree", "butterfly",
                "parameter_server", "hierarchical", or an `Algorithm` of `sim.network.schedules`;
                that of the network if None.
            sites: for "hierarchical", the site of each member; those behind the same router
                unless given.
        """
        members = self._members(members, [nbytes])
        events, algorithm = by_member(ready, members), algorithm or self.reduce_algorithm
        if algorithm == "ring":
            return self.ring_reduce("all_reduce", members, nbytes, events)
        if algorithm == "hierarchical":
            where = self.sites() if sites is None else sites
            missing = [member for member in members if member not in where]
            if missing:
                raise ValueError(f"sites: no site of member {missing[0]}; expected one for each")
            return Hierarchical(self, members, float(nbytes), events, where)
        if isinstance(algorithm, str):
            check_choice("algorithm", algorithm, CHOICES["all_reduce"])
            algorithm = schedules.ALGORITHMS[algorithm]
        return self._run("all_reduce", members, nbytes, events, algorithm)

    def reduce_scatter(
        self, members: Iterable[int], nbytes: float, ready: Ready = None
    ) -> ops.Collective:
        """Each member gets its part, one n-th, of the sum of `nbytes`: half a ring all-reduce."""
        members = self._members(members, [nbytes])
        return self.ring_reduce("reduce_scatter", members, nbytes, by_member(ready, members), 1)

    def all_gather(
        self,
        members: Iterable[int],
        sizes: float | Sequence[float] | Mapping[int, float],
        ready: Ready = None,
        algorithm: str | None = None,
        on_heard: ops.OnHeard | None = None,
    ) -> ops.Collective:
        """Everybody gets what each member sends: `sizes` bytes, one number or one per member.

        `algorithm` is "ring" (each payload is handed on along `members`) or "mesh" (each member
        sends to every other one); that of the network if None. `on_heard(src, dst)` is called as
        payloads arrive; a dst of None stands for all members at once. In a coupled ring this costs
        an activity per payload: without it there is one or a few for all.
        """
        algorithm = algorithm or self.gather_algorithm
        check_choice("algorithm", algorithm, CHOICES["all_gather"])
        members = list(members)
        if isinstance(sizes, Mapping):
            sizes = [sizes[member] for member in members]
        payloads = per_item(sizes, len(members), "sizes")
        members = self._members(members, payloads)
        size_of, events = dict(zip(members, payloads)), by_member(ready, members)
        if algorithm == "mesh":
            return self._gather_by_mesh(members, size_of, events, on_heard)
        n, members = len(members), self._orders.of(members, max(payloads, default=0.0))
        if self._as_flows(n * (n - 1)):
            return RelayGather(self, members, size_of, events, on_heard)
        together = all(event.processed for event in events.values()) and on_heard is None
        if self.collectives == "hops" and together and len(set(payloads)) == 1:
            return HopRing(self, "all_gather", members, payloads[0], events, passes=1)
        return RingGather(self, members, size_of, events, on_heard)

    def broadcast(
        self,
        src: int,
        members: Iterable[int],
        nbytes: float,
        ready: simpy.Event | None = None,
        algorithm: str = "chain",
    ) -> ops.Collective:
        """Everybody gets `nbytes` of `src`, which starts when `ready` has fired.

        `algorithm` is "chain" (handed on along `members`) or "tree" (each feeds two others: less
        latency, half the rate). Bytes are handed on as they come in: all fidelities use this
        limit of small chunks.
        """
        check_choice("algorithm", algorithm, ["chain", "tree"])
        members = self._members([src, *(m for m in members if m != src)], [nbytes])
        shape = ops.chain if algorithm == "chain" else ops.tree
        events = {} if ready is None else {src: ready}
        return Multicasts(self, "broadcast", members, {src: float(nbytes)}, events, shape)

    def all_to_all(
        self, members: Iterable[int], nbytes: float, ready: Ready = None
    ) -> ops.Collective:
        """Each member sends `nbytes`, something else each time, to every other one."""
        members = self._members(members, [nbytes])
        events = by_member(ready, members)
        return self._run("all_to_all", members, nbytes, events, schedules.Mesh())

    def exchange(
        self,
        pairs: Iterable[tuple[int, int]],
        nbytes: float | Sequence[float],
        ready: Ready = None,
        on_heard: ops.OnHeard | None = None,
    ) -> ops.Collective:
        """Each directed pair's flow on its own, as in gossip: src sends once it is ready.

        `nbytes` is one number or one per pair; `ready` by id, or in order of the ids.
        """
        pairs = list(pairs)
        if len(set(pairs)) < len(pairs):
            raise ValueError(f"pairs={pairs}: each pair once")
        sizes = per_item(nbytes, len(pairs), "nbytes")
        members = self._members(sorted({host for pair in pairs for host in pair}), sizes)
        events = by_member(ready, members)
        return Exchange(self, "exchange", members, dict(zip(pairs, sizes)), events, on_heard)

    # For collectives

    def ring_reduce(
        self,
        op: str,
        members: Sequence[int],
        nbytes: float,
        ready: Mapping[int, simpy.Event],
        passes: int = 2,
    ) -> ops.Collective:
        """A reduction around a ring: an all-reduce in two passes, a reduce-scatter in one."""
        n = len(members)
        members = self._orders.of(members, nbytes / max(n, 1))
        if self._as_flows(passes * n * (n - 1)):
            return SteppedReduce(self, op, members, float(nbytes), ready, passes)
        kind = HopRing if self.collectives == "hops" else RingReduce
        return kind(self, op, members, float(nbytes), ready, passes)

    def chain_broadcast(self, op: str, members: Sequence[int], nbytes: float) -> ops.Collective:
        """From the first of `members` along the others."""
        return Multicasts(self, op, members, {members[0]: float(nbytes)}, {}, ops.chain)

    def alone_seconds(
        self, algorithm: schedules.Algorithm, members: Sequence[int], nbytes: float, plan: Plan
    ) -> float:
        """Of the flows of a schedule, on the links of `plan`; remembered until these change."""
        key, capacity = (repr(algorithm), tuple(members), nbytes), self.links.capacity[plan.links]
        known = self._known_seconds.get(key)
        if known is None or not np.array_equal(known[0], capacity):
            if len(self._known_seconds) >= _REMEMBERED:
                self._known_seconds.clear()
            seconds = alone_seconds(self, algorithm, members, nbytes)
            known = self._known_seconds[key] = capacity.copy(), seconds
        return known[1]

    def count(self, hosts: Sequence[int], sent: ndarray, received: ndarray) -> None:
        """Count bytes of activities whose plan names no hosts."""
        self._sent[hosts] += sent
        self._received[hosts] += received

    def _run(
        self,
        op: str,
        members: list[int],
        nbytes: float,
        ready: Mapping[int, simpy.Event],
        algorithm: schedules.Algorithm,
    ) -> ops.Collective:
        arguments = self, op, members, float(nbytes), ready, algorithm
        if len(members) < 2:
            return PhasedSchedule(*arguments)
        schedule = algorithm.schedule(self, members, nbytes)
        if self._as_flows(sum(len(phase.hops) for phase in schedule.phases)):
            return SteppedSchedule(*arguments)
        return PhasedSchedule(*arguments) if schedule.regular else AveragedSchedule(*arguments)

    def _gather_by_mesh(
        self,
        members: list[int],
        size_of: dict[int, float],
        ready: Mapping[int, simpy.Event],
        on_heard: ops.OnHeard | None,
    ) -> ops.Collective:
        if self._as_flows(len(members) * (len(members) - 1)):
            pairs = {(src, dst): size_of[src] for src in members for dst in members if src != dst}
            return Exchange(self, "all_gather", members, pairs, ready, on_heard)
        return Multicasts(self, "all_gather", members, size_of, ready, ops.star, on_heard)

    def _as_flows(self, flows: int) -> bool:
        few = self.collectives == "auto" and flows <= _FEW_FLOWS
        return few or self.collectives == "flows"

    def _members(self, members: Iterable[int], sizes: Sequence[float]) -> list[int]:
        members = list(members)
        self._check(members, sizes)
        if len(set(members)) < len(members):
            raise ValueError(f"members={members}: each host once")
        return members
