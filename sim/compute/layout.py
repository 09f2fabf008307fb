"""Layout: a flat vector [P] <-> named tensors; fragments.

Legend: P parameters, `...` leading batch dimensions (rows).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Where each named tensor lies in a flat vector of `numel` values, in the order given.

    >>> layout = Layout({"weight": (2, 3), "bias": (2,)})
    >>> layout.numel, layout.slices["bias"]
    (8, slice(6, 8, None))
    """

    shapes: Mapping[str, tuple[int, ...]]
    slices: dict[str, slice] = field(init=False, repr=False, compare=False)
    numel: int = field(init=False, compare=False)
    """P, the number of values."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", {k: tuple(v) for k, v in self.shapes.items()})
        start, slices = 0, {}
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            slices[name] = slice(start, stop)
            start = stop
        object.__setattr__(self, "slices", slices)
        object.__setattr__(self, "numel", start)

    def __hash__(self) -> int:
        return hash((self.numel, len(self.shapes)))  # cheap: layouts are keys of every message

    @classmethod
    def of_module(cls, module: nn.Module) -> Layout:
        """The layout of a module's parameters, in `named_parameters()` order."""
        return cls({name: tuple(p.shape) for name, p in module.named_parameters()})

    @classmethod
    def flat(cls, numel: int) -> Layout:
        """A layout with a single 1-D tensor named `"params"`."""
        return cls({"params": (numel,)})

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Views `[..., *shape]` into `flat [..., P]`; writing to a view writes to `flat`."""
        lead = flat.shape[:-1]
        return {n: flat[..., self.slices[n]].reshape(lead + s) for n, s in self.shapes.items()}

    def flatten(self, tensors: Mapping[str, Tensor], batch_dims: int = 0) -> Tensor:
        """Named tensors `[..., *shape]` to one `[..., P]`; inverse of `views`."""
        return torch.cat([tensors[name].flatten(batch_dims) for name in self.shapes], dim=-1)

    def select(self, names: Iterable[str]) -> Layout:
        """The layout of a fragment: only these tensors, in this layout's order."""
        wanted = set(names)
        unknown = wanted - set(self.shapes)
        if unknown:
            raise ValueError(f"no tensor named {sorted(unknown)}; there are {list(self.shapes)}")
        return Layout({n: s for n, s in self.shapes.items() if n in wanted})


@dataclass(frozen=True)
class Fragment:
    """Some columns of the rows: a set of tensors that are synchronised together.

    Args:
        whole: the layout of a full row.
        names: tensors of the trained model.
        charged: the layout that the clock charges for them, the workload's share of the tensors;
            their own if None.

    >>> part = Fragment(Layout({"a": (2,), "b": (3,), "c": (1,)}), ("a", "c"))
    >>> part.take(torch.arange(6.0))
    tensor([0., 1., 5.])
    """

    whole: Layout
    names: tuple[str, ...]
    charged: Layout = None  # type: ignore[assignment]
    layout: Layout = field(init=False, repr=False, compare=False)
    """The layout of the fragment, [p] values."""
    slices: tuple[slice, ...] = field(init=False, repr=False, compare=False)
    """Where its columns lie in a full row, in order; tensors side by side are one piece."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", self.whole.select(self.names))
        if self.charged is None:
            object.__setattr__(self, "charged", self.layout)
        pieces: list[slice] = []
        for at in (self.whole.slices[name] for name in self.layout.shapes):
            if pieces and pieces[-1].stop == at.start:
                at = slice(pieces.pop().start, at.stop)
            pieces.append(at)
        object.__setattr__(self, "slices", tuple(pieces))

    def take(self, rows: Tensor) -> Tensor:
        """The fragment's columns `[..., p]` of full rows `[..., P]`."""
        if rows.is_meta:  # there are no values, and slicing is slow there
            return rows.new_empty((*rows.shape[:-1], self.layout.numel))
        return torch.cat([rows[..., part] for part in self.slices], dim=-1)

    def replaced(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Full rows `[..., P]`, new, with the fragment's columns `[..., p]` replaced."""
        if rows.is_meta:
            return rows.new_empty(rows.shape)
        rows, start = rows.clone(), 0
        for part in self.slices:
            stop = start + part.stop - part.start
            rows[..., part] = columns[..., start:stop]
            start = stop
        return rows
