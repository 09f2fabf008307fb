"""Transport: hosts, links and routes in simulated time; transfers as events.

- Bytes flow as a fluid: concurrent transfers share links by `sharing`, after their latency.
- A host that leaves kills what it sends and receives at once. What is routed *through* it goes
  on: only the training program is gone, the machine still forwards.
- Bytes are counted where they pass: `sent` and `received` include those of messages that never
  arrived whole; `wasted` are those of `sent` that were in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import simpy
from numpy import ndarray

from sim import units
from sim.network import collectives as ops
from sim.network.arguments import check_connections, per_item
from sim.network.fluid import Activity, Links
from sim.network.routes import NoRoute, Plan, Routes
from sim.network.sharing import MaxMin, Sharing, max_min
from sim.network.transfer import Transfer, TransferLost
from sim.network.ways import Ways, scalars


class Totals(NamedTuple):
    """Bytes since the start of the run per host, float64 [n] each, headers included."""

    sent: ndarray
    received: ndarray
    wasted: ndarray


class Transport:
    """Hosts on a graph of links.

    Args:
        graph: networkx graph as `sim.network.routes` describes it.
        sharing: whose share of a link is how large; equal (max-min) unless given.
        header_bytes: bytes added to each message.
        approximate: 0 is exact; see `sim.network.fluid.Links`.
        connections: how many connections each transfer, and each hop of a collective, opens: it
            gets so many times the `flow_bandwidth` of its links, and as many shares of a link.

    >>> import networkx as nx
    >>> graph = nx.Graph()
    >>> graph.add_nodes_from([0, 1], kind="host")
    >>> graph.add_edge(0, 1, bandwidth="8Mbps", latency="50ms")
    >>> env, network = simpy.Environment(), Transport(graph)
    >>> network.attach(env)
    >>> env.run(network.transfer(0, 1, 1_000_000))
    >>> env.now
    1.05
    """

    def __init__(
        self,
        graph: Any,
        sharing: Sharing | None = None,
        header_bytes: units.Quantity = 0,
        approximate: float = 0.0,
        connections: int = 1,
    ) -> None:
        self.routes = Routes(graph)
        self.n = self.routes.n
        """Number of hosts."""
        self.sharing = sharing or MaxMin()
        self.header_bytes = units.size(header_bytes, "header_bytes")
        check_connections(connections)
        self.approximate, self.connections = approximate, connections
        self._equal = isinstance(self.sharing, MaxMin)

    def attach(self, env: simpy.Environment, record: Callable[..., None] | None = None) -> None:
        """Start anew on a clock: everybody online, counters at zero.

        `record(kind, **fields)` gets a row per transfer and per collective when it ends.
        """
        self.env, self._records = env, record
        self.links = Links(env, self.routes.bandwidth, self.approximate)
        self._ways = Ways(self.routes, self.links)
        self.online = np.ones(self.n, bool)
        """Which hosts send and receive; bool [n]."""
        self.repaired = env.event()
        """Fires when a link comes back; then replaced."""
        self._sent, self._received, self._wasted = np.zeros((3, self.n))
        self._online = scalars(self.online)
        self._sent_at, self._received_at = scalars(self._sent), scalars(self._received)
        self._on_end = self._conclude  # bound once, not for each transfer
        self._ends = np.zeros((0, 2), np.int64)
        self._running: dict[ops.Collective, None] = {}
        self._known: dict[Hashable, Any] = {}

    def record(self, kind: str, **fields: Any) -> None:
        """Hand a record to whoever attached the network."""
        if self._records is not None:
            self._records(kind, **fields)

    def record_loads(self) -> None:
        """From now on, record each change of what a link carries, as kind "link".

        Fields: `time`, `link` (its number), `u`, `v` (nodes of the graph), `load` and `capacity` in
        bytes/s. A load holds until the next record of its link. Collectives that move step by step
        then also leave a record of kind "transfer" for each of their flows that ends.
        """
        self.links.on_load = self._note_loads

    @property
    def solve_seconds(self) -> float:
        """Wall-clock seconds spent on sharing links, for profiles."""
        return self.links.solve_seconds

    def totals(self) -> Totals:
        """Bytes sent, received and wasted until now, those in motion included."""
        sent, received = self._sent.copy(), self._received.copy()
        rows, moved = self.links.sharing()
        ends = self._ends_of(rows)
        plain = ends[:, 0] >= 0
        np.add.at(sent, ends[plain, 0], moved[plain])
        np.add.at(received, ends[plain, 1], moved[plain])
        for row, nbytes in zip(rows[~plain].tolist(), moved[~plain].tolist()):
            plan: Plan = self.links.mover(row).tag
            sent[plan.senders] += nbytes * plan.sent
            received[plan.receivers] += nbytes * plan.received
        return Totals(sent, received, self._wasted.copy())

    # Transfers

    def transfer(self, src: int, dst: int, nbytes: float) -> Transfer:
        """Send bytes; the event is their delivery, latency + nbytes / rate later.

        To itself a host delivers after 0 s. If either end is, or goes, offline it fails; so it does
        at once when links that are down leave no route.

        Raises:
            ValueError: no such host, no route in the graph, or nbytes not finite and >= 0.
        """
        if not (0 <= src < self.n and 0 <= dst < self.n and 0 <= nbytes < np.inf):
            self._check([src, dst], [nbytes])
        transfer = Transfer(self.env, src, dst, nbytes, self._on_end)
        if not (self._online[src] and self._online[dst]):
            self._lose(transfer, 0.0)
            return transfer
        try:
            route, latency, cap = self._ways.find(src, dst)
        except NoRoute:
            self._lose(transfer, 0.0)
            return transfer
        weight = float(self.connections)
        if not self._equal:
            weight *= self.sharing.weight(latency)
        size, cap = nbytes + self.header_bytes, cap * self.connections
        self.links.flow(transfer, route, size, latency, cap, weight)
        row = transfer.row
        if row >= len(self._ends):
            self._lengthen(row)
        self._end_at[2 * row], self._end_at[2 * row + 1] = src, dst
        return transfer

    def transfers(self) -> list[Transfer]:
        """Those under way, in no particular order."""
        movers = (self.links.mover(row) for row in range(len(self._ends)))
        return [mover for mover in movers if isinstance(mover, Transfer)]

    def flow_set(
        self, pairs: Iterable[tuple[int, int]], nbytes: float | Sequence[float]
    ) -> simpy.Event:
        """Transfers of `nbytes` (one number, or one per pair) that start together.

        The event fires when all have ended; its value says which were delivered: list of bool.
        """
        pairs = list(pairs)
        sizes = per_item(nbytes, len(pairs), "nbytes")
        transfers = [self.transfer(*pair, size) for pair, size in zip(pairs, sizes)]
        done, open_ = self.env.event(), set(transfers)

        def ended(transfer: Transfer) -> None:
            open_.discard(transfer)
            if not open_:
                done.succeed([t.ok for t in transfers])

        for transfer in transfers:
            transfer.callbacks.append(ended)
        return done if transfers else done.succeed([])

    # Changes

    def leave(self, host: int) -> None:
        """Take a host offline: its transfers fail, collectives go on without it."""
        self._check([host], [])
        self.online[host] = False
        for row in np.flatnonzero((self._ends == host).any(axis=1)).tolist():
            transfer = self.links.mover(row)
            if isinstance(transfer, Transfer) and host in (transfer.src, transfer.dst):
                transfer.conclude(self.links.cancel(transfer), False)
        for collective in list(self._running):
            collective.leave(host)

    def join(self, host: int) -> None:
        """Bring a host online; collectives that are running stay without it."""
        self._check([host], [])
        self.online[host] = True

    def set_bandwidth(self, u: Any, v: Any, bandwidth: units.Quantity) -> None:
        """Change a link's bandwidth from now on (both directions if the graph is undirected).

        At 0 what crosses the link waits.
        """
        capacity = units.bandwidth(bandwidth, positive=False)
        for link in self.routes.links_between(u, v):
            self.links.set_capacity(link, capacity)
        self._known.clear()

    def link_down(self, u: Any, v: Any) -> None:
        """Cut a link. What crosses it fails; new messages take another way if there is one.

        A collective goes on over the routes that are left after `detection`, or when a link
        comes back.
        """
        for link in self.routes.links_between(u, v):
            self.routes.set_up(link, False)
        self._ways.clear()
        self._known.clear()
        for link in self.routes.links_between(u, v):
            self.links.down(link)

    def link_up(self, u: Any, v: Any) -> None:
        """Bring a link back."""
        for link in self.routes.links_between(u, v):
            self.routes.set_up(link, True)
            self.links.up(link)
        self._ways.clear()
        self._known.clear()
        repaired, self.repaired = self.repaired, self.env.event()
        repaired.succeed()

    # For collectives

    def launch(
        self,
        plan: Plan,
        nbytes: float,
        on_end: Callable[[Activity, bool], None],
        latency: float | None = None,
        pace: float = np.inf,
    ) -> Activity:
        """Move `nbytes` over each hop of a plan, at most at `pace` bytes/s; counted at its end."""

        single = plan.hops[0] if len(plan.hops) == 1 and self.links.on_load is not None else None
        start = self.env.now

        def ended(activity: Activity, ok: bool) -> None:
            self._count(activity)
            if single is not None:
                self._note(*single, nbytes, activity.moved, start, "delivered" if ok else "lost")
            on_end(activity, ok)

        delay = plan.latency if latency is None else latency
        links, loads, cap = plan.links, plan.loads, min(plan.cap * self.connections, pace)
        weight = float(self.connections)
        if not self._equal:
            weight *= self.sharing.weight(float(self.alone(plan)[1].mean()))
        activity = self.links.activity(links, nbytes, delay, loads, cap, ended, plan, weight)
        if activity.row < len(self._ends):
            self._ends[activity.row] = -1
        return activity

    def stop(self, activity: Activity) -> float:
        """Cancel what was launched; returns the bytes that each hop moved."""
        self.links.cancel(activity)
        self._count(activity)
        return activity.moved

    def waste(self, hosts: ndarray | int, nbytes: ndarray | float) -> None:
        """Count bytes that were sent in vain."""
        self._wasted[hosts] += nbytes

    def alone(self, plan: Plan) -> tuple[ndarray, ndarray]:
        """Of each hop, as a separate flow while nothing else runs: bytes/s, and seconds latency."""

        def measure() -> tuple[ndarray, ndarray]:
            lengths, links, latency, caps = self.routes.table(*np.array(plan.hops).T)
            rows = lengths, links, np.ones(len(links)), caps * self.connections
            return max_min(self.links.capacity, *rows), latency

        return self.known(("alone", plan), measure)

    def known(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """`make()`, remembered by its key until a capacity or a route changes."""
        if key not in self._known:
            if len(self._known) >= 1000:  # of rings that came and went
                self._known.clear()
            self._known[key] = make()
        return self._known[key]

    def follow(self, collective: ops.Collective) -> None:
        """Tell a collective of losses until it is `forget`-ed."""
        self._running[collective] = None

    def forget(self, collective: ops.Collective) -> None:
        """Stop telling it."""
        self._running.pop(collective, None)

    def _count(self, activity: Activity) -> None:
        plan: Plan = activity.tag
        self._sent[plan.senders] += activity.moved * plan.sent
        self._received[plan.receivers] += activity.moved * plan.received

    def _conclude(self, transfer: Transfer, moved: float, ok: bool) -> None:
        src, dst = transfer.src, transfer.dst
        if src != dst:
            self._sent_at[src] += moved
            self._received_at[dst] += moved
        if not ok:
            self._wasted[src] += moved
            self._lose(transfer, moved)
            return
        if self._records is not None:
            self._note_transfer(transfer, transfer.nbytes, "delivered")
        transfer.succeed()

    def _lose(self, transfer: Transfer, moved: float) -> None:
        self._note_transfer(transfer, moved, "lost")
        ends = f"{transfer.src} to {transfer.dst}"
        transfer.fail(TransferLost(f"{ends}: {moved:.0f} of {transfer.nbytes:.0f} bytes moved"))

    def _note_transfer(self, t: Transfer, moved: float, status: str) -> None:
        self._note(t.src, t.dst, t.nbytes, moved, t.start, status)

    def _note(
        self, src: int, dst: int, nbytes: float, moved: float, start: float, status: str
    ) -> None:
        fields = {"src": src, "dst": dst, "nbytes": nbytes, "delivered": moved, "start": start}
        self.record("transfer", time=self.env.now, **fields, status=status)

    def _note_loads(self, links: ndarray, loads: ndarray) -> None:
        routes, time = self.routes, self.env.now
        for link, load in zip(links.tolist(), loads.tolist()):
            if link < len(routes.tail):  # not a connection that a collective keeps
                u, v = routes.nodes[routes.tail[link]], routes.nodes[routes.head[link]]
                rate = {"load": load, "capacity": float(self.links.capacity[link])}
                self.record("link", time=time, link=link, u=u, v=v, **rate)

    def _ends_of(self, rows: ndarray) -> ndarray:
        """(src, dst) of slots, int64 [F, 2]; -1 for those of collectives."""
        known = rows < len(self._ends)
        ends = np.full((len(rows), 2), -1)
        ends[known] = self._ends[rows[known]]
        return ends

    def _lengthen(self, row: int) -> None:
        """Room for the ends of one more slot."""
        longer = np.full((2 * row + 64, 2), -1)
        longer[: len(self._ends)] = self._ends
        self._ends, self._end_at = longer, scalars(longer.reshape(-1))

    def _check(self, hosts: Sequence[int], sizes: Sequence[float]) -> None:
        for host in hosts:
            if not 0 <= host < self.n:
                raise ValueError(f"host {host!r}: expected 0 .. {self.n - 1}")
        for size in sizes:
            if not 0 <= size < np.inf:
                raise ValueError(f"nbytes={size!r}: expected a finite number >= 0")
