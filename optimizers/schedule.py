"""Learning-rate schedules: a factor of the learning rate as a function of a row's own age.

The age of a row is the number of steps it has taken, so a node that joins late warms up late.
A warm-up of w steps gives the factors 1/w, 2/w, ..., 1: no step is wasted at zero.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Schedule(ABC):
    """A factor in [0, 1] of the learning rate."""

    @abstractmethod
    def factor(self, age: Tensor) -> Tensor:
        """The factor, float64, of the step that follows `age` steps (any shape, same shape out)."""

    def at(self, age: int) -> float:
        """The factor of one step."""
        return float(self.factor(torch.tensor([age])))


@dataclass(frozen=True)
class Constant(Schedule):
    """The same learning rate at every age."""

    def factor(self, age: Tensor) -> Tensor:
        return torch.ones_like(age, dtype=torch.float64)

    def at(self, age: int) -> float:
        return 1.0


@dataclass(frozen=True)
class WarmupCosine(Schedule):
    """Linear warm-up, then half a cosine down to `floor` (Loshchilov and Hutter, arXiv 1608.03983).

    Args:
        warmup: steps of warm-up; 0 for none.
        total: age from which the factor stays at `floor`, warm-up included.
        floor: last factor, in [0, 1].
    """

    warmup: int
    total: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup, self.total, self.floor)

    def factor(self, age: Tensor) -> Tensor:
        age = age.double()
        progress = ((age - self.warmup) / (self.total - self.warmup)).clamp(0, 1)
        cosine = self.floor + (1 - self.floor) * (1 + torch.cos(math.pi * progress)) / 2
        return _warm(age, self.warmup, cosine)


@dataclass(frozen=True)
class WSD(Schedule):
    """Warm up, stay, decay linearly to `floor` (Hu et al., arXiv 2404.06395).

    Args:
        warmup, total, floor: as for `WarmupCosine`.
        decay: steps of the final decay, at most `total - warmup`.
    """

    warmup: int
    total: int
    decay: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup, self.total, self.floor)
        longest = self.total - self.warmup
        if not 1 <= self.decay <= longest:
            raise ValueError(f"decay={self.decay}: must lie in 1..total - warmup = {longest}")

    def factor(self, age: Tensor) -> Tensor:
        age = age.double()
        left = ((self.total - age) / self.decay).clamp(0, 1)
        return _warm(age, self.warmup, self.floor + (1 - self.floor) * left)


def _warm(age: Tensor, warmup: int, later: Tensor) -> Tensor:
    return torch.where(age < warmup, (age + 1) / max(warmup, 1), later)


def _check(warmup: int, total: int, floor: float) -> None:
    if warmup < 0:
        raise ValueError(f"warmup={warmup}: must be >= 0")
    if total <= warmup:
        raise ValueError(f"total={total}: must exceed warmup={warmup}; at least {warmup + 1}")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor={floor}: must lie in [0, 1]")
