"""Case: a golden file, what an author's own program computed on a tiny deterministic problem.

The conventions of its arrays are in `tests/golden/README.md`.

Legend: T steps, N nodes, P parameters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.validate import npz
from experiments.validate.row import Row
from sim.compute.layout import Layout

DOUBLE, SINGLE = 1e-12, 1e-6
"""Accepted deviation of values of order one, computed in float64 and in float32."""
_FEW = 20
"""Steps whose roundings are within `SINGLE`."""
DESCRIPTIVE = {
    *("algorithm", "reference", "strategy", "note", "seed", "p"),
    *("B", "batch", "shape", "shape_in_hidden_out", "d", "dim"),
    *("failure_prob", "np_seed_before_averager", "scale"),
}
"""Values of `meta` that say nothing that the arrays do not."""


class Noted(dict[str, Any]):
    """A dictionary that keeps in `asked` what it was asked for."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


class Case:
    """A golden file: its arrays as tensors, its `meta`, and the layout of its model.

    Args:
        path: of the file.

    Raises:
        ValueError: it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.name = Path(path).stem
        self._arrays, meta = npz.load(Path(path), lambda shapes: shapes)
        self.meta = Noted(meta)
        starts = [k.removesuffix("_init") for k in self._arrays if k.endswith("_init")]
        self.tensors = [name for name in starts if self.named(f"{re.escape(name)}_(?!init$).*")]
        """Names of the model's tensors, in order."""
        for found in self.named("(.*)_(?:grad|params|server)"):
            if found[1] not in self.tensors:
                raise ValueError(f"{self.name}: has {found[0]}, but lacks {found[1]}_init")
        shapes = {name: torch.Size(self._arrays[f"{name}_init"].shape) for name in self.tensors}
        self.layout = Layout(shapes)
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def __getitem__(self, key: str) -> Tensor:
        """An array.

        Raises:
            ValueError: the file has none of this name.
        """
        if key not in self._arrays:
            raise ValueError(f"{self.name}: lacks the array {key}; it has {sorted(self._arrays)}")
        self._read.add(key)
        array = self._arrays[key]
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{self.name}: {key} is of {array.dtype}: must be numbers")
        return torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))

    @property
    def unread(self) -> list[str]:
        """The arrays and values of `meta` that nobody has asked for."""
        more = [f"meta.{key}" for key in self.meta if key not in self.meta.asked | DESCRIPTIVE]
        return [key for key in self._arrays if key not in self._read] + more

    def named(self, pattern: str) -> list[re.Match[str]]:
        """The names of arrays that match a regular expression as a whole."""
        return [found for key in self._arrays if (found := re.fullmatch(pattern, key))]

    def given(self, key: str, default: Any = None) -> Any:
        """A value of `meta`; null is as if it were not there.

        Raises:
            ValueError: it is not there and there is no default.
        """
        value = default if self.meta.get(key) is None else self.meta[key]
        if value is None:
            raise ValueError(f"{self.name}: meta lacks {key!r}; it has {sorted(self.meta)}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A value of `meta` that must be a number."""
        value = self.given(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{self.name}: meta.{key}={value!r}: must be a number")
        return value

    def count(self, key: str, default: int | None = None, least: int = 0) -> int:
        """A value of `meta` that must be a whole number, not less than `least`."""
        value = self.number(key, default)
        if not (value >= least and value % 1 == 0):
            raise ValueError(
                f"{self.name}: meta.{key}={value!r}: must be a whole number >= {least}"
            )
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        """A value of `meta` that must be true or false."""
        value = self.given(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.name}: meta.{key}={value!r}: must be true or false")
        return value

    @property
    def dtype(self) -> torch.dtype:
        """The type that the reference computed in; that of its arrays if `meta` does not say.

        Raises:
            ValueError: it is another one than float32 and float64.
        """
        single = any(array.dtype == np.float32 for array in self._arrays.values())
        name = self.given("dtype", "float32" if single else "float64")
        if name not in ("float32", "float64"):
            raise ValueError(f"{self.name}: meta.dtype={name!r}: must be float32 or float64")
        return torch.float32 if name == "float32" else torch.float64

    @property
    def accepted(self) -> float:
        """Accepted deviation of values of order one.

        In float32 roundings of many steps add up, like a random walk.
        """
        if self.dtype == torch.float64:
            return DOUBLE
        steps = self.count("steps", self.count("T", _FEW))
        return SINGLE * math.sqrt(max(1.0, steps / _FEW))

    def accepts(self, theirs: Tensor) -> float:
        """Accepted deviation from these values: as for order one, more if the largest is larger."""
        largest = float(theirs.double().abs().max()) if theirs.numel() else 1.0
        return self.accepted * max(1.0, largest)

    @property
    def workers(self) -> int:
        return self.count("workers", least=1)

    @property
    def steps(self) -> int:
        """T."""
        return self.count("T" if self.meta.get("steps") is None else "steps", least=1)

    def has(self, what: str) -> bool:
        """Whether there is `{tensor}_{what}` of a tensor."""
        return any(f"{name}_{what}" in self for name in self.tensors)

    def flat(self, what: str, names: Sequence[str] | None = None) -> Tensor:
        """`{tensor}_{what}` of these tensors (or all) side by side, `[..., P]`."""
        layout = self.layout.select(self.tensors if names is None else names)
        if not layout.shapes:
            raise ValueError(f"{self.name}: has no tensor with its start: expected NAME_init")
        found = {name: self[f"{name}_{what}"] for name in layout.shapes}
        sizes = set()
        for name, shape in layout.shapes.items():
            have = tuple(found[name].shape)
            leading = have[: len(have) - len(shape)]
            sizes.add(leading)
            if have != leading + shape or len(sizes) > 1:
                raise ValueError(
                    f"{self.name}: {name}_{what} has the shape {have}: arrays of the tensors must "
                    f"agree and end with the shapes {list(layout.shapes.values())}"
                )
        return layout.flatten(found, batch_dims=len(sizes.pop()))

    def compare(self, what: str, ours: Tensor, theirs: Tensor, accepted: float = 0.0) -> Row:
        """The largest deviation of an array, as a row of the table.

        Args:
            accepted: that of the case's type if 0, for values as large as the largest of theirs.
        """
        if ours.shape != theirs.shape:
            raise ValueError(
                f"{self.name}: {what} has the shape {tuple(theirs.shape)}, ours "
                f"{tuple(ours.shape)}: `meta` and arrays do not belong together"
            )
        off = (ours.double() - theirs.double()).abs()
        return Row(
            f"{self.name}: {what}, largest deviation",
            float(off.max()) if off.numel() else 0.0,
            0.0,
            accepted or self.accepts(theirs),
            str(self.meta.get("reference", "")),
            "program",
            relative=False,
        )

    def not_compared(self, what: str) -> Row:
        """A row for the reader: nothing was made of an array."""
        source = str(self.meta.get("reference", ""))
        return Row(
            f"{self.name}: {what}, not checked", 0.0, 0.0, 0.0, source, "program", judged=False
        )

    def compare_each(
        self, what: str, ours: Sequence[Tensor], theirs: Sequence[Tensor], least: int = 1
    ) -> Row:
        """The same of arrays one after the other, at least so many; we may have gone on longer."""
        n = len(theirs)
        if not least <= n <= len(ours):
            counts = torch.tensor(least if n < least else len(ours)), torch.tensor(n)
            return self.compare(f"number of {what}", *counts)
        ours, theirs = ([x.flatten() for x in some[:n]] for some in (ours, theirs))
        return self.compare(what, torch.cat(ours), torch.cat(theirs))
