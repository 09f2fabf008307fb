"""Averaging under failures: how many iterations until everybody holds nearly the mean.

The experiment of Moshpit SGD (arXiv 2103.03239): n scalars drawn from N(0, 1); in each iteration
every node fails with probability p, independently of everything, and whoever is alive averages
by the method; it ends once the population variance is below a precision, or at a cap.

- "all_reduce" averages everybody, but only in iterations in which nobody failed.
- "random_groups" shuffles who is alive into groups of `group` (what is left over joins them one
  by one) and averages inside each.
- "moshpit" gives each node a cell of a grid of `group` cells a side, for good, and averages along
  one axis after the other; failures leave holes.

The order of draws is that of the published runs, from NumPy's Mersenne Twister with their seeds,
so that their numbers can be met exactly: n normals; then, per iteration, n uniforms and the
shuffle. Where the grid's cells came from was not published: `placement` seeds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from optimizers.moshpit import grid_lines
from sim.streams import Streams
from sim.units import nearest

Average = Callable[[np.ndarray, np.ndarray, int, np.random.RandomState], np.ndarray]
"""`average(values [n], alive bool [n], iteration from 1, draws) -> values [n]`."""
METHODS = ("all_reduce", "random_groups", "moshpit")


def iterations(
    method: str,
    n: int,
    p: float,
    seeds: Iterable[int] = range(10),
    *,
    precision: float = 1e-9,
    cap: int = 50,
    group: int = 32,
    dims: int = 2,
    placement: int = 0,
) -> np.ndarray:
    """Iterations until the variance is below `precision`, at most `cap`: float64, one per seed.

    >>> float(iterations("all_reduce", 512, 0.0).mean())
    1.0
    >>> float(iterations("random_groups", 512, 0.0).mean())
    6.1

    Raises:
        ValueError: an unknown method, or a value out of its range.
    """
    paths = variances(
        method, n, p, seeds, cap=cap, group=group, dims=dims, placement=placement, until=precision
    )
    return np.minimum((paths >= precision).sum(axis=1), cap).astype(float)


def variances(
    method: str,
    n: int,
    p: float,
    seeds: Iterable[int] = range(10),
    *,
    cap: int = 50,
    group: int = 32,
    dims: int = 2,
    placement: int = 0,
    until: float = 0.0,
) -> np.ndarray:
    """Population variance before the first and after each iteration: float64 [seeds, cap + 1].

    A seed that got below `until` stays where it was from then on.
    """
    _check(n, p, cap, group, dims)
    average = _averager(method, n, group, dims, placement)
    return np.array([_path(average, n, p, seed, cap, until) for seed in seeds])


def all_reduce_iterations(n: int, p: float, cap: int = 50) -> float:
    """What `iterations("all_reduce", ...)` is in expectation: (1 - (1 - q)^cap) / q, q = (1-p)^n.

    An iteration works with probability q, so their number is geometric, cut at `cap`.

    >>> round(all_reduce_iterations(512, 0.005), 1)
    12.8
    """
    q = (1.0 - p) ** n
    return float(cap) if q == 0.0 else -float(np.expm1(cap * np.log1p(-q))) / q if q < 1 else 1.0


def _path(average: Average, n: int, p: float, seed: int, cap: int, until: float) -> np.ndarray:
    draws = np.random.RandomState(seed)  # of its own: the generator that the published numbers used
    values = draws.normal(0.0, 1.0, n)
    path = np.full(cap + 1, values.var())
    for iteration in range(1, cap + 1):
        if path[iteration - 1] < until:
            path[iteration:] = path[iteration - 1]
            break
        alive = draws.uniform(0.0, 1.0, n) >= p
        values = average(values, alive, iteration, draws)
        path[iteration] = values.var()
    return path


def _averager(method: str, n: int, group: int, dims: int, placement: int) -> Average:
    if method == "all_reduce":
        return _all_reduce
    if method == "random_groups":
        return lambda values, alive, _, draws: _random_groups(values, alive, draws, group)
    if method == "moshpit":
        return _moshpit(n, group, dims, placement)
    close = nearest(str(method), list(METHODS))
    raise ValueError(f"method={method!r}: must be one of {list(METHODS)}; try {close!r}")


def _all_reduce(
    values: np.ndarray, alive: np.ndarray, _: int, draws: np.random.RandomState
) -> np.ndarray:
    return np.full_like(values, values.mean()) if alive.all() else values


def _random_groups(
    values: np.ndarray, alive: np.ndarray, draws: np.random.RandomState, group: int
) -> np.ndarray:
    order = np.flatnonzero(alive)
    draws.shuffle(order)
    groups = len(order) // group
    if groups == 0:  # fewer than one group is left: they are it
        groups = min(len(order), 1)
    whole = np.repeat(np.arange(groups), group)[: len(order)]
    member_of = np.concatenate([whole, np.arange(len(order) - len(whole)) % max(groups, 1)])
    result = values.copy()
    means = np.bincount(member_of, values[order], groups) / np.bincount(member_of, minlength=groups)
    result[order] = means[member_of]
    return result


def _moshpit(n: int, group: int, dims: int, placement: int) -> Average:
    if group**dims < n:
        raise ValueError(f"n={n}: a grid of {group}^{dims} cells has room for {group**dims}")
    rng = Streams(placement).rng("averaging.placement")
    lines = grid_lines(rng.permutation(group**dims)[:n], group, dims)

    def average(
        values: np.ndarray, alive: np.ndarray, iteration: int, _: np.random.RandomState
    ) -> np.ndarray:
        line = lines[iteration % dims][alive]
        count = np.bincount(line)
        result = values.copy()
        result[alive] = (np.bincount(line, values[alive]) / np.maximum(count, 1))[line]
        return result

    return average


def _check(n: int, p: float, cap: int, group: int, dims: int) -> None:
    if not 2 <= n <= 10**7:
        raise ValueError(f"n={n}: must lie in 2 .. 10,000,000 nodes")
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p={p}: must be a probability, in [0, 1]")
    if not 1 <= cap <= 10**5:
        raise ValueError(f"cap={cap}: must lie in 1 .. 100,000 iterations")
    if group < 2 or not 1 <= dims <= 8:
        raise ValueError(f"group={group}, dims={dims}: must be >= 2, and in 1 .. 8")
