"""Workers: threads that share the parts of a computation, one core each.

Parts are independent and their results are put together in order, so nothing depends on how many
workers there are. torch and the BLAS use one thread within a part: on small matrices many cores
are best used by many parts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, lru_cache
from itertools import count
from typing import Any, TypeVar

import scipy.linalg.cython_blas  # noqa: F401 (loads the BLAS, or its threads could not be set)
import torch
from threadpoolctl import LibController, ThreadpoolController

# MKL rounds by where in memory a matrix begins, unless it is told not to before it is first used.
_WIDEST = {"AVX512": "AVX512,STRICT", "AVX2": "AVX2,STRICT"}
os.environ.setdefault(
    "MKL_CBWR", _WIDEST.get(torch.backends.cpu.get_cpu_capability(), "COMPATIBLE")
)

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """A pool of n workers, of which the caller's thread is the first.

    Args:
        n: how many; 1 starts no thread.
    """

    def __init__(self, n: int) -> None:
        self.n = n

    def map(self, fn: Callable[[int, Item], Result], items: Sequence[Item]) -> list[Result]:
        """`fn(worker, item)` of every item, in the order of the items; workers count from 0.

        Of the errors that parts raise, that of the first one is passed on.
        """
        with one_blas_thread():
            if min(self.n, len(items)) <= 1:
                return [fn(0, item) for item in items]
            return self._map(fn, items)

    def _map(self, fn: Callable[[int, Item], Result], items: Sequence[Item]) -> list[Result]:
        """The same, with other threads beside the caller's."""
        results: list[Any] = [None] * len(items)
        errors: dict[int, BaseException] = {}
        turns = count()

        def work(worker: int) -> None:
            while not errors and (k := next(turns)) < len(items):
                try:
                    results[k] = fn(worker, items[k])
                except BaseException as error:  # raised again below, in the caller's thread
                    errors[k] = error

        helpers = range(1, min(self.n, len(items)))
        others = [self._pool.submit(work, worker) for worker in helpers]
        work(0)
        for other in others:
            other.result()
        if errors:
            raise errors[min(errors)]
        return results

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.n - 1, "worker", initializer=_begin)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Every BLAS has one thread; within another such block this costs next to nothing."""
    limited = [(blas, n) for blas in _libraries() if (n := blas.get_num_threads()) != 1]
    for blas, _ in limited:
        blas.set_num_threads(1)
    try:
        yield
    finally:
        for blas, n in limited:
            blas.set_num_threads(n)


@lru_cache
def _libraries() -> list[LibController]:
    """Every BLAS that is loaded: numpy's, and scipy's, which compiled code calls."""
    return ThreadpoolController().select(user_api="blas").lib_controllers


def _begin() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)  # a setting of the thread
