"""Spectral gaps of topologies: ours beside independent computations of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import networkx as nx
import numpy as np
from threadpoolctl import threadpool_limits

from experiments.validate.columns import DATA, Line, read
from experiments.validate.row import Row
from topologies import exponential, ring, torus
from topologies.weights import spectral_gap, uniform_weights

COLUMNS = ("nodes", "topology", "value", "formula")
_PRINTED = 1e-5
"""Relative; the values are printed to six digits."""
_MOST = 2048


def rows() -> list[Row]:
    """The shipped values; a case that must fail; and the ring's law in closed form."""
    shipped = judge(DATA / "topology_spectral_gaps_computed.csv")
    return [*shipped, *(_ring_law(n) for n in (16, 256)), _no_power_of_two()]


def judge(path: str | Path) -> list[Row]:
    """A row for each of a file's.

    Raises:
        ValueError: an unknown topology, or an impossible value; names file and row.
    """
    # One thread: several on a busy machine wait for each other far longer than the sums take.
    with threadpool_limits(1, "blas"):
        return [_row(line) for line in read(path)]


def _row(line: Line) -> Row:
    n, name = line.count("nodes", 2, _MOST), line.text("topology")
    quantity = next((f for key, f in _QUANTITIES.items() if name.startswith(key)), None)
    if quantity is None:
        raise ValueError(f"{line.where}: topology={name!r}: expected one of {list(_QUANTITIES)}")
    value = line.number("value")
    exact = value == 0.0
    return Row(
        f"{name}, {n} nodes" if exact else f"spectral gap: {name}, {n} nodes",
        quantity(n),
        value,
        1e-12 if exact else _PRINTED,
        line.text("formula").split(" (")[0],
        "formula",
        relative=not exact,
    )


def _ring_law(n: int) -> Row:
    law = 1.0 - (1.0 + 2.0 * math.cos(2.0 * math.pi / n)) / 3.0
    gap = spectral_gap(uniform_weights(ring(n)))
    return Row(
        f"spectral gap: ring, {n} nodes", gap, law, 1e-9, "1 - (1 + 2 cos(2 pi/n)) / 3", "formula"
    )


def _no_power_of_two() -> Row:
    """24 is no power of two: after 5 rounds one-peer averaging must still be off."""
    return Row(
        "one-peer exponential is not exact for 24 nodes: 1 if so",
        float(_one_peer(24) > 1e-6),
        1.0,
        0.0,
        "arXiv 2110.13363: exact only for powers of two",
        "property",
        relative=False,
    )


def _one_peer(n: int) -> float:
    """Largest error of a node's mean after ceil(log2 n) rounds, in each of which one is heard."""
    product = np.eye(n)
    for k in range((n - 1).bit_length()):
        graph = nx.DiGraph()
        graph.add_nodes_from(range(n), kind="host")
        graph.add_edges_from((i, (i + 2**k) % n) for i in range(n))
        product = uniform_weights(graph) @ product
    return float(np.abs(product - 1.0 / n).max())


def _torus(n: int) -> float:
    side = math.isqrt(n)
    if side * side != n:
        raise ValueError(f"nodes={n}: a square torus has a square number of them")
    return spectral_gap(uniform_weights(torus(side, side)))


_QUANTITIES: dict[str, Callable[[int], float]] = {
    "ring": lambda n: spectral_gap(uniform_weights(ring(n))),
    "static exponential": lambda n: spectral_gap(uniform_weights(exponential(n))),
    "2-D torus": _torus,
    "one-peer exponential": _one_peer,
}
"""By how the name of a topology begins."""
