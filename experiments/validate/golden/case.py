"""Case: a golden file, what an author's own program computed on a tiny deterministic problem.

The conventions of its arrays are in `tests/golden/README.md`.

Legend: T steps, N nodes, P parameters.
"""

from __future__ import annotations

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


class Case:
    """A golden file: its arrays as tensors, its `meta`, and the layout of its model.

    Args:
        path: of the file.

    Raises:
        ValueError: it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.name = Path(path).stem
        self._arrays, self.meta = npz.load(Path(path), lambda shapes: shapes)
        self.tensors = [k.removesuffix("_init") for k in self._arrays if _is_start(k)]
        """Names of the model's tensors, in order."""
        self.layout = Layout({name: self[f"{name}_init"].shape for name in self.tensors})

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def __getitem__(self, key: str) -> Tensor:
        """An array.

        Raises:
            ValueError: the file has none of this name.
        """
        if key not in self._arrays:
            raise ValueError(f"{self.name}: lacks the array {key}; it has {sorted(self._arrays)}")
        return torch.from_numpy(np.ascontiguousarray(self._arrays[key]))

    def named(self, pattern: str) -> list[re.Match[str]]:
        """The names of arrays that match a regular expression as a whole."""
        return [found for key in self._arrays if (found := re.fullmatch(pattern, key))]

    def given(self, key: str, default: Any = None) -> Any:
        """A value of `meta`.

        Raises:
            ValueError: it is not there and there is no default.
        """
        if key not in self.meta and default is None:
            raise ValueError(f"{self.name}: meta lacks {key!r}; it has {sorted(self.meta)}")
        return self.meta.get(key, default)

    @property
    def dtype(self) -> torch.dtype:
        """The type that the reference computed in."""
        return torch.float32 if self.meta.get("dtype") == "float32" else torch.float64

    @property
    def accepted(self) -> float:
        """Accepted deviation of values of order one."""
        return SINGLE if self.dtype == torch.float32 else DOUBLE

    @property
    def workers(self) -> int:
        return int(self.given("workers"))

    @property
    def steps(self) -> int:
        """T."""
        return int(self.meta.get("steps") or self.given("T"))

    def flat(self, what: str, names: Sequence[str] | None = None) -> Tensor:
        """`{tensor}_{what}` of these tensors (or all) side by side, `[..., P]`."""
        names = self.tensors if names is None else names
        found = {name: self[f"{name}_{what}"] for name in names}
        leading = found[names[0]].dim() - len(self.layout.shapes[names[0]])
        return self.layout.select(names).flatten(found, batch_dims=leading)

    def compare(self, what: str, ours: Tensor, theirs: Tensor, accepted: float = 0.0) -> Row:
        """The largest deviation of an array, as a row of the table.

        Args:
            accepted: that of the case's type if 0.
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
            accepted or self.accepted,
            str(self.meta.get("reference", "")),
            "program",
            relative=False,
        )

    def compare_each(self, what: str, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Row:
        """The same of arrays one after the other, as far as both go."""
        n = min(len(ours), len(theirs))
        if n == 0:
            raise ValueError(f"{self.name}: {what}: nothing to compare, the file is too short")
        ours, theirs = ([x.flatten() for x in some[:n]] for some in (ours, theirs))
        return self.compare(what, torch.cat(ours), torch.cat(theirs))


def _is_start(key: str) -> bool:
    """Whether an array is the initial value of a tensor of the model."""
    return key.endswith("_init") and key not in ("x_init", "xhat_init", "w_init")
