"""Delivery: a message on its way from node to node, as a chain of callbacks.

Encoding, the network, decoding, the inbox: four events of SimPy and no process, since gossip sends
one with every step of every node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import simpy
from torch import Tensor

from sim.compute.layout import Fragment
from sim.payload import Payload

if TYPE_CHECKING:
    from sim.simulation import Simulation


@dataclass(frozen=True)
class Message:
    """A payload with its source, tag and time, as it lies in an inbox."""

    src: int
    tag: str
    payload: Payload
    sent_at: float
    """Simulated time of sending, s."""

    @property
    def value(self) -> Tensor:
        """The decoded tensor, [P]."""
        return self.payload.decode()[0]


class Delivery(simpy.Event):
    """Fires with whether the message reached the inbox; never fails.

    Args:
        sim: the run.
        dst: the receiver, online or not.
        message: what it gets.
        encoding: seconds until the first byte can leave.
        fragment: the columns that it holds; all of a row's if None.
    """

    def __init__(
        self,
        sim: Simulation,
        dst: int,
        message: Message,
        encoding: float,
        fragment: Fragment | None = None,
    ) -> None:
        super().__init__(sim)
        self._sim, self._dst, self._message, self._fragment = sim, dst, message, fragment
        self._left = self._departures()
        sim.timeout(encoding).callbacks.append(self._send)

    def _departures(self) -> tuple[int, int]:
        """How often the two ends have left so far."""
        departures = self._sim.departures
        return int(departures[self._message.src]), int(departures[self._dst])

    def _send(self, _: simpy.Event) -> None:
        if self._departures() != self._left:
            self.succeed(False)
            return
        network, payload = self._sim.network, self._message.payload
        size = self._sim.charged_sizes(payload, self._fragment)[0]
        send = network.message if size <= network.message_bytes else network.transfer
        send(self._message.src, self._dst, size).callbacks.append(self._arrive)

    def _arrive(self, sent: simpy.Event) -> None:
        if not sent.ok or sent.value is False:  # a transfer fails, a message says so
            self.succeed(False)
            return
        codec, dst = self._message.payload.codec, np.array([self._dst])
        charged = None if self._fragment is None else self._fragment.charged
        decoding = float(self._sim.codec_seconds(codec, dst, charged)[0])
        self._sim.timeout(decoding).callbacks.append(self._put)

    def _put(self, _: simpy.Event) -> None:
        sim = self._sim
        stayed = int(sim.departures[self._dst]) == self._left[1]
        here = stayed and self._dst in sim.coordinator.ready
        if here:
            sim.node(self._dst).deliver(self._message)
        self.succeed(here)
