"""Named and counter-based random streams: every draw in a run comes from one of these.

- A *named stream* `Streams(seed).rng("churn", 3)` is a numpy Generator whose state depends on the
  seed, the name and the key, and on nothing else: adding a stream never disturbs another.
- *Counter-based* draws `uniforms(seed, name, nodes, steps, count)` are a pure function of
  (seed, name, node, step): who shares a batch, and in which order, cannot change them.

Source of the mixer: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

from __future__ import annotations

import zlib

import numpy as np
from numba import njit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def name_key(name: str) -> int:
    """A stable 32-bit number for a stream's name (CRC-32; Python's `hash` changes per process)."""
    return zlib.crc32(name.encode())


class Streams:
    """The random streams of one run.

    Args:
        seed: any integer >= 0; equal seeds give equal streams.
    """

    def __init__(self, seed: int) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise ValueError(f"seed={seed!r}: must be an integer >= 0")
        self.seed = int(seed)

    def rng(self, name: str, *key: int) -> np.random.Generator:
        """A fresh generator for (seed, name, key); the same arguments give the same draws."""
        sequence = np.random.SeedSequence([self.seed, name_key(name), *(int(k) for k in key)])
        return np.random.Generator(np.random.PCG64(sequence))


def uniforms(seed: int, name: str, nodes: np.ndarray, steps: np.ndarray, count: int) -> np.ndarray:
    """Uniform draws in [0, 1) that depend on (seed, name, node, step) only.

    Args:
        nodes, steps: integers, shape [n]; row i belongs to node `nodes[i]` at `steps[i]`.
        count: draws per row.

    Returns:
        float64, shape [n, count].
    """
    return (hashes(seed, name, nodes, steps, count) >> np.uint64(11)) * 2.0**-53


def hashes(seed: int, name: str, nodes: np.ndarray, steps: np.ndarray, count: int) -> np.ndarray:
    """As `uniforms`, but the raw 64-bit words: uint64, shape [n, count]."""
    nodes, steps = np.asarray(nodes, np.uint64), np.asarray(steps, np.uint64)
    if nodes.shape != steps.shape:
        nodes, steps = np.broadcast_arrays(nodes, steps)
    words = np.empty((len(nodes), count), np.uint64)
    key = np.uint64(seed % 2**64), np.uint64(name_key(name))
    _fill(*key, np.ascontiguousarray(nodes), np.ascontiguousarray(steps), words)
    return words


@njit(cache=True, nogil=True)
def _mix(z: np.uint64) -> np.uint64:
    """SplitMix64's finaliser: a bijection of 64-bit words whose outputs look independent."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
def _fill(
    seed: np.uint64, name: np.uint64, nodes: np.ndarray, steps: np.ndarray, words: np.ndarray
) -> None:
    """Write `words` [n, count]; compiled, as tasks draw a batch's data in each step."""
    base = _mix(seed * _GOLDEN + name)
    for i in range(len(nodes)):
        row = _mix(_mix(base + nodes[i] * _GOLDEN) + (steps[i] + np.uint64(1)) * _GOLDEN)
        for k in range(words.shape[1]):
            row += _GOLDEN
            words[i, k] = _mix(row)
