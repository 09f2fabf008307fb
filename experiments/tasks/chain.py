"""Order-2 Markov chains over a vocabulary: exact entropy rate, and sampling in parallel.

The chance of symbol c after a, b is proportional to `older[a, c] * newer[b, c]`. Everything is
float64; sampling is by inverse CDF from given uniforms, so a sequence is a pure function of them.
It is compiled, and releases Python's lock: worker threads draw their data at the same time.

Legend: V vocabulary, R sequences drawn at once, T symbols of a sequence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from sim.compiled import compiled


@dataclass(frozen=True)
class Factors:
    """Positive weights of K chains: `older` and `newer`, float64 [K, V, V]."""

    older: np.ndarray
    newer: np.ndarray

    @classmethod
    def log_linear(cls, tables: np.ndarray, alpha: float, scale: float) -> Factors:
        """Weights exp(scale * (A[a, c] + B[b, c])) * rank(c)^-alpha, with ranks from 1.

        Args:
            tables: A and B of each chain, [K, 2, V, V].
            alpha: exponent of Zipf's law, which makes low symbols frequent; 0 switches it off.
            scale: how much the context says about the next symbol.
        """
        zipf = np.arange(1, tables.shape[-1] + 1) ** -float(alpha)
        return cls(np.exp(scale * tables[:, 0]), np.exp(scale * tables[:, 1]) * zipf)

    def conditionals(self, chain: int = 0) -> np.ndarray:
        """P(c | a, b) of one chain, [V, V, V]; rows of the last axis sum to one."""
        weights = self.older[chain][:, None, :] * self.newer[chain][None, :, :]
        return weights / weights.sum(-1, keepdims=True)


def stationary(conditionals: np.ndarray, tolerance: float = 1e-14) -> np.ndarray:
    """The stationary distribution of pairs (a, b), [V, V], by power iteration.

    Raises:
        ValueError: if 10,000 iterations do not bring the change (L1) below `tolerance`.
    """
    V = conditionals.shape[0]
    pairs = np.full((V, V), 1.0 / V**2)
    for _ in range(10_000):
        after = np.einsum("ab,abc->bc", pairs, conditionals)
        after /= after.sum()
        if np.abs(after - pairs).sum() < tolerance:
            return after
        pairs = after
    raise ValueError(
        "the chain of pairs mixes too slowly for its entropy rate to be computed; lower `scale` "
        "(1 to 2 are usual)"
    )


def entropy_rate(conditionals: np.ndarray, pairs: np.ndarray) -> float:
    """-sum pi(a, b) P(c | a, b) ln P(c | a, b), in nats per symbol."""
    logs = np.log(conditionals, out=np.zeros_like(conditionals), where=conditionals > 0)
    return float(-np.einsum("ab,abc,abc->", pairs, conditionals, logs))


class Sampler(ABC):
    """Turns uniforms into sequences."""

    @abstractmethod
    def draw(self, chains: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Sequences int64 [R, T] of the chains [R], from uniforms [R, T - 1]."""


@dataclass(frozen=True)
class TableSampler(Sampler):
    """Draws from one chain; each draw is a binary search in a table of V^3 cumulative chances."""

    vocabulary: int
    pairs: np.ndarray
    """Cumulative distribution of the first two symbols, [V * V]."""
    table: np.ndarray
    """Row r = a * V + b holds r + CDF(c | a, b): rows in a line, hence sorted as a whole, [V^3]."""

    @classmethod
    def of(cls, conditionals: np.ndarray, pairs: np.ndarray) -> TableSampler:
        """The sampler of a chain that begins in the distribution `pairs` [V, V]."""
        V = len(pairs)
        rows = conditionals.cumsum(-1).reshape(V * V, V) + np.arange(V * V)[:, None]
        return cls(V, pairs.ravel().cumsum(), rows.ravel())

    def draw(self, chains: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """As in `Sampler`; `chains` is ignored, as there is one."""
        symbols = np.empty((uniforms.shape[0], uniforms.shape[1] + 1), np.int64)
        _draw_by_table(self.vocabulary, self.pairs, self.table, uniforms, symbols)
        return symbols


@dataclass(frozen=True)
class FactorSampler(Sampler):
    """Draws from many chains: 16 V^2 bytes for each; rows are computed when they are needed."""

    factors: Factors
    pairs: np.ndarray
    """Cumulative distribution of the first two symbols, the same for all chains, [V * V]."""

    def draw(self, chains: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """As in `Sampler`; chain k has the k-th factors."""
        symbols = np.empty((uniforms.shape[0], uniforms.shape[1] + 1), np.int64)
        older, newer = self.factors.older, self.factors.newer
        _draw_by_factors(chains, older, newer, self.pairs, uniforms, symbols)
        return symbols


@compiled(__file__)
def _draw_by_table(V, pairs, table, uniforms, symbols):
    """Write `symbols` [R, T], by binary search in the row of the table that the last two select."""
    for r in range(len(symbols)):
        first = min(np.searchsorted(pairs, uniforms[r, 0], side="right"), V * V - 1)
        symbols[r, 0], symbols[r, 1] = first // V, first % V
        for t in range(2, symbols.shape[1]):
            row = symbols[r, t - 2] * V + symbols[r, t - 1]
            value, low, high = row + uniforms[r, t - 1], row * V, row * V + V - 1
            while low < high:  # the last symbol takes what a sum of chances leaves below 1
                middle = (low + high) // 2
                if table[middle] <= value:
                    low = middle + 1
                else:
                    high = middle
            symbols[r, t] = low - row * V


@compiled(__file__)
def _draw_by_factors(chains, older, newer, pairs, uniforms, symbols):
    """Write `symbols` [R, T]; chances are multiplied and summed up for each."""
    V = older.shape[-1]
    sums = np.empty(V)
    for r in range(len(symbols)):
        first = min(np.searchsorted(pairs, uniforms[r, 0], side="right"), V * V - 1)
        symbols[r, 0], symbols[r, 1] = first // V, first % V
        for t in range(2, symbols.shape[1]):
            one = older[chains[r], symbols[r, t - 2]]
            two = newer[chains[r], symbols[r, t - 1]]
            total = 0.0
            for c in range(V):
                total += one[c] * two[c]
                sums[c] = total
            threshold, c = uniforms[r, t - 1] * total, 0
            while c < V - 1 and sums[c] <= threshold:
                c += 1
            symbols[r, t] = c
