"""Gossip averaging alone: how fast nodes agree, per round and per second of a network.

Each of n nodes holds a vector of independent standard normal numbers. In a round everybody sends
its vector to its neighbours of the overlay and takes the weighted mean of what it has. The error
is the distance to the mean of all, relative to that at the start.

Legend: n nodes, P columns, W mixing matrix [n, n] (`topologies.weights`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import simpy
from scipy import sparse

from sim import units
from sim.network.network import Network
from sim.streams import Streams
from topologies.weights import spectral_gap

Mixing = Sequence[sparse.csr_array]
"""Matrices that are used in turn, one a round; most graphs have one."""


def one_peer_exponential(n: int) -> Mixing:
    """In round k node i averages with what i - 2^(k mod log2 n) sends: exact after log2 n rounds.

    References:
        B. Ying, K. Yuan, Y. Chen, H. Hu, P. Pan, W. Yin, "Exponential graph is provably efficient
        for decentralized deep training", arXiv 2110.13363.

    Raises:
        ValueError: n is no power of two, for which alone it is exact.
    """
    bits = n.bit_length() - 1
    if n < 2 or n != 1 << bits:
        raise ValueError(f"n={n}: must be a power of two, such as {1 << max(bits, 1)}")
    own = sparse.eye_array(n, format="csr")
    shifts = [np.roll(np.eye(n), -(1 << k), axis=1) for k in range(bits)]
    return [((own + sparse.csr_array(shift)) / 2).tocsr() for shift in shifts]


def decades(mixing: Mixing) -> float:
    """Powers of ten by which a round shrinks the error in the long run: log10 |lambda_2|.

    NaN if the matrix changes from round to round, -inf if one round is exact.

    >>> from topologies import ring
    >>> from topologies.weights import metropolis_weights
    >>> round(decades([metropolis_weights(ring(4))]), 4)  # eigenvalues 1, 1/3, 1/3, -1/3
    -0.4771
    """
    if len(mixing) > 1:
        return float("nan")
    left = 1.0 - spectral_gap(mixing[0])
    return float(np.log10(left)) if left > 1e-12 else float("-inf")


def errors(
    mixing: Mixing, rounds: int, seed: int = 0, columns: int = 16, floor: float = 1e-9
) -> np.ndarray:
    """Error before the first and after each round, at most `rounds`; ends once it is < `floor`."""
    n = mixing[0].shape[0]
    x = Streams(seed).rng("consensus").standard_normal((n, columns))  # [n, P]
    mean = x.mean(axis=0)
    start = np.linalg.norm(x - mean)
    found = [1.0]
    while len(found) <= rounds and found[-1] >= floor:
        x = mixing[(len(found) - 1) % len(mixing)] @ x
        found.append(float(np.linalg.norm(x - mean) / start))
    return np.array(found)


def round_ends(graph: nx.Graph, mixing: Mixing, nbytes: units.Quantity, rounds: int) -> np.ndarray:
    """Seconds at which each round is over on a physical network, 0.0 first: [rounds + 1].

    A round ends when its last message has arrived; all its messages share the links.
    """
    size = units.size(nbytes, "nbytes", positive=True)
    pairs = [_pairs(matrix) for matrix in mixing]
    env, network = simpy.Environment(), Network(graph)
    network.attach(env)
    ends = [0.0]

    def run() -> Generator[simpy.Event, Any, None]:
        for number in range(rounds):
            yield network.exchange(pairs[number % len(pairs)], size)
            ends.append(env.now)

    env.run(env.process(run()))
    return np.array(ends)


def all_reduce_seconds(graph: nx.Graph, n: int, nbytes: units.Quantity) -> float:
    """Seconds of one ring all-reduce of the same vectors, after which everybody has the mean."""
    size = units.size(nbytes, "nbytes", positive=True)
    env, network = simpy.Environment(), Network(graph)
    network.attach(env)
    env.run(network.all_reduce(range(n), size))
    return float(env.now)


def compare(
    mixings: Mapping[str, Mixing],
    networks: Mapping[str, nx.Graph],
    nbytes: units.Quantity,
    rounds: int = 60,
    seeds: Iterable[int] = range(3),
) -> pd.DataFrame:
    """Errors of several overlays on several networks: one row per round.

    Columns: `network`, `topology`, `seed` (of the vectors), `round`, `time` (s), `error`.
    """
    paths = {
        (name, seed): errors(mixing, rounds, seed)
        for name, mixing in mixings.items()
        for seed in seeds
    }
    tables = []
    for place, graph in networks.items():
        for name, mixing in mixings.items():
            mine = {seed: path for (topology, seed), path in paths.items() if topology == name}
            ends = round_ends(graph, mixing, nbytes, max(map(len, mine.values())) - 1)
            for seed, path in mine.items():
                facts = {"network": place, "topology": name, "seed": seed}
                steps = {"round": range(len(path)), "time": ends[: len(path)], "error": path}
                tables.append(pd.DataFrame(facts | steps))
    return pd.concat(tables, ignore_index=True)


def reached(table: pd.DataFrame, error: float) -> pd.DataFrame:
    """When the error was first below a value: mean over seeds of `round` and `time`, NaN if never.

    One row per network and topology, in the order of the table.
    """
    there = table[table["error"] < error]
    first = there.groupby(["network", "topology", "seed"], sort=False)[["round", "time"]].min()
    mean = first.groupby(["network", "topology"], sort=False).mean()
    wanted = table.groupby(["network", "topology"], sort=False).size().index
    return mean.reindex(wanted)


def _pairs(matrix: sparse.csr_array) -> list[tuple[int, int]]:
    """(sender, receiver) of each message of a round."""
    entries = matrix.tocoo()
    links = zip(entries.col.tolist(), entries.row.tolist(), entries.data.tolist())
    return [(src, dst) for src, dst, weight in links if src != dst and weight != 0.0]
