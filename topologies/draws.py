"""Random draws of the generators: named streams, and graphs drawn until they are connected."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import networkx as nx
import numpy as np

from topologies.links import unlinked

DRAWS = 100


def stream(seed: int, name: str, *key: int) -> np.random.Generator:
    """A generator for (seed, name, key); the same arguments give the same draws."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed={seed!r}: must be an integer >= 0")
    return np.random.default_rng([int(seed), zlib.crc32(name.encode()), *key])


def connected(draw: Callable[[int], nx.Graph], name: str, seed: int, advice: str) -> nx.Graph:
    """The first connected graph among `draw(s)` for `DRAWS` integers s derived from `seed`.

    The graph has nodes 0 .. n-1 in ascending order. Plain integers are handed on because the
    graphs networkx draws from them depend less on its version than those from a Generator.

    Raises:
        ValueError: none of the draws is connected; the message is `advice`.
    """
    for attempt in range(DRAWS):
        graph = draw(int(stream(seed, name, attempt).integers(2**31)))
        if nx.is_connected(graph):
            return _in_order(graph)
    raise ValueError(f"no connected graph in {DRAWS} draws with seed={seed}; {advice}")


def _in_order(graph: nx.Graph) -> nx.Graph:
    """The same graph, listing its nodes in the order of their ids."""
    ordered = unlinked(nx.Graph, len(graph))
    ordered.update(nodes=graph.nodes(data=True), edges=graph.edges)
    return ordered
