"""What several TCP connections get through a shaper with a short queue: a model, not a fit.

On very slow links the queue of a shaper holds few frames per connection. Windows are then so small
that losses are repaired by timeouts instead of fast retransmissions, and a connection pauses for
some hundred milliseconds each time. The link idles while *all* of its connections pause.

Per connection (Padhye, Firoiu, Towsley, Kurose, SIGCOMM 1998, equation 30), with loss rate p, b
segments per acknowledgement and timeout T0, the time per segment is

    RTT sqrt(2 b p / 3)  +  T0 min(1, 3 sqrt(3 b p / 8)) p (1 + 32 p^2)

of which the second term is spent in timeouts; p is the loss rate at which the window W that fills
the queue is reached, W = sqrt(8 / (3 b p)) (Mathis et al., CCR 1997). The share e of time that a
connection is active is the first term over both. That connections pause independently of each
other, so that the link is busy a share 1 - (1 - e)^N of the time, is this module's assumption.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Shaper:
    """A queue and the connections that share it.

    The defaults are published constants: NCCL opens 2 threads x 8 sockets per peer on AWS (its
    manual, NCCL_NSOCKS_PERTHREAD); 9,001 bytes is the MTU of an AWS placement group; 200 ms is
    Linux's least retransmission timeout; 2 segments are RFC 5681's least window after a loss.

    Args:
        queue: seconds that the queue can hold.
        connections: TCP connections that share it.
        mtu: bytes of a frame.
        least_timeout: seconds that a retransmission timeout is above the round-trip time.
        per_ack: segments that one acknowledgement confirms.
    """

    queue: float = 0.05
    connections: int = 16
    mtu: int = 9001
    least_timeout: float = 0.2
    per_ack: int = 2

    def utilisation(self, rate: float) -> float:
        """Share of `rate` (bytes/s) that the connections fill, in (0, 1].

        >>> shaper = Shaper()
        >>> round(shaper.utilisation(125e6), 6), round(shaper.utilisation(50e6 / 8), 2)
        (1.0, 0.84)
        """
        window = max(rate * self.queue / self.mtu / self.connections, 2.0)
        loss = 8.0 / (3.0 * self.per_ack * window**2)
        moving = self.queue * math.sqrt(2.0 * self.per_ack * loss / 3.0)
        timeouts = min(1.0, 3.0 * math.sqrt(3.0 * self.per_ack * loss / 8.0))
        timeouts *= (self.least_timeout + self.queue) * loss * (1.0 + 32.0 * loss**2)
        idle = timeouts / (moving + timeouts)
        return float(1.0 - idle**self.connections)
