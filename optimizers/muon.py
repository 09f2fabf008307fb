"""Muon: steps along orthogonalised momentum, matrix by matrix (Jordan et al., 2024).

Legend: n rows, P parameters, M of them in matrices, Q in all else, r <= c sides of a matrix.

- The momentum has the M columns of the matrices only, and what steps on the rest has the other Q.
- Matrices of one shape are orthogonalised together, those of all rows of a block at once.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from optimizers.local import AdamW, check, check_fraction, clipped, rate, zero_age
from optimizers.schedule import Constant, Schedule
from sim.compute.layout import Layout
from sim.compute.local_optimizer import LocalOptimizer, State
from sim.units import nearest

QUINTIC = (3.4445, -4.7750, 2.0315)
"""a, b, c of the polynomial a s + b s^3 + c s^5, which takes singular values to about 0.7..1.2."""
_TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "native": None}
_SCALES = ("original", "match_rms_adamw")


def orthogonalised(x: Tensor, steps: int = 5, precision: str = "bfloat16") -> Tensor:
    """U V^T, roughly, of matrices U S V^T: `steps` of the quintic Newton-Schulz iteration.

    Args:
        x: [..., rows, columns].
        precision: `"bfloat16"`, as the authors' code; `"float32"`; `"native"`, the type of `x`.

    Returns:
        In the type of the computation.
    """
    a, b, c = QUINTIC
    x = x.to(_TYPES[precision] or x.dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # no singular value above 1
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


@dataclass(frozen=True)
class Muon(LocalOptimizer):
    """Momentum orthogonalised by Newton-Schulz, with the semantics of KellerJordan/Muon.

        m <- momentum * m + (1 - momentum) g;   u = (1 - momentum) g + momentum * m
        x <- (1 - lr * weight_decay) x - lr * scale * orthogonalised(u)

    for hidden matrices; tensors of more dimensions are matrices [first, all others]. Vectors, and
    tensors whose names match `excluded`, get the steps of `others`.

    Args:
        lr: learning rate of the matrices, >= 0.
        momentum: of the running mean, in [0, 1).
        nesterov: u as above; without, u = m.
        weight_decay: decoupled, scaled by the learning rate; of the matrices.
        ns_steps: Newton-Schulz iterations, >= 1.
        precision: of these, see `orthogonalised`.
        adjust_lr: `"original"`, scale = sqrt(max(1, rows / columns)); `"match_rms_adamw"`,
            scale = 0.2 sqrt(max(rows, columns)), so that a learning rate of AdamW fits
            (Moonlight, arXiv 2502.16982). Names are those of `torch.optim.Muon`.
        others: steps on all that is not a hidden matrix; has its own learning rate.
        excluded: regular expression of names of embeddings and output heads.
        clip: bound of each row's gradient norm, over all tensors, or None.
        schedule: factor of `lr` by age.
        layout: of the rows; `bind` gives it.
    """

    lr: float = 0.02
    momentum: float = 0.95
    nesterov: bool = True
    weight_decay: float = 0.0
    ns_steps: int = 5
    precision: str = "bfloat16"
    adjust_lr: str = "original"
    others: LocalOptimizer = field(default_factory=lambda: AdamW(lr=0.01))
    excluded: str = r"embed|token|position|\bw[tp]e\b|(^|[._])head\b"
    clip: float | None = None
    schedule: Schedule = field(default_factory=Constant)
    layout: Layout | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check(self.lr, self.weight_decay, self.clip)
        check_fraction("momentum", self.momentum)
        if self.ns_steps < 1:
            raise ValueError(f"ns_steps={self.ns_steps}: must be >= 1; the usual choice is 5")
        for name, known in (("precision", tuple(_TYPES)), ("adjust_lr", _SCALES)):
            given = getattr(self, name)
            if given not in known:
                close = nearest(str(given), list(known))
                raise ValueError(
                    f"{name}={given!r}: must be one of {', '.join(known)}; try {close!r}"
                )
        try:
            re.compile(self.excluded)
        except re.error as error:
            raise ValueError(
                f"excluded={self.excluded!r}: must be a regular expression ({error})"
            ) from error

    def bind(self, layout: Layout) -> Muon:
        bound = replace(self, layout=layout)
        return replace(bound, others=self.others.bind(bound._cut.rest))

    @property
    def passes(self) -> float:
        values = 5.0  # of gradient and momentum: read; of parameters and momentum: written
        width = 0.5 if self.precision == "bfloat16" else 1.0
        values += 3 * width * self.ns_steps  # a product reads a matrix, the other one writes it too
        share = self._cut.n_matrix_values / max(1, self._cut.layout.numel)
        return share * values + (1 - share) * self.others.passes

    @property
    def flops(self) -> float:
        sides = (sorted(shape) for stack in self._cut.stacks for shape in stack.shapes)
        return float(sum(self.ns_steps * (4 * r * r * c + 2 * r**3) for r, c in sides))

    @property
    def state_rows(self) -> float:
        cut = self._cut
        columns = cut.n_matrix_values + self.others.state_rows * cut.rest.numel
        return columns / max(1, cut.layout.numel)

    def init(self, params: Tensor) -> State:
        self._check_fits(params)
        cut, state = self._cut, {"age": zero_age(params)}
        if cut.stacks:
            state["momentum"] = params.new_zeros(*params.shape[:-1], cut.n_matrix_values)
        if cut.rest.numel:
            others = self.others.init(params.new_zeros(*params.shape[:-1], cut.rest.numel))
            state |= {f"others.{name}": value for name, value in others.items()}
        return state

    def step_(self, params: Tensor, grad: Tensor, state: State) -> None:
        self._check_fits(params)
        params, state = _flat(params), {name: _flat(value) for name, value in state.items()}
        grad, cut = clipped(grad.reshape(params.shape), self.clip), self._cut
        lr = rate(self.lr, self.schedule, state["age"], params)
        for stack in cut.stacks:
            gradient, momentum = stack.take(grad), state["momentum"][:, stack.kept]
            momentum.lerp_(gradient, 1 - self.momentum)
            update = torch.lerp(gradient, momentum, self.momentum) if self.nesterov else momentum
            matrices = update.reshape(-1, *stack.shape)
            step = orthogonalised(matrices, self.ns_steps, self.precision) * self.scale(stack.shape)
            step = step.reshape(update.shape).to(params.dtype).mul_(lr)
            for at, part in zip(stack.columns, step.split(stack.numel, dim=1)):
                if self.weight_decay:
                    params[:, at].mul_(1 - lr * self.weight_decay)
                params[:, at].sub_(part)
        if cut.rest.numel:
            own = {k.removeprefix("others."): v for k, v in state.items() if k.startswith("others")}
            rest = cut.take_rest(params)
            self.others.step_(rest, cut.take_rest(grad), own)
            cut.put_rest(params, rest)
        state["age"].add_(1)

    def momenta(self, state: State) -> dict[str, Tensor]:
        """The momentum of each hidden matrix, [..., *shape], by name."""
        momentum, shapes = state["momentum"], self._cut.layout.shapes
        found: dict[str, Tensor] = {}
        for stack in self._cut.stacks:
            parts = momentum[..., stack.kept].split(stack.numel, dim=-1)
            found |= {n: part.unflatten(-1, shapes[n]) for n, part in zip(stack.names, parts)}
        return found

    def scale(self, shape: Sequence[int]) -> float:
        """Factor of the step of a matrix of this shape."""
        rows, columns = shape[0], math.prod(shape[1:])
        if self.adjust_lr == "original":
            return math.sqrt(max(1.0, rows / columns))
        return 0.2 * math.sqrt(max(rows, columns))

    def _check_fits(self, params: Tensor) -> None:
        if params.shape[-1] != self._cut.layout.numel:
            raise ValueError(
                f"Muon got rows of {params.shape[-1]} values and is bound to a layout of "
                f"{self._cut.layout.numel}: fragments need an optimizer that knows no matrices"
            )

    @property
    def _cut(self) -> _Cut:
        if self.layout is None:
            raise ValueError(f"{self!r} does not know which columns are matrices: use bind(layout)")
        return _cut(self.layout, self.excluded)


@dataclass(frozen=True)
class _Stack:
    """Matrices of one shape.

    Args:
        names: of the tensors.
        shape: rows and columns of each.
        columns: where they lie in a row of parameters.
        kept: where they lie in a row of momentum, one after the other.
    """

    names: tuple[str, ...]
    shape: tuple[int, int]
    columns: tuple[slice, ...]
    kept: slice

    @property
    def numel(self) -> int:
        """Values of a matrix."""
        return self.shape[0] * self.shape[1]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The shape of each."""
        return [self.shape] * len(self.columns)

    def take(self, rows: Tensor) -> Tensor:
        """Their columns of rows [n, P]."""
        return torch.cat([rows[:, at] for at in self.columns], dim=1)


@dataclass(frozen=True)
class _Cut:
    """A layout, cut into stacks of matrices and the rest."""

    layout: Layout
    stacks: tuple[_Stack, ...]
    rest: Layout

    @property
    def n_matrix_values(self) -> int:
        """M."""
        return self.layout.numel - self.rest.numel

    def take_rest(self, rows: Tensor) -> Tensor:
        """The columns that are in no matrix, [n, Q], copied."""
        return torch.cat([rows[:, self.layout.slices[name]] for name in self.rest.shapes], dim=1)

    def put_rest(self, rows: Tensor, rest: Tensor) -> None:
        """Write them back."""
        for name, at in self.rest.slices.items():
            rows[:, self.layout.slices[name]] = rest[:, at]


@lru_cache(maxsize=64)
def _cut(layout: Layout, excluded: str) -> _Cut:
    alike: dict[tuple[int, int], list[str]] = defaultdict(list)
    rest = []
    for name, shape in layout.shapes.items():
        if len(shape) < 2 or re.search(excluded, name):
            rest.append(name)
        else:
            alike[shape[0], math.prod(shape[1:])].append(name)
    stacks, start = [], 0
    for (rows, columns), names in alike.items():
        stop = start + rows * columns * len(names)
        places = tuple(layout.slices[name] for name in names)
        stacks.append(_Stack(tuple(names), (rows, columns), places, slice(start, stop)))
        start = stop
    return _Cut(layout, tuple(stacks), layout.select(rest))


def _flat(x: Tensor) -> Tensor:
    """Rows [n, ...] of [..., p], the same memory."""
    return x.view(-1, x.shape[-1])
