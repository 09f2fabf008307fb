"""What a server does with the outer gradients of workers that do not wait for each other.

Sources: Liu et al., "Asynchronous Local-SGD Training for Language Modeling" (arXiv 2401.09135), and
its authors' notebook (google-deepmind/asyncdiloco). Rules compose: `ByStaleness(Vanilla())`.

Legend: P parameters, N workers that are there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from optimizers.local import SGD
from sim.compute.local_optimizer import LocalOptimizer
from sim.strategy import Shared


def slow_nesterov() -> SGD:
    """The notebook's outer optimizer; a tenth of DiLoCo's rate, for there are N steps a round."""
    return SGD(lr=0.07, momentum=0.9, nesterov=True)


class ServerRule(ABC):
    """What becomes of an outer gradient (anchor minus the worker's parameters) that arrives.

    Rules hold configuration only; the state is the server's.
    """

    @property
    @abstractmethod
    def passes(self) -> float:
        """Parameter-sized reads and writes of memory of one push."""

    def check(self, workers: int) -> None:  # noqa: B027 (most rules fit any number)
        """Raise ValueError if the rule cannot serve so many workers."""

    @abstractmethod
    def init(self, theta: Tensor) -> Shared:
        """The state before the first push."""

    @abstractmethod
    def weight(self, staleness: int, workers: int) -> float:
        """The factor of an outer gradient that was overtaken by `staleness` pushes."""

    @abstractmethod
    def step(
        self, theta: Tensor, grad: Tensor, state: Shared, workers: int
    ) -> tuple[Tensor, Shared]:
        """New parameters [P] and state after a push, in new tensors; `grad` is weighted already."""


@dataclass(frozen=True)
class Vanilla(ServerRule):
    """An outer step with every push, of weight sqrt(N) / N.

    Args:
        outer: its steps; with the rate of synchronous DiLoCo they diverge.
    """

    outer: LocalOptimizer = field(default_factory=slow_nesterov)

    @property
    def passes(self) -> float:
        return self.outer.passes

    def init(self, theta: Tensor) -> Shared:
        return {"outer": self.outer.init(theta)}

    def weight(self, staleness: int, workers: int) -> float:
        return math.sqrt(workers) / workers

    def step(
        self, theta: Tensor, grad: Tensor, state: Shared, workers: int
    ) -> tuple[Tensor, Shared]:
        theta, outer = self.outer.step(theta, grad, state["outer"])
        return theta, {"outer": outer}


@dataclass(frozen=True)
class ByStaleness(ServerRule):
    """A rule whose weights fall with staleness s, by (1 + s)^-power.

    Args:
        rule: whose weights.
        power: 0.5 is the notebook's "polynomial"; 0 changes nothing.
    """

    rule: ServerRule = field(default_factory=Vanilla)
    power: float = 0.5

    def __post_init__(self) -> None:
        if not self.power >= 0:
            raise ValueError(f"rule.power={self.power}: must be >= 0; the usual choice is 0.5")

    @property
    def passes(self) -> float:
        return self.rule.passes

    def check(self, workers: int) -> None:
        self.rule.check(workers)

    def init(self, theta: Tensor) -> Shared:
        return self.rule.init(theta)

    def weight(self, staleness: int, workers: int) -> float:
        return self.rule.weight(staleness, workers) * (1 + staleness) ** -self.power

    def step(
        self, theta: Tensor, grad: Tensor, state: Shared, workers: int
    ) -> tuple[Tensor, Shared]:
        return self.rule.step(theta, grad, state, workers)


@dataclass(frozen=True)
class Buffered(ServerRule):
    """An outer step with every N-th push, on the mean of N; nothing moves in between.

    The notebook calls it `delayed_sgd`. N is the number of workers when a push arrives.

    Args:
        outer: its steps.
    """

    outer: LocalOptimizer = field(default_factory=lambda: SGD(lr=0.7, momentum=0.9, nesterov=True))

    @property
    def passes(self) -> float:
        return 3.0 + self.outer.passes

    def init(self, theta: Tensor) -> Shared:
        return {"outer": self.outer.init(theta), "buffer": torch.zeros_like(theta), "pushes": 0}

    def weight(self, staleness: int, workers: int) -> float:
        return 1 / workers

    def step(
        self, theta: Tensor, grad: Tensor, state: Shared, workers: int
    ) -> tuple[Tensor, Shared]:
        outer, buffer, pushes = state["outer"], state["buffer"] + grad, state["pushes"] + 1
        if pushes < workers:
            return theta, {"outer": outer, "buffer": buffer, "pushes": pushes}
        theta, outer = self.outer.step(theta, buffer, outer)
        return theta, {"outer": outer, "buffer": torch.zeros_like(buffer), "pushes": 0}


@dataclass(frozen=True)
class DelayedNesterov(ServerRule):
    """Every push moves the parameters at once; the momentum moves with every N-th.

        theta <- theta - lr (Delta_i / N + c momentum m)
        each N-th push first:  m <- momentum m + (their mean),  and 1 - c N + c in place of c

    With c = 0, N pushes are one Nesterov step on their mean (section 4.1 of arXiv 2401.09135). N is
    the number of workers when a push arrives.

    Args:
        lr: learning rate of the outer steps.
        momentum: beta, in [0, 1).
        c: share of the momentum that each push applies, in [0, 1/N].
    """

    lr: float = 0.7
    momentum: float = 0.9
    c: float = 0.0

    def __post_init__(self) -> None:
        if not self.lr >= 0:
            raise ValueError(f"rule.lr={self.lr}: must be >= 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"rule.momentum={self.momentum}: must be in [0, 1), such as 0.9")
        if not 0 <= self.c <= 1:
            raise ValueError(f"rule.c={self.c}: must be in [0, 1/N], for N workers; 0 is usual")

    @property
    def passes(self) -> float:
        return 7.0

    def check(self, workers: int) -> None:
        if self.c * workers > 1 + 1e-9:
            raise ValueError(
                f"rule.c={self.c}: must be in [0, 1/N] for N={workers} workers; the nearest is "
                f"{1 / workers:.4g}"
            )

    def init(self, theta: Tensor) -> Shared:
        zeros = torch.zeros_like(theta)
        return {"momentum": zeros, "buffer": zeros, "pushes": 0}

    def weight(self, staleness: int, workers: int) -> float:
        return 1 / workers

    def step(
        self, theta: Tensor, grad: Tensor, state: Shared, workers: int
    ) -> tuple[Tensor, Shared]:
        m, buffer, pushes = state["momentum"], state["buffer"] + grad, state["pushes"] + 1
        share = self.c
        if pushes >= workers:
            m, buffer, pushes = self.momentum * m + buffer, torch.zeros_like(buffer), 0
            share = 1 - self.c * workers + self.c
        step = torch.add(grad, m, alpha=share * self.momentum) if share else grad
        theta = torch.sub(theta, step, alpha=self.lr)
        return theta, {"momentum": m, "buffer": buffer, "pushes": pushes}


class Pace(ABC):
    """How many local steps a worker makes between pull and push."""

    @abstractmethod
    def steps(self, inner_steps: int, speed: float, fastest: float) -> int:
        """Of a worker of this speed, where the fastest one makes `inner_steps`; steps/s."""


@dataclass(frozen=True)
class Equal(Pace):
    """Everybody makes the same number."""

    def steps(self, inner_steps: int, speed: float, fastest: float) -> int:
        return inner_steps


@dataclass(frozen=True)
class DyLU(Pace):
    """Dynamic local updates: in proportion to speed, so that all push equally often.

        H_i = max(floor, floor(H v_i / max_j v_j))      (section 4.2 of arXiv 2401.09135)

    Args:
        floor: the least, if the fastest makes more; the notebook has 5.
    """

    floor: int = 1

    def __post_init__(self) -> None:
        if self.floor < 1:
            raise ValueError(f"pace.floor={self.floor}: must be >= 1")

    def steps(self, inner_steps: int, speed: float, fastest: float) -> int:
        # A quotient of floats may miss the whole number that it means by a hair.
        share = math.floor(inner_steps * speed / fastest * (1 + 1e-12))
        return min(inner_steps, max(self.floor, share))
