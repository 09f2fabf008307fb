"""Options: how a network shares its links, acts together, and copes with losses.

What a run may choose beside its topology, in one place; `sim.network.network.Network` says what
each of them does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sim.network.arguments import check_approximate, check_choice, check_connections
from sim.network.ring_order import ORDERS
from sim.network.schedules import ALGORITHMS
from sim.network.sharing import MaxMin, Sharing
from sim.units import Quantity, seconds, size

CHOICES = {
    "all_reduce": ["ring", "hierarchical", *ALGORITHMS],
    "all_gather": ["ring", "mesh"],
    "failure": ["shrink", "abort", "wait", "retry"],
    "ring_order": ["given", *ORDERS],
}
"""What these options may be."""


@dataclass(frozen=True)
class NetworkOptions:
    """Arguments of a network that is yet to be built.

    Args:
        sharing: whose share of a link is how large.
        approximate: 0 is exact; 2e-4 solves shared bottlenecks less often.
        connections: how many connections a transfer, or a hop of a collective, opens.
        all_reduce, all_gather: the algorithm of these collectives.
        failure: what a loss does to a collective.
        detection: time until a loss is noticed.
        patience: time after a loss at which a collective that waits gives up.
        ring_order: in which order members form rings.
        probe_bytes: 0 knows what hops take for free; otherwise transfers of so many bytes measure.
        header_bytes: bytes added to each message.
        message_bytes: up to so many bytes, what a node sends is a message without a share of links.
        rto: time until a lost message is sent again.
        attempts: how often a message is tried.
    """

    sharing: Sharing = field(default_factory=MaxMin)
    approximate: float = 0.0
    connections: int = 1
    all_reduce: str = "ring"
    all_gather: str = "ring"
    failure: str = "shrink"
    detection: Quantity = "10s"
    patience: Quantity = "1min"
    ring_order: str = "given"
    probe_bytes: Quantity = 0
    header_bytes: Quantity = 0
    message_bytes: Quantity = 0
    rto: Quantity = "200ms"
    attempts: int = 10

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        check_approximate(self.approximate)
        check_connections(self.connections)
        if self.attempts < 1:
            raise ValueError(f"attempts={self.attempts}: expected 1 or more")
        for name in ("detection", "patience", "rto"):
            object.__setattr__(self, name, seconds(getattr(self, name), name))
        for name in ("header_bytes", "message_bytes", "probe_bytes"):
            object.__setattr__(self, name, size(getattr(self, name), name))
