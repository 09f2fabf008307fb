"""Order-2 Markov chains over a vocabulary: exact entropy rate, and sampling in parallel.

The chance of symbol c after a, b is proportional to `older[a, c] * newer[b, c]`. Everything is
float64; sampling is by inverse CDF from given uniforms, so a sequence is a pure function of them.

Legend: V vocabulary, R sequences drawn at once, T symbols of a sequence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np


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
        V = self.vocabulary
        symbols = _begin(self.pairs, V, uniforms)
        for t in range(2, len(symbols)):
            row = symbols[t - 2] * V + symbols[t - 1]
            found = np.searchsorted(self.table, row + uniforms[:, t - 1], side="right")
            symbols[t] = np.minimum(found - row * V, V - 1)  # a sum of chances may end below 1
        return symbols.T


@dataclass(frozen=True)
class FactorSampler(Sampler):
    """Draws from many chains: 16 V^2 bytes for each; rows are computed when they are needed."""

    factors: Factors
    pairs: np.ndarray
    """Cumulative distribution of the first two symbols, the same for all chains, [V * V]."""

    def draw(self, chains: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """As in `Sampler`; chain k has the k-th factors."""
        V = self.factors.older.shape[-1]
        symbols = _begin(self.pairs, V, uniforms)
        for t in range(2, len(symbols)):
            older = self.factors.older[chains, symbols[t - 2]]
            rows = (older * self.factors.newer[chains, symbols[t - 1]]).cumsum(-1)  # [R, V]
            threshold = uniforms[:, t - 1] * rows[:, -1]
            symbols[t] = np.minimum((rows <= threshold[:, None]).sum(-1), V - 1)
        return symbols.T


def _begin(pairs: np.ndarray, V: int, uniforms: np.ndarray) -> np.ndarray:
    """Symbols [T, R] of which the first two are drawn, from the first uniform of each sequence."""
    symbols = np.empty((uniforms.shape[1] + 1, uniforms.shape[0]), np.int64)
    first = np.minimum(np.searchsorted(pairs, uniforms[:, 0], side="right"), V * V - 1)
    symbols[0], symbols[1] = first // V, first % V
    return symbols
