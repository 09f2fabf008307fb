"""The cosine basis as a list of plane rotations: what a transform of n points does, step by step.

A DCT-II of even length is one of half the length, of the sums of mirrored points, and a DCT-IV of
their differences; a DCT-IV is two DCT-II of half its length between rotations. Every step acts on
two points and keeps their norm, so errors do not grow (G. Plonka, M. Tasche, "Fast and numerically
stable algorithms for discrete cosine transforms", Linear Algebra and its Applications 394, 2005).
64 points take 228 steps, a sixth of the arithmetic of the matrix. An odd length is left to Givens
rotations of its matrix, n (n - 1) / 2 steps.

Legend: n points, q steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_HALF = math.sqrt(0.5)
Step = tuple[int, int, float, float, float, float]
"""Places i, j and a, b, c, d: x[i], x[j] = a x[i] + b x[j], c x[i] + d x[j]."""


@dataclass(frozen=True)
class Rotations:
    """The orthonormal DCT-II of n points: the steps in their order, then `y[f] = x[order[f]]`."""

    places: np.ndarray
    """i and j of each step, int64 [q, 2]."""
    turns: np.ndarray
    """a, b, c and d of each step, float64 [q, 4]."""
    order: np.ndarray
    """Where coefficient f lies after the steps, int64 [n]."""

    @property
    def undone(self) -> Rotations:
        """The steps that lead from coefficients back to points: transposed, the last one first.

        They act where the coefficients lie in their own order, so that only results are moved.
        """
        lies = np.argsort(self.order)
        return Rotations(lies[self.places[::-1]], self.turns[::-1][:, [0, 2, 1, 3]], lies)


@lru_cache(maxsize=256)
def cosine_rotations(n: int) -> Rotations:
    """The steps for n points.

    >>> len(cosine_rotations(64).places)
    228
    """
    steps: list[Step] = []
    order = _second(list(range(n)), steps)
    places = np.array([step[:2] for step in steps], dtype=np.int64).reshape(-1, 2)
    turns = np.array([step[2:] for step in steps], dtype=np.float64).reshape(-1, 4)
    return Rotations(places, turns, np.array(order, dtype=np.int64))


def _second(x: list[int], steps: list[Step]) -> list[int]:
    """DCT-II of the points at the places `x`; returns the places of the coefficients."""
    n, m = len(x), len(x) // 2
    if n == 1:
        return x
    if n % 2:
        return _by_givens(_matrix(n, 0), x, steps)
    mirrored = x[: m - 1 : -1]
    steps += [(i, j, _HALF, _HALF, _HALF, -_HALF) for i, j in zip(x, mirrored)]
    y = x.copy()
    y[0::2] = _second(x[:m], steps)
    y[1::2] = _fourth(mirrored, steps)
    return y


def _fourth(x: list[int], steps: list[Step]) -> list[int]:
    """DCT-IV of the points at the places `x`; returns the places of the coefficients."""
    n, m = len(x), len(x) // 2
    if n == 1:
        return x
    if n % 2:
        return _by_givens(_matrix(n, 1), x, steps)
    mirrored = x[: m - 1 : -1]
    for k, (i, j) in enumerate(zip(x, mirrored)):
        angle = math.pi * (2 * k + 1) / (4 * n)
        c, s, sign = math.cos(angle), math.sin(angle), (-1) ** k
        steps.append((i, j, c, s, sign * s, -sign * c))
    cosines, sines = _second(x[:m], steps), _second(mirrored, steps)
    y = x.copy()
    y[0], y[-1] = cosines[0], sines[0]
    for g in range(1, m):
        i, j = cosines[g], sines[m - g]
        steps.append((i, j, _HALF, -_HALF, _HALF, _HALF))
        y[2 * g], y[2 * g - 1] = i, j
    return y


def _matrix(n: int, odd: int) -> np.ndarray:
    """The orthonormal DCT-II, or with `odd` the DCT-IV, of n points, [n, n], as exact as can be."""
    point = np.arange(n, dtype=np.longdouble)
    pi = 4 * np.arctan(np.longdouble(1))
    matrix = np.cos(np.outer(2 * point + odd, 2 * point + 1) * pi / (4 * n))
    if not odd:
        matrix[0] *= np.sqrt(np.longdouble(0.5))
    return matrix * np.sqrt(np.longdouble(2) / n)


def _by_givens(matrix: np.ndarray, x: list[int], steps: list[Step]) -> list[int]:
    """An orthogonal matrix of odd size as rotations: those that undo it, backwards."""
    left = matrix.copy()
    undone: list[list] = []
    for i in range(len(x) - 1):
        for j in range(len(x) - 1, i, -1):
            c, s = left[[i, j], i] / np.hypot(*left[[i, j], i])
            left[[i, j]] = np.array([[c, s], [-s, c]]) @ left[[i, j]]
            undone.append([x[i], x[j], c, -s, s, c])
    if left[-1, -1] < 0:  # a reflection: turn the sign of the last point where it is first used
        first = next(step for step in reversed(undone) if step[1] == x[-1])
        first[3], first[5] = -first[3], -first[5]
    steps += [(i, j, *turn) for i, j, *turn in reversed(undone)]
    return x
