"""Transport: hosts, links and routes in simulated time; transfers as events.

- Bytes flow as a fluid: concurrent transfers share links by `sharing`, after their latency.
- A host that leaves kills what it sends and receives at once. What is routed *through* it goes
  on: only the training program is gone, the machine still forwards.
- Bytes are counted where they pass: `sent` and `received` include those of messages that never
  arrived whole; `wasted` are those of `sent` that were in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import simpy
from numpy import ndarray

from sim import units
from sim.network import collectives as ops
from sim.network.arguments import check_choice, per_item
from sim.network.fluid import Activity, Links
from sim.network.routes import NoRoute, Plan, Routes
from sim.network.sharing import MaxMin, Sharing
from sim.network.transfer import Transfer, TransferLost


class Totals(NamedTuple):
    """Bytes since the start of the run per host, float64 [n] each, headers included."""

    sent: ndarray
    received: ndarray
    wasted: ndarray


class Transport:
    """Hosts on a graph of links.

    Args:
        graph: networkx graph as `sim.network.routes` describes it.
        sharing: how activities share links; exact max-min unless given.
        collectives: "coupled", one activity for a whole collective, exact alone and under steady
            competition; or "flows", each step its own flow.
        detection: time until the survivors of a loss in a collective go on without the lost.
        header_bytes: bytes added to each message.

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
        collectives: str = "coupled",
        detection: units.Quantity = "10s",
        header_bytes: units.Quantity = 0,
    ) -> None:
        check_choice("collectives", collectives, ["coupled", "flows"])
        self.routes = Routes(graph)
        self.n = self.routes.n
        """Number of hosts."""
        self.sharing = sharing or MaxMin()
        self.collectives = collectives
        self.detection = units.seconds(detection, "detection")
        self.header_bytes = units.size(header_bytes, "header_bytes")

    def attach(self, env: simpy.Environment, record: Callable[..., None] | None = None) -> None:
        """Start anew on a clock: everybody online, counters at zero.

        `record(kind, **fields)` gets a row per transfer and per collective when it ends.
        """
        self.env, self.record = env, record or (lambda kind, **fields: None)
        self.links = Links(env, self.routes.bandwidth, self.sharing)
        self.online = np.ones(self.n, bool)
        """Which hosts send and receive; bool [n]."""
        self.repaired = env.event()
        """Fires when a link comes back; then replaced."""
        self._sent, self._received, self._wasted = np.zeros((3, self.n))
        self._transfers: dict[Transfer, Activity] = {}
        self._running: dict[ops.Collective, None] = {}
        self._connections: dict[ops.Collective, dict[tuple[int, int], int]] = {}
        self._alone: dict[Plan, tuple[ndarray, ndarray]] = {}

    @property
    def solve_seconds(self) -> float:
        """Wall-clock seconds spent on sharing links, for profiles."""
        return self.links.solve_seconds

    def totals(self) -> Totals:
        """Bytes sent, received and wasted until now, those in motion included."""
        sent, received = self._sent.copy(), self._received.copy()
        for activity, moved in self.links.running():
            plan: Plan = activity.tag
            sent[plan.senders] += moved * plan.sent
            received[plan.receivers] += moved * plan.received
        return Totals(sent, received, self._wasted.copy())

    # Transfers

    def transfer(self, src: int, dst: int, nbytes: float) -> Transfer:
        """Send bytes; the event is their delivery, latency + nbytes / rate later.

        To itself a host delivers after 0 s. If either end is, or goes, offline it fails.
        """
        self._check([src, dst], [nbytes])
        transfer = Transfer(self.env, src, dst, nbytes)
        try:
            plan = self.routes.plan([(src, dst)])
        except NoRoute:
            self._lose(transfer, 0.0)
            return transfer
        if not self.online[[src, dst]].all():
            self._lose(transfer, 0.0)
        else:
            ended = partial(self._conclude, transfer)
            self._transfers[transfer] = self.launch(plan, nbytes + self.header_bytes, ended)
        return transfer

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
        for transfer in [t for t in self._transfers if host in (t.src, t.dst)]:
            activity = self._transfers[transfer]
            self.stop(activity)
            self._conclude(transfer, activity, ok=False)
        for collective in list(self._running):
            collective.leave(host)

    def join(self, host: int) -> None:
        """Bring a host online; collectives that are running stay without it."""
        self._check([host], [])
        self.online[host] = True

    def set_bandwidth(self, u: Any, v: Any, bandwidth: units.Quantity) -> None:
        """Change a link's bandwidth from now on (both directions if the graph is undirected)."""
        capacity = units.bandwidth(bandwidth, positive=False)
        for link in self.routes.links_between(u, v):
            self.links.set_capacity(link, capacity)
        self._alone.clear()

    def link_down(self, u: Any, v: Any) -> None:
        """Cut a link. What crosses it fails; new messages take another way if there is one.

        A collective goes on over the routes that are left after `detection`, or when a link
        comes back.
        """
        for link in self.routes.links_between(u, v):
            self.routes.set_up(link, False)
            self.links.down(link)
        self._alone.clear()

    def link_up(self, u: Any, v: Any) -> None:
        """Bring a link back."""
        for link in self.routes.links_between(u, v):
            self.routes.set_up(link, True)
            self.links.up(link)
        self._alone.clear()
        repaired, self.repaired = self.repaired, self.env.event()
        repaired.succeed()

    # For collectives

    def launch(
        self,
        plan: Plan,
        nbytes: float,
        on_end: Callable[[Activity, bool], None],
        latency: float | None = None,
        connections: Sequence[int] = (),
    ) -> Activity:
        """Move `nbytes` over each hop of a plan; counted when it ends.

        `connections` (see `connect`) limit the hops together with whatever else uses them;
        without, what one connection gets limits this activity alone.
        """

        def ended(activity: Activity, ok: bool) -> None:
            self._count(activity)
            on_end(activity, ok)

        delay = plan.latency if latency is None else latency
        links, loads, cap = plan.links, plan.loads, plan.cap
        if connections:
            links = np.concatenate([links, connections])
            loads, cap = np.concatenate([loads, np.ones(len(connections))]), np.inf
        return self.links.activity(links, nbytes, delay, loads, cap, ended, plan)

    def connect(self, collective: ops.Collective, hops: Iterable[tuple[int, int]]) -> list[int]:
        """The connections that a collective keeps open for hops that limit each connection.

        All that it sends over one hop shares its one connection. Hops without a limit have none.
        """
        open_ = self._connections.setdefault(collective, {})
        limits = {hop: self.routes.plan([hop]).cap for hop in hops if hop not in open_}
        limits = {hop: cap for hop, cap in limits.items() if cap < np.inf}
        open_.update(zip(limits, self.links.add(list(limits.values()))))
        return [open_[hop] for hop in hops if hop in open_]

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
        if plan not in self._alone:
            if len(self._alone) >= 1000:  # rings that came and went
                self._alone.clear()
            hops = [self.routes.plan([hop]) for hop in plan.hops]
            links = np.concatenate([hop.links for hop in hops])
            lengths, caps = np.array([len(hop.links) for hop in hops]), [hop.cap for hop in hops]
            rows = lengths, links, np.ones(len(links)), np.array(caps)
            rates = self.sharing.rates(self.links.capacity, *rows)
            self._alone[plan] = rates, np.array([hop.latency for hop in hops])
        return self._alone[plan]

    def follow(self, collective: ops.Collective) -> None:
        """Tell a collective of losses until it is `forget`-ed."""
        self._running[collective] = None

    def forget(self, collective: ops.Collective) -> None:
        """Stop telling it."""
        self._running.pop(collective, None)
        self.links.remove(self._connections.pop(collective, {}).values())

    def _count(self, activity: Activity) -> None:
        plan: Plan = activity.tag
        self._sent[plan.senders] += activity.moved * plan.sent
        self._received[plan.receivers] += activity.moved * plan.received

    def _conclude(self, transfer: Transfer, activity: Activity, ok: bool) -> None:
        del self._transfers[transfer]
        if ok:
            self._note(transfer, transfer.nbytes, "delivered")
            transfer.succeed()
        else:
            self._wasted[transfer.src] += activity.moved
            self._lose(transfer, activity.moved)

    def _lose(self, transfer: Transfer, moved: float) -> None:
        self._note(transfer, moved, "lost")
        ends = f"{transfer.src} to {transfer.dst}"
        transfer.fail(TransferLost(f"{ends}: {moved:.0f} of {transfer.nbytes:.0f} bytes moved"))

    def _note(self, t: Transfer, moved: float, status: str) -> None:
        fields = {"src": t.src, "dst": t.dst, "nbytes": t.nbytes, "delivered": moved}
        self.record("transfer", time=self.env.now, **fields, start=t.start, status=status)

    def _check(self, hosts: Sequence[int], sizes: Sequence[float]) -> None:
        for host in hosts:
            if not 0 <= host < self.n:
                raise ValueError(f"host {host!r}: expected 0 .. {self.n - 1}")
        for size in sizes:
            if not 0 <= size < np.inf:
                raise ValueError(f"nbytes={size!r}: expected a finite number >= 0")
