"""Conformance kit for topologies: `check_topology(graph)` or `check_topology(factory)`.

Call it from a test of your own generator:

    def test_my_topology_conforms():
        check_topology(functools.partial(my_topology, 8))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import networkx as nx
from networkx.utils import graphs_equal

from topologies.links import validate

QUANTITIES = {"bandwidth": ("8Mbps", 1e6), "latency": ("5ms", 0.005)}


def check_topology(topology: nx.Graph | Callable[..., nx.Graph]) -> None:
    """Check a graph, or a factory that needs no further arguments.

    A graph must pass `topologies.links.validate` (ValueError otherwise). A factory must also, on
    pain of AssertionError,

    - return equal graphs when called twice (with the same seed, if it has a parameter `seed`),
      which share no state;
    - read `bandwidth` and `latency`, if it has these parameters, as quantities: "8Mbps" means the
      same as 1e6, and an unknown unit raises ValueError.
    """
    if isinstance(topology, nx.Graph):
        validate(topology)
        return
    seeded = {"seed": 7} if _has(topology, "seed") else {}
    first, second = topology(**seeded), topology(**seeded)
    validate(first)
    assert graphs_equal(first, second), "two calls with the same arguments differ"
    _check_unshared(first, second)
    for key, (text, number) in QUANTITIES.items():
        if _has(topology, key):
            _check_quantity(topology, key, text, number, seeded)


def _has(factory: Callable[..., nx.Graph], key: str) -> bool:
    return key in inspect.signature(factory).parameters


def _check_unshared(first: nx.Graph, second: nx.Graph) -> None:
    """Changing one result must not change the next one."""
    nodes = zip(first.nodes(data=True), second.nodes(data=True))
    assert all(a is not b for (_, a), (_, b) in nodes), "two results share node attributes"
    edges = zip(first.edges(data=True), second.edges(data=True))
    assert all(a is not b for (*_, a), (*_, b) in edges), "two results share link attributes"
    links = [data for _, _, data in first.edges(data=True)]
    assert len({id(data) for data in links}) == len(links), "two links share one attribute mapping"


def _check_quantity(
    factory: Callable[..., nx.Graph], key: str, text: str, number: float, seeded: dict[str, int]
) -> None:
    same = graphs_equal(factory(**{key: text}, **seeded), factory(**{key: number}, **seeded))
    assert same, f"{key}={text!r} differs from {key}={number}"
    try:
        factory(**{key: "8 parsecs"}, **seeded)
    except ValueError:
        return
    raise AssertionError(f"{key}='8 parsecs' was accepted; use sim.units")
