"""SGD, AdamW and Lion on stacked rows: inner and outer optimizers alike.

Legend: P parameters, `...` leading dimensions (none, or n rows).

- The state is a dict of tensors: moments [..., P] and the row's `age` [..., 1], its number of
  steps. Bias correction and schedule follow the age of each row, so late joiners are right.
- `step_` works in place, on blocks of rows that fit the cache: AdamW on CPUs in one pass, by a
  compiled kernel; else with one temporary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from optimizers.schedule import Constant, Schedule
from sim.compute.kernels.steps import adamw
from sim.compute.local_optimizer import LocalOptimizer, State


@dataclass(frozen=True)
class SGD(LocalOptimizer):
    """Stochastic gradient descent, with the semantics of `torch.optim.SGD`.

        g <- g + weight_decay * x
        m <- momentum * m + g            (m starts at 0, so the first m is the first g)
        x <- x - lr * m                  or, with Nesterov, x - lr * (g + momentum * m)

    Args:
        lr: learning rate, >= 0.
        momentum: in [0, 1); 0 keeps no buffer.
        nesterov: look ahead along the momentum; needs momentum > 0.
        weight_decay: L2 penalty, added to the gradient.
        clip: bound of each row's gradient norm, or None.
        schedule: factor of `lr` by age.

    >>> outer = SGD(lr=0.7, momentum=0.9, nesterov=True)      # DiLoCo's outer step
    >>> theta = torch.zeros(2)
    >>> theta, state = outer.step(theta, torch.tensor([1.0, -1.0]), outer.init(theta))
    >>> theta
    tensor([-1.3300,  1.3300])
    """

    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip: float | None = None
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        check(self.lr, self.weight_decay, self.clip)
        check_fraction("momentum", self.momentum)
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=True: needs momentum > 0; choose for example 0.9")

    @property
    def passes(self) -> float:
        return 5.0 if self.momentum else 3.0

    @property
    def state_rows(self) -> float:
        return 1 if self.momentum else 0

    def init(self, params: Tensor) -> State:
        moments = {"momentum": torch.zeros_like(params)} if self.momentum else {}
        return moments | {"age": zero_age(params)}

    def step_(self, params: Tensor, grad: Tensor, state: State) -> None:
        grad = clipped(grad, self.clip)
        if self.weight_decay:
            grad = torch.add(grad, params, alpha=self.weight_decay)
        direction = grad
        if self.momentum:
            direction = state["momentum"].mul_(self.momentum).add_(grad)
        if self.nesterov:
            direction = torch.add(grad, direction, alpha=self.momentum)
        lr = rate(self.lr, self.schedule, state["age"], params)
        params.addcmul_(direction, lr, value=-1)
        state["age"].add_(1)


@dataclass(frozen=True)
class AdamW(LocalOptimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101), as in torch.

        m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2;   t = age + 1
        x <- (1 - lr * weight_decay) x - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Args:
        lr: learning rate, >= 0.
        betas: b1 and b2, each in [0, 1); the defaults are those of DiLoCo's replications.
        eps: added to the denominator, > 0.
        weight_decay: decoupled from the gradient, scaled by the learning rate.
        clip: bound of each row's gradient norm, or None.
        schedule: factor of `lr` by age.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = None
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        check(self.lr, self.weight_decay, self.clip)
        object.__setattr__(self, "betas", checked_betas(self.betas, "(0.9, 0.95)"))
        if not self.eps > 0:
            raise ValueError(f"eps={self.eps}: must be > 0; the usual choice is 1e-8")

    @property
    def passes(self) -> float:
        return 7.0

    @property
    def state_rows(self) -> float:
        return 2

    def init(self, params: Tensor) -> State:
        moments = {name: torch.zeros_like(params) for name in ("mean", "square")}
        return moments | {"age": zero_age(params)}

    def step_(self, params: Tensor, grad: Tensor, state: State) -> None:
        b1, b2 = self.betas
        if _is_plain(params, grad, state["mean"], state["square"]):
            ages = state["age"].numpy().ravel()
            self._step_plain(params, grad, state, _factors([(self, slice(0, len(ages)))], ages))
            return
        grad = clipped(grad, self.clip)
        mean = state["mean"].lerp_(grad, 1 - b1)
        square = state["square"].mul_(b2).addcmul_(grad, grad, value=1 - b2)
        lr = rate(self.lr, self.schedule, state["age"], params)
        age = state["age"].add_(1).double()
        bias1 = (1 - b1**age).to(params.dtype)  # [..., 1]: each row its own age
        bias2 = (1 - b2**age).sqrt_().to(params.dtype)
        update = square.sqrt().div_(bias2).add_(self.eps)  # the denominator, then the quotient
        update = torch.div(mean, update, out=update).mul_(lr / bias1)
        if self.weight_decay:
            params.mul_(1 - lr * self.weight_decay)
        params.sub_(update)

    @classmethod
    def step_each_(
        cls,
        optimizers: Sequence[tuple[LocalOptimizer, slice]],
        params: Tensor,
        grad: Tensor,
        state: State,
    ) -> None:
        """As in `LocalOptimizer`; learning rates, decays and schedules may differ in one pass."""
        mine = [(adam, rows) for adam, rows in optimizers if isinstance(adam, AdamW)]
        same = len({(adam.betas, adam.eps, adam.clip) for adam, _ in mine}) == 1
        if not same or not _is_plain(params, grad, state["mean"], state["square"]):
            super().step_each_(optimizers, params, grad, state)
            return
        factors = _factors(mine, state["age"].numpy().ravel())
        mine[0][0]._step_plain(params, grad, state, factors)

    def _step_plain(self, params: Tensor, grad: Tensor, state: State, factors: np.ndarray) -> None:
        """The same for plain rows in one pass over memory, with the `_factors` of each."""
        state["age"].add_(1)
        rows = [_rows(x) for x in (params, grad, state["mean"], state["square"])]
        scale = np.ones(len(rows[0]), np.float32)
        if self.clip is not None:
            scale = _clip_factor(grad, self.clip).numpy().ravel()
        b1, b2 = self.betas
        adamw(*rows, scale, *factors, *np.array([1 - b1, b2, 1 - b2, self.eps], np.float32))


@dataclass(frozen=True)
class Lion(LocalOptimizer):
    """Sign of an interpolated momentum (Chen et al., arXiv 2302.06675, Program 1).

        x <- (1 - lr * weight_decay) x - lr * sign(b1 m + (1 - b1) g)
        m <- b2 m + (1 - b2) g

    Args:
        lr: learning rate, >= 0; the paper takes a third to a tenth of AdamW's.
        betas: b1, of the step, and b2, of the momentum that is kept, each in [0, 1).
        weight_decay: decoupled, scaled by the learning rate; three to ten times AdamW's.
        clip: bound of each row's gradient norm, or None.
        schedule: factor of `lr` by age.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float | None = None
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        check(self.lr, self.weight_decay, self.clip)
        object.__setattr__(self, "betas", checked_betas(self.betas, "(0.9, 0.99)"))

    @property
    def passes(self) -> float:
        return 5.0

    @property
    def state_rows(self) -> float:
        return 1

    def init(self, params: Tensor) -> State:
        return {"momentum": torch.zeros_like(params), "age": zero_age(params)}

    def step_(self, params: Tensor, grad: Tensor, state: State) -> None:
        b1, b2 = self.betas
        grad = clipped(grad, self.clip)
        direction = torch.lerp(grad, state["momentum"], b1).sign_()
        lr = rate(self.lr, self.schedule, state["age"], params)
        if self.weight_decay:
            params.mul_(1 - lr * self.weight_decay)
        params.addcmul_(direction, lr, value=-1)
        state["momentum"].lerp_(grad, 1 - b2)
        state["age"].add_(1)


def _factors(optimizers: Sequence[tuple[AdamW, slice]], ages: np.ndarray) -> np.ndarray:
    """`_at_age` of each row, float32 [4, n]; of ages [n], which mostly are one per optimizer."""
    if len(ages) == 1:
        return np.array(_at_age(optimizers[0][0], int(ages[0])), np.float32)[:, None]
    firsts = ages[[rows.start for _, rows in optimizers]]
    sizes = [rows.stop - rows.start for _, rows in optimizers]
    if (ages == np.repeat(firsts, sizes)).all():
        pairs = zip(optimizers, firsts.tolist())
        rows = np.repeat([_at_age(adam, age) for (adam, _), age in pairs], sizes, axis=0)
    else:
        each = ((adam, age) for adam, at in optimizers for age in ages[at].tolist())
        rows = np.array([_at_age(adam, age) for adam, age in each])
    return rows.T.astype(np.float32, order="C")


@lru_cache(maxsize=4096)
def _at_age(optimizer: AdamW, age: int) -> tuple[float, float, float, float]:
    """Learning rate, what weight decay leaves, and both bias corrections, before step age + 1."""
    b1, b2 = optimizer.betas
    lr = optimizer.lr * optimizer.schedule.at(age)
    return lr, 1 - lr * optimizer.weight_decay, 1 - b1 ** (age + 1), math.sqrt(1 - b2 ** (age + 1))


def _is_plain(*rows: Tensor) -> bool:
    """Whether a compiled kernel can work on these: float32 rows on the CPU, gapless."""
    for x in rows:
        if x.dtype != torch.float32 or not x.is_cpu or not x.is_contiguous() or x.dim() > 2:
            return False
    return True


def _rows(x: Tensor) -> np.ndarray:
    """Plain rows as a kernel wants them, float32 [n, P], of a tensor [n, P] or [P]."""
    return x.view(-1, x.shape[-1]).numpy()


def zero_age(params: Tensor) -> Tensor:
    """Rows that have taken no step, int64 [..., 1]."""
    return torch.zeros((*params.shape[:-1], 1), dtype=torch.int64, device=params.device)


def rate(lr: float, schedule: Schedule, age: Tensor, params: Tensor) -> Tensor:
    """The learning rate of each row, [..., 1] in the dtype of the parameters."""
    return (lr * schedule.factor(age)).to(params.dtype)


def clipped(grad: Tensor, clip: float | None) -> Tensor:
    """Rows scaled down to norm `clip`; as `torch.nn.utils.clip_grad_norm_`, row by row."""
    if clip is None:
        return grad
    return grad * _clip_factor(grad, clip)


def _clip_factor(grad: Tensor, clip: float) -> Tensor:
    norm = torch.linalg.vector_norm(grad, dim=-1, keepdim=True)
    return (clip / (norm + 1e-6)).clamp(max=1)


def check(lr: float, weight_decay: float, clip: float | None) -> None:
    """Refuse what no optimizer can do."""
    if not lr >= 0:
        raise ValueError(f"lr={lr}: must be >= 0")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay={weight_decay}: must be >= 0")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip={clip}: must be > 0, or None for no clipping")


def checked_betas(betas: Sequence[float], usual: str) -> tuple[float, ...]:
    """Two numbers in [0, 1)."""
    if len(betas) != 2:
        raise ValueError(f"betas={betas}: must be two numbers, such as {usual}")
    for i, beta in enumerate(betas):
        check_fraction(f"betas[{i}]", beta)
    return tuple(float(beta) for beta in betas)


def check_fraction(name: str, value: float) -> None:
    """Refuse what cannot be the weight of a running mean."""
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value}: must lie in [0, 1); choose for example 0.9")
