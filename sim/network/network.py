"""Network: transfers and collectives between hosts, as events in simulated time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import simpy

from sim.network import collectives as ops
from sim.network.arguments import Ready, by_member, check_choice, per_item
from sim.network.coupled import Multicasts, RingAllReduce
from sim.network.stepwise import Exchange, RelayGather, SteppedAllReduce
from sim.network.transfer import Transfer, TransferLost
from sim.network.transport import Totals, Transport

__all__ = ["Network", "Totals", "Transfer", "TransferLost"]


class Network(Transport):
    """A transport whose hosts also act together.

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

    def all_reduce(
        self, members: Iterable[int], nbytes: float, ready: Ready = None
    ) -> ops.Collective:
        """Ring all-reduce over `members` in their order: everybody gets the sum of `nbytes`."""
        members = self._members(members, [nbytes])
        kind = RingAllReduce if self.collectives == "coupled" else SteppedAllReduce
        return kind(self, members, float(nbytes), by_member(ready, members))

    def all_gather(
        self,
        members: Iterable[int],
        sizes: float | Sequence[float] | Mapping[int, float],
        ready: Ready = None,
        algorithm: str = "ring",
        on_heard: ops.OnHeard | None = None,
    ) -> ops.Collective:
        """Everybody gets what each member sends: `sizes` bytes, one number or one per member.

        `algorithm` is "ring" (each payload is handed on along `members`) or "mesh" (each member
        sends to every other one). `on_heard(src, dst)` is called as payloads arrive; a dst of
        None stands for all members at once.
        """
        check_choice("algorithm", algorithm, ["ring", "mesh"])
        members = list(members)
        if isinstance(sizes, Mapping):
            sizes = [sizes[member] for member in members]
        payloads = per_item(sizes, len(members), "sizes")
        members = self._members(members, payloads)
        size_of, events = dict(zip(members, payloads)), by_member(ready, members)
        if self.collectives == "coupled":
            shape = ops.chain if algorithm == "ring" else ops.star
            return Multicasts(self, "all_gather", members, size_of, events, shape, on_heard)
        if algorithm == "ring":
            return RelayGather(self, members, size_of, events, on_heard)
        pairs = {(src, dst): size_of[src] for src in members for dst in members if src != dst}
        return Exchange(self, "all_gather", members, pairs, events, on_heard)

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
        latency, half the rate). Bytes are handed on as they come in: both fidelities use this
        limit of small chunks.
        """
        check_choice("algorithm", algorithm, ["chain", "tree"])
        members = self._members([src, *(m for m in members if m != src)], [nbytes])
        shape = ops.chain if algorithm == "chain" else ops.tree
        events = {} if ready is None else {src: ready}
        return Multicasts(self, "broadcast", members, {src: float(nbytes)}, events, shape)

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

    def _members(self, members: Iterable[int], sizes: Sequence[float]) -> list[int]:
        members = list(members)
        self._check(members, sizes)
        if len(set(members)) < len(members):
            raise ValueError(f"members={members}: each host once")
        return members
