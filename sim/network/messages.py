"""Messages: small traffic that is timed without taking part in the sharing of links.

A message takes the latency of its path plus its bytes over the slowest link of it, as if nothing
else were there, and costs one event. Right for control traffic, heartbeats, and gossip of few
bytes; it neglects what the message takes from others and what others take from it, so it is wrong
for whatever is a good part of a link's capacity: use a transfer there.

On links with a `loss` each attempt is lost with the probability 1 - prod(1 - loss) over the path;
it is sent again after a timeout that doubles each time. Acknowledgements are free and never lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import simpy

from sim.network.routes import NoRoute

if TYPE_CHECKING:
    from sim.network.network import Network


class Message(simpy.Event):
    """A message on its way; fires once, with whether it was delivered.

    Attributes:
        src, dst, nbytes: as it was sent.
        lost: attempts that were lost.
    """

    def __init__(self, network: Network, src: int, dst: int, nbytes: float) -> None:
        super().__init__(network.env)
        self.network, self.src, self.dst, self.nbytes = network, src, dst, nbytes
        self.lost = 0
        self._ok, self._value = True, False

    def fire(self, delay: float, size: float, delivered: bool) -> None:
        """Fire after a delay, with `size` bytes moved in each attempt."""
        if size > 0.0 or delivered:
            self.callbacks.append(lambda _: self._arrive(size, delivered))
        self.env.schedule(self, delay=delay)

    def _arrive(self, size: float, delivered: bool) -> None:
        """Count, and see whether the receiver is still there; before any other callback."""
        network, attempts = self.network, self.lost + delivered
        self._value = bool(delivered and network.online[self.dst])
        if self.src != self.dst:
            zero, nbytes = np.zeros(1), np.array([size])
            network.count([self.src], attempts * nbytes, zero)
            network.count([self.dst], zero, delivered * nbytes)
            network.waste(self.src, (attempts - self._value) * size)


class Messages:
    """Sends the messages of a network.

    Args:
        network: whose links, settings and counters.
        rng: which attempts are lost; needed only where links lose some.
    """

    def __init__(self, network: Network, rng: np.random.Generator | None) -> None:
        self._network, self._rng = network, rng

    def send(self, src: int, dst: int, nbytes: float) -> Message:
        """A message; lost at once if an end is offline or no path is left, as transfers are."""
        network, message = self._network, Message(self._network, src, dst, nbytes)
        try:
            links, latency, cap = network.routes.route(src, dst)
        except NoRoute:
            message.fire(0.0, 0.0, False)
            return message
        if not network.online[[src, dst]].all():
            message.fire(0.0, 0.0, False)
            return message
        size = nbytes + network.header_bytes
        rate = min(cap, float(network.links.capacity[links].min(initial=np.inf)))
        if rate <= 0.0:  # a link without capacity: never
            message.fire(0.0, 0.0, False)
            return message
        message.lost = self._losses(links)
        wait = max(network.rto, 4.0 * latency)  # twice the way there and back
        waits = wait * (2.0**message.lost - 1.0)
        delivered = message.lost < network.attempts
        one_way = latency + size / rate if delivered else 0.0
        message.fire(waits + one_way, size, delivered)
        return message

    def _losses(self, links: np.ndarray) -> int:
        """How many attempts are lost before one arrives, or until giving up."""
        network = self._network
        kept = float(np.prod(1.0 - network.routes.loss[links]))
        if kept >= 1.0:
            return 0
        if self._rng is None:
            raise ValueError("links have a loss: expected attach(..., rng=a generator)")
        if kept <= 0.0:
            return network.attempts
        return min(int(self._rng.geometric(kept)) - 1, network.attempts)
