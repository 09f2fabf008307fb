"""Asynchronous DiLoCo: local steps, and a server that waits for nobody (Liu et al., 2401.09135)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from simpy import Event
from torch import Tensor

from optimizers.server_rules import ByStaleness, Equal, Pace, ServerRule
from optimizers.stamp import Header, bare, header_of, stamped
from optimizers.strategy import NodeState, NodeStrategy, Program
from sim.delivery import Message
from sim.node import Node
from sim.payload import Compressor, Dense
from sim.rows import mean_params
from sim.simulation import Simulation
from sim.units import Quantity, seconds

_HAIR = 1e-9
"""Seconds: a sum of floats may miss the end of a window by less."""


@dataclass(frozen=True)
class AsyncDiLoCo(NodeStrategy):
    """Asynchronous local SGD of arXiv 2401.09135, with its server as a node.

    A worker pulls the parameters of the server, makes local steps, pushes its outer gradient (the
    parameters that it pulled minus its own) and pulls again; nobody waits for anybody else. A push
    is stale by the pushes that the server has handled since its pull.

    A push that is not anchored at what the server gave out last is answered and not used: its
    sender did not hear the last answer, or the server has lost its state. A server that comes
    back has the parameters of a donor and no momentum.

    Args:
        inner_steps: H, local steps between pull and push of the fastest worker.
        rule: what becomes of a push, and how staleness weighs; see `optimizers.server_rules`.
        pace: `Equal()`, or `DyLU()` for fewer steps on slower workers.
        grace: after a first push the server waits so long (s) for who is due by then, by the
            mean speed of their device, and handles all of them before anyone starts again.
        server: id of the node that serves and does not train (it trains if it is the only one).
        compressor: how an outer gradient is written on the wire; parameters are sent as they are.
        patience: a worker that hears nothing for so long goes on from where it is; should be more
            than a push and its answer take.
    """

    inner_steps: int = 50
    rule: ServerRule = field(default_factory=ByStaleness)
    pace: Pace = field(default_factory=Equal)
    grace: Quantity = 0.0
    server: int = 0
    compressor: Compressor = field(default_factory=Dense)
    patience: Quantity = "10min"

    def __post_init__(self) -> None:
        if self.inner_steps < 1:
            raise ValueError(f"strategy.inner_steps={self.inner_steps}: must be >= 1")
        if self.server < 0:
            raise ValueError(f"strategy.server={self.server}: must be the id of a node, >= 0")
        object.__setattr__(self, "grace", seconds(self.grace, "strategy.grace"))
        patience = seconds(self.patience, "strategy.patience", positive=True)
        object.__setattr__(self, "patience", patience)

    @property
    def passes(self) -> float:
        return self.rule.passes + 3.0  # and the difference to the anchor

    @property
    def node_state(self) -> NodeState:
        return NodeState(sends=self.compressor, results=2)  # the anchor, and the difference to it

    def start(self, sim: Simulation) -> None:
        last = sim.fleet.n_nodes - 1
        if self.server > last:
            raise ValueError(f"strategy.server={self.server}: must be between 0 and {last}")
        self.rule.check(max(1, last))

    def node(self, node: Node) -> Program:
        if node.sim.fleet.n_nodes == 1:
            return self.alone(node)
        return self.serve(node) if node.id == self.server else self.work(node)

    def serve(self, node: Node) -> Program:
        """Handle pushes, one after another; then their senders start again."""
        server, grace = _Server(self, node), float(self.grace)
        while True:
            messages, senders, closing = (yield from server.arrivals()), set(), None
            while messages:
                for message in messages:
                    senders.add(message.src)
                    if server.handle(message) and closing is None:
                        closing = node.sim.now + grace
                messages = [] if closing is None else (yield from server.arrivals(closing))
            server.answer(sorted(senders))

    def work(self, node: Node) -> Program:
        """Pull, make local steps, push."""
        theta = node["params"].tensor()[0]  # no copy of a vector that all share
        version, steps, made = Header().version, self.inner_steps, 0
        node.send(self.server, bare(theta), "push")  # asks for the parameters
        message = yield node.recv("parameters", timeout=float(self.patience))
        while True:
            if message:  # a dead server or a lost message is not a deadlock
                theta = node["params"] = message.value  # held as it came: nobody writes it
                version, steps, _ = header_of(message)
                made = 0
            yield node.train(steps)
            made += steps
            message = yield from newest(node, "parameters")
            if message:  # late: it answers the push before, which has what this one would repeat
                continue
            delta = node.encode(self.compressor, (theta - node.params)[None])
            tokens = round(made * node.sim.workload.tokens_per_step)
            node.send(self.server, stamped(delta, Header(version, made, tokens)), "push")
            message = yield node.recv("parameters", timeout=float(self.patience))

    def alone(self, node: Node) -> Program:
        """Worker and server in one: Nesterov on outer gradients."""
        theta, state = node.params, self.rule.init(node.params)
        while True:
            node.sim.shared["params"] = theta
            yield node.train(self.inner_steps)
            grad = self.rule.weight(0, 1) * (theta - node.params)
            theta, state = self.rule.step(theta, grad, state, 1)
            node.params = theta

    def consensus(self, sim: Simulation) -> Tensor:
        """The server's parameters; the mean of those online while it is away."""
        return params_at(sim, self.server)


def params_at(sim: Simulation, server: int) -> Tensor:
    """The parameters [P] of a server; the mean of those online while it is away.

    A node that is alone trains, and keeps those that it would serve in `sim.shared`.
    """
    if sim.fleet.n_nodes == 1:
        return sim.shared["params"]
    return sim.node(server).params if server in sim.online else mean_params(sim)


def newest(node: Node, tag: str) -> Program:
    """The message that came last of those that lie in the inbox, or None; all are taken out."""
    last, message = None, (yield node.recv(tag, timeout=0))
    while message:
        last, message = message, (yield node.recv(tag, timeout=0))
    return last


class Roster:
    """The workers of a server: those that are there beside it, looked up when that has changed."""

    def __init__(self, server: Node) -> None:
        self._sim, self._server = server.sim, server.id
        self._since: Event | None = None
        self._ids: list[int] = []
        self._index = np.empty(0, np.int64)
        self._fastest = 0.0

    @property
    def index(self) -> np.ndarray:
        """Their ids, ascending, int64."""
        self._look_up()
        return self._index

    @property
    def ids(self) -> list[int]:
        """Their ids, ascending."""
        self._look_up()
        return self._ids

    @property
    def fastest(self) -> float:
        """The speed of the fastest of them; 0 if there are none."""
        self._look_up()
        return self._fastest

    def speed(self, node: int) -> float:
        """Local steps per second that the device of a node makes on average."""
        return float(self._sim.devices.speed[node]) / self._sim.workload.flops_per_step

    def _look_up(self) -> None:
        if self._since is not self._sim.membership_changed:
            self._since = self._sim.membership_changed
            self._ids = sorted(self._sim.online & self._sim.coordinator.ready - {self._server})
            self._index = np.array(self._ids, dtype=np.int64)
            self._fastest = max(map(self.speed, self._ids), default=0.0)


class _Server:
    """The server's state: parameters, what the rule keeps, and who is out with which version."""

    def __init__(self, strategy: AsyncDiLoCo, node: Node) -> None:
        self._strategy, self._node, self._sim = strategy, node, node.sim
        self._theta, self._version = node.params, 0
        self._state = strategy.rule.init(self._theta)
        self._out: dict[int, int] = {}  # version, by worker
        self._due = np.full(self._sim.fleet.n_nodes, np.inf)  # s, of those who are out
        self._workers = Roster(node)

    def arrivals(self, closing: float | None = None) -> Generator[Event, Any, list[Message]]:
        """What arrives next, in one instant, in order of senders.

        Nothing if nobody is due before the window closes, or nobody comes.
        """
        first = yield self._node.recv("push", None if closing is None else self._left(closing))
        found = []
        while first:
            found.append(first)
            first = yield self._node.recv("push", timeout=0)
        return sorted(found, key=lambda message: message.src)

    def handle(self, push: Message) -> bool:
        """Use an outer gradient; whether it is one, anchored at what its sender was given last."""
        base, steps, _ = header_of(push)
        version, self._due[push.src] = self._out.pop(push.src, None), np.inf
        if base != version:
            return False
        rule, workers = self._strategy.rule, max(1, len(self._workers.ids))
        staleness = self._version - base
        weight = rule.weight(staleness, workers)
        grad = weight * push.value
        self._theta, self._state = rule.step(self._theta, grad, self._state, workers)
        self._node["params"] = self._theta
        self._version += 1
        said = {"version": base, "staleness": staleness, "steps": steps, "weight": weight}
        self._sim.record("push", time=self._sim.now, node=push.src, sent=push.sent_at, **said)
        return True

    def answer(self, workers: Sequence[int]) -> None:
        """Send the parameters as they are now, and how many steps to make of them."""
        theta = self._node.encode(self._sim.dense, self._theta[None])
        for worker in workers:
            own = self._workers.speed(worker)
            fastest = max(own, self._workers.fastest)
            steps = self._strategy.pace.steps(self._strategy.inner_steps, own, fastest)
            self._out[worker] = self._version
            self._due[worker] = self._sim.now + steps / own
            self._node.send(worker, stamped(theta, Header(self._version, steps)), "parameters")

    def _left(self, closing: float) -> float:
        """Seconds to wait for those who are due until then; 0 if there are none."""
        if self._due[self._workers.index].min(initial=np.inf) > closing + _HAIR:
            return 0.0
        return max(0.0, closing + _HAIR - self._sim.now)
