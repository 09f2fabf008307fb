"""Ways: the route of a transfer, in the few numbers that starting one needs.

A transfer is made in a microsecond or two, so nothing is built for it: its route is an access
link, a piece of an array of links, and an access link.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.network.fluid import Links
from sim.network.routes import NoRoute, Routes

Way = tuple[tuple[int, int, int, int], float, float]
"""(link or -1, first, count, link or -1) as `Links.flow` takes it; seconds; bytes/s of one flow."""

_ITSELF: Way = ((-1, 0, 0, -1), 0.0, float("inf"))


class Ways:
    """Routes over `routes` whose pieces lie in `links.core`."""

    def __init__(self, routes: Routes, links: Links) -> None:
        self._routes, self._links = routes, links
        latency, cap = routes.latency, routes.flow_bandwidth
        self._gate = scalars(routes.gate)
        self._up, self._down = scalars(routes.access_up), scalars(routes.access_down)
        self._latency = scalars(np.append(latency, 0.0))  # the last one is of no link: -1
        self._cap = scalars(np.append(cap, np.inf))
        self._stride = int(routes.gate.max(initial=0)) + 1
        self.clear()

    def clear(self) -> None:
        """Links went up or down: find everything again."""
        self._pieces: dict[int, tuple[int, int, float, float]] = {}
        self._version = self._routes.version
        self._cut = not self._routes.up.all()

    def find(self, src: int, dst: int) -> Way:
        """The route from one host to another.

        Raises:
            NoRoute: links that are down leave no path.
            ValueError: the graph has none.
        """
        if src == dst:
            return _ITSELF
        up, down = self._up[src], self._down[dst]
        if self._cut:
            for link in (up, down):
                if link >= 0 and not self._routes.up[link]:
                    raise NoRoute(f"no route from {src} to {dst}: links are down")
        a, b = self._gate[src], self._gate[dst]
        piece = self._pieces.get(a * self._stride + b)
        if piece is None:
            piece = self._find(src, dst, a, b)
        first, count, latency, cap = piece
        latency += self._latency[up] + self._latency[down]
        return (up, first, count, down), latency, min(cap, self._cap[up], self._cap[down])

    def _find(self, src: int, dst: int, a: int, b: int) -> tuple[int, int, float, float]:
        routes = self._routes
        try:
            core = routes.core(a, b)
        except ValueError:
            routes.route(src, dst)  # names the hosts, not the gates
            raise
        if routes.version != self._version:
            self.clear()
        if self._links.core is not routes.core_links:
            self._links.core = routes.core_links
        first, last = routes.core_ptr[core : core + 2].tolist()
        piece = first, last - first, float(routes.core_latency[core]), float(routes.core_cap[core])
        self._pieces[a * self._stride + b] = piece
        return piece


def scalars(array: np.ndarray) -> Any:
    """An array whose items are read and written as Python numbers, quickly; it shares memory."""
    return memoryview(array)  # type: ignore[arg-type]
