"""Layers: a model's tensors in the order of its forward pass, and when a step is where.

A step passes forward through the layers, then backward from the last to the first. A layer's
backward pass takes the gradient of its activations first, which the layer below waits for, then
that of its parameters, which is *released* when that is done. The first layer passes no gradient
on: a step over L layers has 3 L - 1 pieces of work, and with a reduction per layer 4 L - 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sim.compute.layout import Layout


@dataclass(frozen=True)
class Layer:
    """One layer.

    Args:
        name: for messages.
        tensors: names in the model's layout; none if it has no parameters of its own, as an
            output head that is the embedding table.
        flops: of its forward pass, in any unit that all layers of a model share. Each of the two
            backward passes takes as many.
    """

    name: str
    tensors: tuple[str, ...]
    flops: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", tuple(self.tensors))
        if not self.flops >= 0:
            raise ValueError(f"layer {self.name}: flops={self.flops}: must be >= 0")


def by_layer(layout: Layout) -> dict[str, list[str]]:
    """The tensors of each layer, in the order of the layout.

    Tensors whose names hold the same (first) number belong together; what has none (embeddings,
    final norm, head) is a layer of its own.

    >>> by_layer(Layout({"embed": (4,), "h.0.q": (2,), "h.0.k": (2,), "h.1.q": (2,)}))
    {'embed': ['embed'], '0': ['h.0.q', 'h.0.k'], '1': ['h.1.q']}
    """
    layers: dict[str, list[str]] = {}
    for name in layout.shapes:
        number = re.search(r"\d+", name)
        layers.setdefault(number[0] if number else name, []).append(name)
    return layers


def layers_of(layout: Layout) -> tuple[Layer, ...]:
    """The layers that names tell apart, each with FLOP in proportion to its parameters."""
    sizes = {name: part.stop - part.start for name, part in layout.slices.items()}
    return tuple(
        Layer(label, tuple(names), float(sum(sizes[name] for name in names)))
        for label, names in by_layer(layout).items()
    )


@dataclass(frozen=True)
class Timeline:
    """Where in a step its layers are, as fractions of the step's time.

    Args:
        layers: in the order of the forward pass.

    >>> two = Timeline((Layer("a", ("w",), 1.0), Layer("b", ("v",), 1.0)))
    >>> [float(round(5 * t, 9)) for t in two.begins], [float(round(5 * t, 9)) for t in two.left]
    ([0.0, 1.0], [0.0, 1.0])
    """

    layers: tuple[Layer, ...]
    begins: np.ndarray = field(init=False, repr=False, compare=False)
    """From the start of a step to the start of each layer's forward pass, float64 [L]."""
    left: np.ndarray = field(init=False, repr=False, compare=False)
    """From the release of each layer's gradient to the end of the step, float64 [L]."""

    def __post_init__(self) -> None:
        flops = np.array([layer.flops for layer in self.layers], dtype=np.float64)
        if not flops.sum() > 0:
            raise ValueError("layers: at least one must have FLOP")
        below = np.cumsum(flops) - flops  # of a forward pass through the layers below
        whole = 3 * flops.sum() - flops[0]
        passed_on = np.where(np.arange(len(flops)) > 0, flops[0], 0.0)
        object.__setattr__(self, "begins", below / whole)
        object.__setattr__(self, "left", (2 * below - passed_on) / whole)
        places = {name: i for i, layer in enumerate(self.layers) for name in layer.tensors}
        object.__setattr__(self, "_places", places)

    def first(self, tensors: Iterable[str]) -> int:
        """The first layer that one of these tensors belongs to."""
        places: dict[str, int] = self._places  # type: ignore[attr-defined]
        return min(places[name] for name in tensors)

    def needed(self, tensors: Iterable[str]) -> float:
        """From the start of a step to the first use of one of these tensors."""
        return float(self.begins[self.first(tensors)])

    def remaining(self, tensors: Iterable[str]) -> float:
        """From when the gradients of all of these tensors are released to the end of the step."""
        return float(self.left[self.first(tensors)])

    def cut(self, layout: Layout, limit: float | None, width: int) -> list[Layout]:
        """Cut a layout of these layers into parts, in the order in which they are released.

        Args:
            layout: some tensors of the model.
            limit: None for one part per layer; else tensors are put together until a part holds
                at least this many bytes, as PyTorch's DistributedDataParallel fills its buckets.
            width: bytes per value of a gradient.
        """
        parts: list[list[str]] = []
        open_bytes = np.inf
        for layer in reversed(self.layers):
            for i, name in enumerate(n for n in reversed(layer.tensors) if n in layout.shapes):
                if i == 0 if limit is None else open_bytes >= limit:
                    parts.append([])
                    open_bytes = 0.0
                parts[-1].append(name)
                open_bytes += width * (layout.slices[name].stop - layout.slices[name].start)
        return [layout.select(names) for names in parts]


def check_layers(layers: Sequence[Layer], layout: Layout) -> None:
    """Raise ValueError unless the layers hold each tensor of the layout once."""
    names = [name for layer in layers for name in layer.tensors]
    if sorted(names) != sorted(layout.shapes):
        odd = sorted(set(names) ^ set(layout.shapes)) or sorted(
            {name for name in names if names.count(name) > 1}
        )
        raise ValueError(f"layers: each tensor of the layout once; these are not: {odd[:5]}")
