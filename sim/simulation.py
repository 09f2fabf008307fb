"""Simulation: the clock and what a run owns.

It is a simpy environment, so `timeout`, `process`, `all_of` and `run` are SimPy's. Time is in
seconds since the start of the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import simpy
from torch import Tensor

from sim.aggregation import Aggregation
from sim.budget import Budget
from sim.compute.device import Devices
from sim.compute.fleet import Fleet
from sim.compute.layout import Fragment, Layout
from sim.compute.work import Program, Watcher, Work
from sim.group import Group
from sim.network.network import Network
from sim.node import Node
from sim.payload import Compressor, Dense, Payload
from sim.progress import Progress
from sim.round import Round
from sim.strategy import Shared, Strategy
from sim.streams import Streams
from sim.trace import Trace
from sim.workload import Workload

if TYPE_CHECKING:
    import pandas as pd

    from sim.coordinators.coordinator import Coordinator


class Simulation(simpy.Environment):
    """One run: nodes on a network that train, under one clock.

    Args:
        network: physical links.
        fleet: all parameters and gradients.
        devices: how long a step takes on each node.
        workload: the model the clock charges for.
        coordinator: who is in a round.
        strategy: the training algorithm.
        sessions: columns `node`, `start`, `end` in seconds, as `Churn.sessions` draws them.
        budget: when the run ends.
        streams: where every random draw comes from.
        trace: where records go.
        overlay: makes the graph of who talks to whom in gossip; called when first needed.
        evaluations: how many times at most the model is evaluated during the run.
    """

    def __init__(
        self,
        network: Network,
        fleet: Fleet,
        devices: Devices,
        workload: Workload,
        coordinator: Coordinator,
        strategy: Strategy,
        sessions: pd.DataFrame,
        budget: Budget,
        streams: Streams,
        trace: Trace,
        overlay: Callable[[], nx.Graph],
        evaluations: int = 50,
    ) -> None:
        super().__init__()
        self.network, self.fleet, self.devices, self.workload = network, fleet, devices, workload
        self.coordinator, self.strategy, self.budget = coordinator, strategy, budget
        self.streams, self.trace, self._make_overlay = streams, trace, overlay
        self.dense = Dense("bfloat16" if workload.bytes_per_value == 2 else "native")
        """How a tensor travels when a strategy names no codec: in the workload's width."""
        self._local = fleet.local.bind(workload.layout)  # as it is charged
        self._row_bytes, self._step_passes = workload.state_nbytes(1), strategy.passes
        self.online: frozenset[int] = frozenset()
        self.done = self.event()
        """Fires when the budget is spent."""
        self.membership_changed = self.event()
        """A node left, came, or got the state; made anew each time."""
        self.shared: Shared = {}
        """What every member knows; joiners download it; lost when no holder is left."""
        self.progress = Progress(self, evaluations)
        self.completed, self.busy = self.progress.completed, self.progress.busy
        n = fleet.n_nodes
        self.departures = np.zeros(n, dtype=np.int64)
        """How many times each node has left."""
        self._online_seconds, self._online_since = np.zeros(n), np.full(n, math.nan)
        self._debt = np.zeros(n)
        self._watchers: dict[int, Watcher] = {}
        self._working: dict[int, Work] = {}
        self._nodes: dict[int, Node] = {}
        self._numbers: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.left = self.joined = self.rounds = 0
        self.restarts = 0
        """How often training began again: what a strategy had under way before is of no use."""
        self.empty_exchanges = 0
        """Collectives of a strategy in which nobody's share arrived: steps that taught nothing."""
        self.profile = fleet.profile
        """Wall time by cause."""
        network.attach(self, self.record, streams.rng("messages"))
        self._begin(sessions)

    # -- what strategies use ------------------------------------------------------------------

    @property
    def nodes(self) -> list[Node]:
        """All nodes, online or not."""
        return [self.node(i) for i in range(self.fleet.n_nodes)]

    def node(self, id: int) -> Node:
        """The node with this id."""
        if id not in self._nodes:
            self._nodes[id] = Node(self, id)
        return self._nodes[id]

    def group(self, ids: Iterable[int] | None = None) -> Group:
        """A group of these nodes, in no round; of all that are online if None."""
        return Group(self, self.online if ids is None else ids)

    def rng(self, name: str, *key: int) -> np.random.Generator:
        """A named random stream of this run."""
        return self.streams.rng(name, *key)

    def initial_params(self) -> Tensor:
        """[P], the same for every strategy of a seed."""
        return self.fleet.initial

    def numbers(self, name: str, start: float | Sequence[float] = 0.0) -> np.ndarray:
        """A number of each node under a name, float64 [N], to read and to write in place.

        Args:
            start: what it is at first, of all nodes or of each; that of a node that leaves is set
                back to it, as its rows are.
        """
        if name not in self._numbers:
            first = np.array(np.broadcast_to(np.asarray(start, float), self.fleet.n_nodes))
            self._numbers[name] = first, first.copy()
        return self._numbers[name][1]

    @cached_property
    def overlay(self) -> nx.Graph:
        """Who talks to whom in gossip, on the nodes 0..N-1."""
        return self._make_overlay()

    def neighbors(self, node: int) -> list[int]:
        """The nodes next to one in the overlay, ascending."""
        return sorted(self.overlay.neighbors(node))

    @property
    def tokens(self) -> float:
        """Tokens of the workload processed by all nodes together."""
        return float(self.completed.sum()) * self.workload.tokens_per_step

    @property
    def spent(self) -> bool:
        """The budget is used up: the run ends when the next round opens.

        A strategy that keeps reductions in flight between rounds waits for them before.
        """
        return self.budget.spent(self) >= 1

    def program(self, generator: Program) -> simpy.Process:
        """A process whose own wall time is counted as the strategy's."""
        return self.process(self.profile.program(generator))

    def record(self, kind: str, **fields: Any) -> None:
        """Append one record to the trace."""
        with self.profile("records"):
            self.trace.record(kind, **fields)

    # -- what time things cost ----------------------------------------------------------------

    def compute(
        self,
        ids: np.ndarray,
        steps: int,
        *,
        trains: bool,
        single: bool,
        gates: Mapping[Fragment, simpy.Event] | None = None,
    ) -> Work:
        """Queue gradients or local steps; their durations are known now, their values later.

        A device does one thing at a time: what a node had not finished is dropped. With `gates`,
        even if there are none in it, the maths sees the rows of when it ends.
        """
        with self.profile("events"):
            busy = [self._working[i] for i in ids.tolist() if i in self._working]
            for work in dict.fromkeys(busy):
                work.drop(ids.tolist())
            request = self.fleet.request(ids, steps, trains=trains, held=gates is not None)
            flops = self.workload.flops_per_step
            gradient = self.devices.seconds(flops, ids, request.first_steps, count=steps)
            extra = self._debt[ids]
            if trains:
                extra = extra + self._memory_seconds(self._local.passes * steps, ids)
                extra += self._local.flops * steps / self.devices.speed[ids]
            self._debt[ids] = 0.0
            finish = self.now + extra + gradient
            work = Work(self, request, finish, gradient, single=single, gates=gates)
            self._working.update(dict.fromkeys(ids.tolist(), work))
            return work

    def charge_step(self, ids: np.ndarray, fragment: Fragment | None = None) -> None:
        """The nodes' parameters were set: the memory traffic of that delays what they do next."""
        share = 1.0 if fragment is None else self._share(fragment.charged)
        self._debt[ids] += self._memory_seconds(self._step_passes * share, ids)

    def pay(self, node: int) -> float:
        """Seconds that a node still owes for its memory traffic; they are settled."""
        owed, self._debt[node] = float(self._debt[node]), 0.0
        return owed

    def codec_seconds(
        self, codec: Compressor | Aggregation, ids: np.ndarray, charged: Layout | None = None
    ) -> np.ndarray:
        """Seconds on each node that encoding or decoding a payload, or combining a row, takes, [n].

        Args:
            charged: the tensors of the workload that it holds; all of them if None.
        """
        return self._memory_seconds(codec.passes * self._share(charged), ids)

    def charged_sizes(self, payload: Payload, fragment: Fragment | None = None) -> list[int]:
        """Bytes that each row of a payload is charged; by its density if data decides its size."""
        if not payload.codec.sized_by_data:
            charged = None if fragment is None else fragment.charged
            return [self.workload.nbytes(payload.codec, charged)] * payload.n
        trained, charged = self.fleet.layout, None
        if fragment is not None:
            trained, charged = fragment.layout, fragment.charged
        return [
            self.workload.density_nbytes(payload.codec, 8 * size / trained.numel, charged)
            for size in payload.sizes
        ]

    def _share(self, charged: Layout | None) -> float:
        """A part of the parameters that the clock charges."""
        return 1.0 if charged is None else charged.numel / self.workload.layout.numel

    def _memory_seconds(self, passes: float, ids: np.ndarray) -> np.ndarray:
        """Seconds of touching the workload's parameters `passes` times in float32, [n]."""
        return self.devices.memory_seconds(passes * self._row_bytes, ids)

    # -- the run, and who is in it ------------------------------------------------------------

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher.leave(node)` of every departure until `unwatch`."""
        self._watchers[id(watcher)] = watcher

    def unwatch(self, watcher: Watcher) -> None:
        """Stop telling a watcher of departures."""
        self._watchers.pop(id(watcher), None)

    def open_round(self, ids: Iterable[int]) -> Group:
        """A group in a new round; coordinators call it, and the model is evaluated before it."""
        self.progress.boundary()
        members, self.fleet.round = sorted(ids), self.rounds
        group = Group(self, members, Round(self, self.rounds, members))
        if not self.done.triggered:  # else nothing of this round will happen any more
            who = {"number": self.rounds, "members": len(members), "ids": tuple(members)}
            self.record("round", time=self.now, **who)
            self.rounds += 1
        return group

    def admit(self, node: int) -> None:
        """A node holds the shared state and may be in rounds from now on; coordinators call it."""
        self.strategy.admit(self, node)
        self._change()

    def _begin(self, sessions: pd.DataFrame) -> None:
        starts = sessions[sessions["start"] <= 0]
        self.online = frozenset(int(i) for i in starts["node"])
        self._online_since[list(self.online)] = 0.0
        for node in sorted(set(range(self.fleet.n_nodes)) - self.online):
            self.network.leave(node)
        events = [(float(r.end), 0, int(r.node)) for r in sessions.itertuples()]
        events += [(float(r.start), 1, int(r.node)) for r in sessions.itertuples() if r.start > 0]
        horizon = self.budget.horizon
        self.process(self._sessions(sorted(e for e in events if e[0] < horizon)))

    def _sessions(self, events: list[tuple[float, int, int]]) -> Program:
        for at, together in groupby(events, key=lambda event: event[0]):
            yield self.timeout(max(0.0, at - self.now))
            for _, joins, node in together:
                self._join(node) if joins else self._leave(node)

    def _leave(self, node: int) -> None:
        self.online -= {node}
        self.left += 1
        self.departures[node] += 1
        self._online_seconds[node] += self.now - self._online_since[node]
        self.record("session", time=self.now, node=node, event="left")
        for watcher in list(self._watchers.values()):
            watcher.leave(node)
        self.network.leave(node)
        self.node(node).stop()
        self.fleet.forget(node)
        for first, numbers in self._numbers.values():
            numbers[node] = first[node]
        self._debt[node] = 0.0
        self.coordinator.depart(node)
        self._change()

    def _join(self, node: int) -> None:
        self.online |= {node}
        self.joined += 1
        self._online_since[node] = self.now
        self.record("session", time=self.now, node=node, event="joined")
        self.network.join(node)
        self.coordinator.arrive(node)
        self._change()

    def _change(self) -> None:
        changed, self.membership_changed = self.membership_changed, self.event()
        changed.succeed()

    def restart(self) -> None:
        """Nobody holds the shared state any more: training begins again from the start."""
        if self.completed.any():  # else there was nothing to lose
            self.record("session", time=self.now, node=-1, event="state lost")
        self.restarts += 1
        self.shared.clear()
        self.shared.update(self.strategy.init(self))

    def start(self) -> None:
        """Let the strategy and the coordinator begin; then `run(until=sim.done)`."""
        self.shared.update(self.strategy.init(self))
        self.coordinator.start(self)
        self.strategy.start(self)
        for node in sorted(self.online):
            self.strategy.admit(self, node)
        if math.isfinite(self.budget.horizon):
            self.timeout(self.budget.horizon).callbacks.append(self.progress.end)
        self.progress.evaluate()

    def online_seconds(self) -> np.ndarray:
        """Seconds that each node has been online so far, [N]."""
        running = np.where(np.isnan(self._online_since), 0.0, self.now - self._online_since)
        here = np.isin(np.arange(self.fleet.n_nodes), list(self.online))
        return self._online_seconds + np.where(here, running, 0.0)
