"""Node: the API that asynchronous strategies are written in, one generator per node."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import simpy
from torch import Tensor

from sim.compute.layout import Fragment
from sim.compute.work import Program
from sim.delivery import Delivery, Message
from sim.payload import Compressor, Payload
from sim.rows import Lazy, Rows

if TYPE_CHECKING:
    from sim.simulation import Simulation

DEPARTURE = "departure"
"""Cause of the interrupt that ends the processes of a node that leaves."""


class NodeRows(Rows):
    """The rows of one node, or some columns of them: one block, for which no worker is asked."""

    def __init__(self, sim: Simulation, id: int, fragment: Fragment | None = None) -> None:
        super().__init__(sim, [id], single=True, fragment=fragment)

    def encode(self, compressor: Compressor, x: Lazy | Tensor) -> Payload:
        """Encode its row [1, P]; the codec's state is kept by the fleet."""
        fleet = self.sim.fleet
        if fleet.shard.exchanges:
            return super().encode(compressor, x)
        rows = x.block(self.index) if isinstance(x, Lazy) else x
        return fleet.encode(compressor, self.index, rows, self.fragment)


class Node(NodeRows):
    """A simulated machine with a device and a link that hosts one replica."""

    def __init__(self, sim: Simulation, id: int) -> None:
        super().__init__(sim, id)
        self.id = id
        self.rng: np.random.Generator = sim.rng("node", id)
        self._inbox: dict[str, deque[Message]] = {}
        self._waiting: dict[str, deque[simpy.Event]] = {}
        self._processes: list[simpy.Process] = []

    @property
    def params(self) -> Tensor:
        """A copy of the node's parameters, [P]; assign to write them."""
        return self.sim.fleet.row("params", self.id).clone()

    @params.setter
    def params(self, value: Tensor) -> None:
        self["params"] = value[None]

    @property
    def neighbors(self) -> list[int]:
        """The nodes next to it in the overlay that are online and hold the state, ascending."""
        online, ready = self.sim.online, self.sim.coordinator.ready
        return [j for j in self.sim.neighbors(self.id) if j in online and j in ready]

    def part(self, fragment: Fragment) -> Rows:
        """The same node, of whose rows only a fragment's columns are meant and charged."""
        return NodeRows(self.sim, self.id, fragment)

    def send(
        self,
        dst: int,
        x: Tensor | Lazy | Payload,
        tag: str = "",
        fragment: Fragment | None = None,
    ) -> simpy.Event:
        """Send a tensor [P] (dense) or a payload; what it holds is fixed now.

        Args:
            fragment: the columns that the payload holds, which are what the clock charges.

        Returns:
            An event: True on delivery, False if the message was lost. It never fails.
        """
        payload = self._payload(x)
        charged = None if fragment is None else fragment.charged
        encoding = float(self.sim.codec_seconds(payload.codec, self.index, charged)[0])
        seconds = self.sim.pay(self.id) + encoding
        message = Message(self.id, tag, payload, self.sim.now)
        return Delivery(self.sim, int(dst), message, seconds, fragment)

    def recv(self, tag: str = "", timeout: float | None = None) -> simpy.Event:
        """The next message with this tag, or None once `timeout` seconds have passed."""
        event = self.sim.event()
        inbox = self._inbox.setdefault(tag, deque())
        if inbox:
            return event.succeed(inbox.popleft())
        waiting = self._waiting.setdefault(tag, deque())
        waiting.append(event)
        if timeout is not None:

            def give_up(_: simpy.Event) -> None:
                if not event.triggered:
                    waiting.remove(event)
                    event.succeed(None)

            timer = self.sim.timeout(timeout)
            timer.callbacks.append(give_up)
            # A timer lives until it is due: without this it would keep the message alive as long.
            event.callbacks.append(partial(_cancel, timer, give_up))
        return event

    def process(self, generator: Program) -> simpy.Process:
        """Run a generator that dies with the node."""
        process = self.sim.process(self._mortal(self.sim.profile.program(generator)))
        self._processes = [p for p in self._processes if p.is_alive]
        self._processes.append(process)
        return process

    def stop(self) -> None:
        """End the node's processes and empty its inbox; the simulation calls it at departure."""
        for process in self._processes:
            if process.is_alive:
                process.interrupt(DEPARTURE)
        self._processes.clear()
        self._inbox.clear()
        self._waiting.clear()

    def deliver(self, message: Message) -> None:
        """Put a message into the inbox, or hand it to whoever waits for its tag."""
        waiting = self._waiting.get(message.tag)
        if waiting:
            waiting.popleft().succeed(message)
        else:
            self._inbox.setdefault(message.tag, deque()).append(message)

    def _payload(self, x: Tensor | Lazy | Payload) -> Payload:
        if isinstance(x, Payload):
            return x
        rows = x.tensor() if isinstance(x, Lazy) else (x[None] if x.dim() == 1 else x)
        return self.encode(self.sim.dense, rows.clone())

    @staticmethod
    def _mortal(generator: Program) -> Program:
        try:
            return (yield from generator)
        except simpy.Interrupt as interrupt:
            if interrupt.cause != DEPARTURE:
                raise


def _cancel(timer: simpy.Event, callback: Callable[[simpy.Event], None], _: simpy.Event) -> None:
    """Take a callback off a timer that has not fired."""
    if timer.callbacks is not None:
        timer.callbacks.remove(callback)
