"""Quadratic: a bowl with a given spectrum, whose optimum and rates are known in closed form.

Gradient descent with step size lr multiplies the error along eigenvalue s by (1 - lr s) per step:
what a simulated run must reproduce to rounding.

Legend: n nodes of a batch, N nodes, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.tasks.checks import at_least, not_negative, positive
from sim.compute.layout import Layout
from sim.compute.task import Task
from sim.streams import Streams, uniforms


@dataclass(eq=False)
class Quadratic(Task):
    """Node i minimises f_i(x) = 1/2 (x - x* - o_i)' diag(s) (x - x* - o_i).

    Offsets o_i sum to zero over the nodes, so the mean of all f_i is smallest at x*. This mean is
    what is evaluated; `floor` is its value at x*, known after `bind` (0 without heterogeneity).

    Args:
        dimension: P.
        condition: ratio of the largest eigenvalue, 1, to the smallest; the others lie between at
            equal ratios.
        spectrum: the P eigenvalues s, all > 0, instead of `dimension` and `condition`.
        heterogeneity: standard deviation of the offsets.
        noise: standard deviation of each entry of the gradient's noise, independent per node and
            step.
    """

    dimension: int = 64
    condition: float = 100.0
    spectrum: Sequence[float] | None = None
    heterogeneity: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        at_least(1, {"dimension": self.dimension})
        not_negative({"heterogeneity": self.heterogeneity, "noise": self.noise})
        if self.condition < 1:
            raise ValueError(f"condition={self.condition}: must be >= 1; try 1")
        self._spectrum = np.geomspace(1.0, 1.0 / self.condition, self.dimension)
        if self.spectrum is not None:
            self._spectrum = np.array([float(s) for s in self.spectrum])
        if len(self._spectrum) == 0:
            raise ValueError(f"spectrum={self.spectrum!r}: must have at least one number, try [1]")
        positive({f"spectrum[{i}]": s for i, s in enumerate(self._spectrum.tolist())})
        self.dimension = len(self._spectrum)
        self.layout = Layout.flat(self.dimension)
        self.tokens_per_step, self.flops_per_token = 1, 6.0 * self.dimension

    def bind(self, seed: int, n_nodes: int) -> None:
        """Draw `optimum` (x*, float64 [P], standard normal) and `offsets` (o, float64 [N, P])."""
        at_least(1, {"n_nodes": n_nodes})
        self._seed, streams = seed, Streams(seed)
        self.optimum = streams.rng("quadratic optimum").standard_normal(self.dimension)
        offsets = streams.rng("quadratic offsets").standard_normal((n_nodes, self.dimension))
        self.offsets = self.heterogeneity * (offsets - offsets.mean(0))
        self._spread = float(0.5 * (self.offsets**2 @ self._spectrum).mean())
        self.floor = self._spread

    def init(self, generator: torch.Generator) -> Tensor:
        """A standard normal point, float32 [P]."""
        return torch.randn(self.dimension, generator=generator)

    def batch(self, nodes: np.ndarray, steps: np.ndarray) -> tuple[Tensor, Tensor]:
        """The nodes' minima x* + o_i and the noise of their gradients, both float32 [n, P]."""
        minima = self.optimum + self.offsets[np.asarray(nodes)]
        noise = np.zeros_like(minima)
        if self.noise > 0:
            draws = uniforms(self._seed, "quadratic noise", nodes, steps, 2 * self.dimension)
            radius, angle = np.split(draws, 2, axis=1)  # Box-Muller transform
            noise = self.noise * np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)
        return torch.from_numpy(minima).float(), torch.from_numpy(noise).float()

    def loss(self, params: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        """f_i(x) + <noise, x>; its gradient is diag(s) (x - x* - o_i) + noise."""
        minimum, noise = batch
        spectrum = torch.as_tensor(self._spectrum, dtype=params.dtype, device=params.device)
        return 0.5 * (spectrum * (params - minimum).square()).sum() + (noise * params).sum()

    def evaluate(self, params: Tensor, buffers: Tensor | None = None) -> dict[str, float]:
        """`"loss"`, the mean of all f_i at x, and its `"excess"` over the floor."""
        error = params.detach().cpu().double().numpy() - self.optimum
        excess = float(0.5 * error**2 @ self._spectrum)
        return {"loss": self._spread + excess, "excess": excess}

    def describe(self) -> dict[str, Any]:
        """The smallest and the largest eigenvalue."""
        low, high = float(self._spectrum.min()), float(self._spectrum.max())
        return {"data": "quadratic", "smallest_eigenvalue": low, "largest_eigenvalue": high}
