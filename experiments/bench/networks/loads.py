"""Random platforms and flows on them: what both engines are timed on.

Access speeds are those of a few classes, 10 to 1000 Mbit/s, 20 % up or down at random; a host
receives 1 to 10 times as fast as it sends. Sizes are log-uniform, 1 to 100 MB. All flows start at
once, and there is no latency.

Legend: N hosts, L links, F flows.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy import ndarray

_MBIT = 1e6 / 8
_CLASSES = np.array([10.0, 20.0, 50.0, 100.0, 1000.0]) * _MBIT
_DOWN_OVER_UP = np.array([1.0, 2.0, 5.0, 10.0])
_REGIONS = 8


@dataclass(frozen=True, eq=False)
class Load:
    """A platform whose routes are the links out of the sender and those into the receiver.

    Attributes:
        name: of the platform, for people.
        capacity: bytes/s, float64 [L].
        out, into: links that all which a host sends, or receives, crosses; int64 [N, any].
        src, dst: hosts of each flow, int64 [F].
        nbytes: float64 [F].
    """

    name: str
    capacity: ndarray
    out: ndarray
    into: ndarray
    src: ndarray
    dst: ndarray
    nbytes: ndarray

    def routes(self) -> list[ndarray]:
        """Links of each flow."""
        return list(np.concatenate([self.out[self.src], self.into[self.dst]], axis=1))


def private_access(n_flows: int, n: int, seed: int = 0) -> Load:
    """Nothing is shared but the hosts' own links."""
    rng = np.random.default_rng([seed, n])
    up, down = _access(n, rng)
    hosts = np.arange(n)[:, None]
    capacity = np.concatenate([up, down])
    return Load("private access links", capacity, hosts, n + hosts, *_flows(n_flows, n, rng))


def regional(n_flows: int, n: int, seed: int = 0) -> Load:
    """Eight regions: up to a region's router, over one backbone, down from a region's router.

    A region has a third of what its hosts can send, the backbone a sixth of what all can.
    """
    rng = np.random.default_rng([seed, n])
    up, down = _access(n, rng)
    region = rng.permutation(np.arange(n) % _REGIONS)
    shared = np.bincount(region, up, _REGIONS) / 3
    hosts, ups = np.arange(n), 2 * n + region
    backbone = np.full(n, 2 * n + 2 * _REGIONS)
    out = np.stack([hosts, ups, backbone], axis=1)
    into = np.stack([ups + _REGIONS, n + hosts], axis=1)
    capacity = np.concatenate([up, down, shared, shared, [up.sum() / 6]])
    return Load("regional and backbone links", capacity, out, into, *_flows(n_flows, n, rng))


def one_backbone(n_flows: int, n: int, seed: int = 0) -> Load:
    """One link with a twentieth of what all hosts can send binds nearly every flow."""
    rng = np.random.default_rng([seed, n])
    up, down = _access(n, rng)
    hosts = np.arange(n)
    out = np.stack([hosts, np.full(n, 2 * n)], axis=1)
    capacity = np.concatenate([up, down, [up.sum() / 20]])
    flows = _flows(n_flows, n, rng)
    return Load("one link binds all", capacity, out, n + hosts[:, None], *flows)


def access_graph(n: int, latency: float = 0.0, seed: int = 0) -> nx.DiGraph:
    """The hosts of `private_access` around one router, as a graph; latency (s) on the up links."""
    up, down = _access(n, np.random.default_rng([seed, n]))
    graph = nx.DiGraph()
    graph.add_nodes_from(range(n), kind="host")
    graph.add_node(n, kind="router")
    for host, (faster, slower) in enumerate(zip(down.tolist(), up.tolist())):
        graph.add_edge(host, n, bandwidth=slower, latency=latency)
        graph.add_edge(n, host, bandwidth=faster, latency=0.0)
    return graph


def sizes(n: int, rng: np.random.Generator) -> ndarray:
    """Bytes of n flows, log-uniform from 1 to 100 MB."""
    return np.round(10.0 ** rng.uniform(6.0, 8.0, n))


def _access(n: int, rng: np.random.Generator) -> tuple[ndarray, ndarray]:
    """Up and down of n hosts, bytes/s."""
    up = rng.choice(_CLASSES, n) * rng.uniform(0.8, 1.2, n)
    return up, up * rng.choice(_DOWN_OVER_UP, n)


def _flows(n_flows: int, n: int, rng: np.random.Generator) -> tuple[ndarray, ndarray, ndarray]:
    """src, dst, nbytes: random pairs of different hosts."""
    src = rng.permutation(np.arange(n_flows) % n)
    dst = (src + rng.integers(1, n, n_flows)) % n
    return src, dst, sizes(n_flows, rng)
