"""All-reduce in two levels: inside each site, across sites, and back inside.

1. A ring all-reduce inside each site; a site of one member has nothing to do.
2. When all sites have finished, a ring all-reduce among the first member of each.
3. In each site, a broadcast along a chain from that member.

Each part is a collective of its own, in the fidelity of the network, and meets losses by itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import simpy

from sim.network.collectives import Collective, Outcome

if TYPE_CHECKING:
    from sim.network.network import Network


class Hierarchical(Collective):
    """An all-reduce inside sites, then across them.

    Under the rule *shrink* the first member that is left of each site goes across. A site whose
    member is lost there is served by that of another site. A contributor is one whose site's
    share, with its own in it, is in the sum. Under the other rules a loss stops all parts.

    Args:
        sites: the site of each member; in the order of their first members.
    """

    def __init__(
        self,
        network: Network,
        members: Sequence[int],
        nbytes: float,
        ready: Mapping[int, simpy.Event],
        sites: Mapping[int, Hashable],
    ) -> None:
        super().__init__(network, "all_reduce", members, nbytes, members)
        self._ready, self._sites = ready, sites
        self._parts: dict[Collective, None] = {}
        self._reset()
        self._begin(ready)

    def _reset(self) -> None:
        self._started = self._complete = False
        self._inside: dict[Hashable, set[int]] = {}
        self._sum: set[int] = set()

    def _proceed(self) -> None:
        if not self._started:
            self._started = True
            self._go_inside()

    def _go_inside(self) -> None:
        for site in dict.fromkeys(self._sites[member] for member in self.alive):
            here = self._left_of(site)
            ready = {member: self._ready[member] for member in here if member in self._ready}
            part = self.network.ring_reduce("all_reduce inside", here, self.nbytes, ready)
            self._follow(part, site)
        self._next()

    def _next(self) -> None:
        """From one level to the next, when all parts are over."""
        if self._parts or self.triggered:
            return
        first = [here[0] for site in self._inside if (here := self._left_of(site))]
        if len(self._inside) == 1:  # everybody has the sum already
            (self._sum,) = self._inside.values()
        if self._sum or not first:
            self._complete = True
            self._finish()
        else:
            part = self.network.ring_reduce("all_reduce across", first, self.nbytes, {})
            self._follow(part, None)
            self._next()

    def _go_back(self, holders: list[int]) -> None:
        """Hand the sum from those that have it to their sites."""
        for site in self._inside:
            here = self._left_of(site)
            source = next((member for member in holders if member in here), holders[0])
            receivers = [source, *(member for member in here if member != source)]
            if len(receivers) > 1:
                part = self.network.chain_broadcast("broadcast inside", receivers, self.nbytes)
                self._follow(part, None)

    def _left_of(self, site: Hashable) -> list[int]:
        return [member for member in self.alive if self._sites[member] == site]

    def _follow(self, part: Collective, site: Hashable) -> None:
        self._parts[part] = None
        if part.triggered:
            self._over(part, site)
        else:
            part.callbacks.append(partial(self._part_over, part, site))

    def _part_over(self, part: Collective, site: Hashable, _: simpy.Event) -> None:
        if part in self._parts:
            self._over(part, site)
            self._next()

    def _over(self, part: Collective, site: Hashable) -> None:
        self._take(part)
        outcome = part.value
        assert isinstance(outcome, Outcome)
        contributors = set(outcome.contributors)
        if not contributors and self.network.failure != "shrink" and not self.triggered:
            self._halt()
            self._aborted = True
            self._finish()
        elif part.op == "all_reduce inside":
            self._inside[site] = contributors
        elif part.op == "all_reduce across" and contributors:
            holders = [member for member in self.alive if member in contributors]
            if holders:
                reached = {self._sites[member] for member in contributors}
                self._sum = set().union(*(self._inside[site] for site in reached))
                self._go_back(holders)

    def _take(self, part: Collective) -> None:
        """Its bytes are ours."""
        del self._parts[part]
        self._sent += part._sent
        self._wasted += part._wasted

    def _halt(self) -> None:
        for part in list(self._parts):
            part.cut()
            self._take(part)

    def _without(self, member: int) -> None:
        self._complete = len(self.alive) < 2

    def _abandon(self) -> None:
        self._halt()
        if not self._complete:
            self._waste_all()

    def _contributors(self) -> set[int]:
        if len(self.alive) < 2:
            return self._sum | set(self.alive)
        return self._sum if self._complete else set()


def site_of_each(
    by: str, gates: Sequence[int], places: Sequence[Mapping[str, Any]]
) -> dict[int, Hashable]:
    """The site of each host.

    Args:
        by: "router": hosts that hang on the same router are one site, any other host is one of its
            own; or the name of an attribute of the graph's hosts, such as "region".
        gates: of each host, its router or itself.
        places: attributes of each host.

    Raises:
        ValueError: a host lacks the attribute.

    >>> site_of_each("region", [2, 2], [{"region": "East US"}, {"region": "West Europe"}])
    {0: 'East US', 1: 'West Europe'}
    """
    if by == "router":
        return dict(enumerate(gates))
    for host, place in enumerate(places):
        if by not in place:
            known = ", ".join(["router", *(key for key in place if key != "kind")])
            raise ValueError(
                f"sites={by!r}: host {host} of the topology has no such attribute; choose one of "
                f"those it has: {known}"
            )
    return {host: place[by] for host, place in enumerate(places)}
