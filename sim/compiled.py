"""Kernels compiled by numba when first called, kept on disk, free of Python's lock while they run.

Numba's cache notices changes of the file of a function, not of the functions that it calls: so the
name under which a kernel is kept holds a digest of all files of its package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from numba import njit


def compiled(file: str, **options: Any) -> Callable[[Callable], Callable]:
    """A decorator for the kernels of the package that `file` (a module's `__file__`) is in.

    Args:
        options: of `numba.njit`, such as `fastmath`.
    """
    version = _version(Path(file).parent)

    def decorate(function: Callable) -> Callable:
        function.__qualname__ = f"{function.__name__}_{version}"
        return njit(cache=True, nogil=True, **options)(function)

    return decorate


@lru_cache
def _version(folder: Path) -> str:
    files = sorted(folder.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
