"""Reading an .npz file of somebody else's: checked before memory is taken, and without pickle."""

from __future__ import annotations

import json
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

MOST_VALUES = 50_000_000
"""Values of one array that are still read: 400 MB."""
_LARGEST_META = 4_000_000
"""Bytes of `meta` that are still read."""
_MOST_ARRAYS = 1000
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    SyntaxError,
    OSError,
    EOFError,
    KeyError,
    RuntimeError,
)
"""What reading an archive may raise if it or a header is damaged, encrypted, or none."""
Shapes = dict[str, tuple[int, ...]]


def load(
    path: Path, wanted: Callable[[Shapes], Iterable[str]]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays of a file by name, and the JSON object in its `meta`.

    Args:
        wanted: names of the arrays to read, of those with these shapes; it may refuse them.

    Raises:
        ValueError: the file cannot be read, or an array is too large or holds objects.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if len(members) > _MOST_ARRAYS:
                raise ValueError(f"{len(members)} arrays: expected at most {_MOST_ARRAYS}")
            shapes = {name.removesuffix(".npy"): _shape(archive, name) for name in members}
        if "meta" not in shapes:
            raise ValueError(f"lacks the array meta; it has {sorted(shapes)}")
        names = wanted({name: shape for name, shape in shapes.items() if name != "meta"})
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in names}, _meta(data["meta"])
    except _UNREADABLE as error:
        raise ValueError(f"{path}: not a readable .npz file: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _shape(archive: zipfile.ZipFile, member: str) -> tuple[int, ...]:
    """The shape that an array claims, before memory is taken for it."""
    with archive.open(member) as file:
        version = npy.read_magic(file)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(file)
    name = member.removesuffix(".npy")
    if dtype.hasobject:
        raise ValueError(f"{name}: holds Python objects: expected numbers or text")
    nbytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    most = _LARGEST_META if name == "meta" else 8 * MOST_VALUES
    if nbytes > most:
        raise ValueError(f"{name}: {nbytes} bytes: expected at most {most}")
    return shape


def _meta(meta: np.ndarray) -> dict[str, Any]:
    try:
        found: Any = json.loads(str(meta))
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("meta: expected a JSON object as text") from None
    if not isinstance(found, dict):
        raise ValueError(f"meta: {type(found).__name__}: expected a JSON object")
    return found
