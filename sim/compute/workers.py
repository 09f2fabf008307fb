"""Workers: threads that share the parts of a computation, one core each.

Parts are independent and their results are put together in order, so nothing depends on how many
workers there are. torch and the BLAS use one thread within a part: on small matrices many cores
are best used by many parts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import count
from typing import Any, TypeVar

import torch
from threadpoolctl import ThreadpoolController

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
        results: list[Any] = [None] * len(items)
        errors: dict[int, BaseException] = {}
        turns = count()

        def work(worker: int) -> None:
            while not errors and (k := next(turns)) < len(items):
                try:
                    results[k] = fn(worker, items[k])
                except BaseException as error:  # raised again below, in the caller's thread
                    errors[k] = error

        helpers = min(self.n, len(items)) - 1
        with self._blas.limit(limits=1, user_api="blas"):
            others = [self._pool.submit(work, worker + 1) for worker in range(max(0, helpers))]
            work(0)
            for other in others:
                other.result()
        if errors:
            raise errors[min(errors)]
        return results

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.n - 1, "worker", initializer=_begin)

    @cached_property
    def _blas(self) -> ThreadpoolController:
        return ThreadpoolController()


def _begin() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)  # a setting of the thread
