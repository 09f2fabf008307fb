"""Low rank: matrices as products of two narrow factors. LowRank, and PowerSGD's Projection.

A tensor is seen as the matrix [first axis, the rest], a vector as one column.
Source: Vogels, Karimireddy and Jaggi, "PowerSGD" (arXiv:1905.13727).

Legend: b rows of a block, n x m a matrix of one node, r its rank, K values sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from optimizers.compression.amounts import check_choice
from sim.compute.layout import Layout
from sim.payload import Compressor, Context, Payload, State, Wire
from sim.streams import Streams

SIDES = ("left", "right")
"""Where in a product P Q^T a factor stands: P is [n, r], Q is [m, r]."""


@dataclass(frozen=True)
class Matrices:
    """Which tensors of a model are approximated.

    Those of which few enough values are sent: n m / (factors / 2 r (n + m)) > min_rate, with
    r = min(rank, n, m).

    Args:
        rank: of the approximation.
        factors: how many of its two factors are sent, on average, each time.
        min_rate: values of a tensor over values sent.
        vectors: whether vectors may be approximated too, as matrices of one column; `"package"`:
            where epfml/powersgd does so, which counts one side of them, and a rank up to it.
    """

    rank: int
    factors: int = 2
    min_rate: float = 1.0
    vectors: bool | str = False

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank={self.rank!r}: must be an integer >= 1, for example 4")
        if not self.min_rate >= 0:
            raise ValueError(f"min_rate={self.min_rate!r}: must be >= 0; 1 is any gain at all")
        if self.vectors not in (False, True, "package"):
            raise ValueError(f"vectors={self.vectors!r}: must be true, false or 'package'")

    def rank_of(self, shape: tuple[int, ...]) -> int:
        """r; 0 for a tensor that is not approximated."""
        n, m = as_matrix(shape)
        if len(shape) < 1 + (not self.vectors) or not n * m:
            return 0
        r = min(self.rank, n, m)
        sent = r * (n + m)
        if self.vectors == "package" and len(shape) == 1:
            sent = min(self.rank, n) * n
        return r if n * m > self.min_rate * self.factors / 2 * sent else 0

    def any_of(self, layout: Layout) -> bool:
        """Whether some tensor of a model is approximated."""
        return any(self.rank_of(shape) for shape in layout.shapes.values())


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """The sides of a tensor that is seen as a matrix."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def orthonormal(columns: Tensor) -> Tensor:
    """Orthonormal columns that span those of `[..., n, r]`, r <= n.

    Of columns that depend on each other, or are zero, others take the place: QR always gives r.
    """
    return torch.linalg.qr(columns).Q


@dataclass(frozen=True)
class LowRank(Compressor):
    """The matrix of rank r that power iterations find, as its two factors; inside PerTensor.

        P = orthonormal(M orthonormal(Q));  Q = M^T P

    `iterations` times, and M is decoded as P Q^T.

    Q is kept by the node for the next time, so that over similar matrices it turns to the largest
    singular vectors. Columns of the factors are sent with equal norms, for a codec that follows.
    Bytes: 4 r (n + m), or 4 n m where that is not more; vectors are sent whole. Biased: wants
    error feedback, as in `PerTensor(ErrorFeedback(LowRank(4)))`.

    Args:
        rank: r, at most the sides of the matrix.
        iterations: of a step.
        warm: begin with the Q of the last time, instead of the same Q always.

    >>> from optimizers.compression import PerTensor
    >>> PerTensor(LowRank(4)).nbytes(Layout({"weight": (1000, 100), "bias": (1000,)}))
    21600
    """

    rank: int
    iterations: int = 1
    warm: bool = True

    @property
    def passes(self) -> float:  # type: ignore[override]
        """The matrix is read twice in an iteration, and written when it is decoded."""
        return 2.0 * self.iterations + 1

    def __post_init__(self) -> None:
        Matrices(self.rank)
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations!r}: must be an integer >= 1")

    def init(self, layout: Layout, n: int) -> State:
        shapes = list(layout.shapes.values())
        if len(shapes) != 1 or not self.warm:
            return None
        r = self._rank(shapes[0])
        return torch.stack([_start(as_matrix(shapes[0])[1], r)] * n) if r else None

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        shape = x.shape[1:]
        r = self._rank(shape)
        if not r:
            return Payload(self, shape, Wire(x, dtype="float32")), state
        matrix = x.reshape(len(x), *as_matrix(shape))
        right = _start(matrix.shape[2], r) if state is None else state
        right = right.to(x).expand(len(x), -1, -1)
        for _ in range(self.iterations):
            left = orthonormal(matrix @ orthonormal(right))  # of zeros too: all goes on after them
            right = matrix.mT @ left
        norm = right.norm(dim=1, keepdim=True).sqrt()
        divisor = torch.where(norm == 0, 1, norm)
        factors = torch.cat([left * norm, right / divisor], dim=1)  # [b, n + m, r]
        payload = Payload(self, shape, Wire(factors, dtype="float32"))
        return payload, state if state is None else right

    def decode(self, payload: Payload) -> Tensor:
        if not self._rank(payload.shape):
            return payload.body
        n, m = as_matrix(payload.shape)
        left, right = payload.body.split([n, m], dim=1)
        return (left @ right.mT).reshape(payload.n, *payload.shape)

    def _rank(self, shape: tuple[int, ...]) -> int:
        return Matrices(self.rank).rank_of(tuple(shape))


@dataclass(frozen=True)
class Basis:
    """Orthonormal columns for each matrix of a model that is approximated, by name.

    Args:
        layout: of the model.
        columns: [n, r] on the left of a product, [m, r] on its right.
    """

    layout: Layout
    columns: Mapping[str, Tensor]

    @classmethod
    def spanned(cls, layout: Layout, factors: Mapping[str, Tensor]) -> Basis:
        """The basis of what these columns span, tensor by tensor."""
        return cls(layout, {name: orthonormal(columns) for name, columns in factors.items()})


@dataclass(frozen=True)
class Projection(Compressor):
    """Each matrix M as its coefficients in a basis that everybody has: a half-step of PowerSGD.

    With columns P on the left it sends Q = M^T P, with Q on the right P = M Q; either is decoded
    as P Q^T. Linear, so coefficients add up on the way. Bytes: 4 r m or 4 r n for each matrix, and
    4 for each value of the other tensors if these are sent.

    Args:
        matrices: which tensors are projected.
        side: of the basis.
        others: whether the other tensors are sent, whole; else they are decoded as zeros.
        value_dtype: number type of the values sent; `"native"` for that of the input.
        basis: bytes do not depend on it, so codecs are equal whatever theirs is.
    """

    matrices: Matrices
    side: str = "left"
    others: bool = True
    value_dtype: str = "float32"
    basis: Basis | None = field(default=None, compare=False, repr=False)

    summable = True
    shared_support = True
    linear = True
    passes = 3.0

    def __post_init__(self) -> None:
        check_choice("side", self.side, SIDES)

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        parts = _parts(self, ctx.layout)
        if x.is_meta:
            values = x.new_empty(len(x), sum(part.sent for part in parts))
        else:
            values = torch.cat([self._values(part, x) for part in parts], dim=1)
        return Payload(self, x.shape[1:], Wire(values, dtype=self.value_dtype)), state

    def decode(self, payload: Payload) -> Tensor:
        values = payload.body
        rows = values.new_zeros(payload.n, *payload.shape)
        if values.is_meta:
            return rows
        assert self.basis is not None
        parts = _parts(self, self.basis.layout)
        for part, some in zip(parts, values.split([part.sent for part in parts], dim=1)):
            if part.rank:
                columns = self.basis.columns[part.name]
                found = some.unflatten(1, (part.rank, -1)).mT  # [b, m, r] or [b, n, r]
                product = columns @ found.mT if self.side == "left" else found @ columns.mT
                rows[:, part.at] = product.flatten(1)
            elif part.sent:
                rows[:, part.at] = some
        return rows

    def rest(self, x: Tensor) -> Tensor:
        """Rows [b, P] without what is sent of them."""
        assert self.basis is not None
        ctx = Context(self.basis.layout, 0, np.zeros(len(x), np.int64), 0)
        return x - self.encode(x, None, ctx)[0].decode()

    def coefficients(self, mean: Tensor) -> dict[str, Tensor]:
        """The other factor of each matrix in rows that were decoded, [P]: [m, r] or [n, r]."""
        assert self.basis is not None
        parts = [part for part in _parts(self, self.basis.layout) if part.rank]
        found = [self._values(part, mean[None])[0].unflatten(0, (part.rank, -1)) for part in parts]
        return {part.name: factor.mT for part, factor in zip(parts, found)}

    def mask(self, layout: Layout, device: torch.device) -> Tensor:
        """Which values of a row are of matrices that are projected, bool [P]."""
        parts = [(math.prod(part.sides), part.rank > 0) for part in _parts(self, layout)]
        return torch.cat([torch.full((size,), inside, device=device) for size, inside in parts])

    def _values(self, part: _Part, x: Tensor) -> Tensor:
        """What is sent of a tensor of rows [b, P]; factors are transposed, [b, r m] or [b, r n]."""
        if not part.rank:
            return x[:, part.at] if part.sent else x[:, :0]
        assert self.basis is not None
        matrix, columns = x[:, part.at].unflatten(1, part.sides), self.basis.columns[part.name]
        if self.side == "right":
            matrix = matrix.mT
        return torch.bmm(columns.mT.expand(len(x), -1, -1), matrix).flatten(1)


@dataclass(frozen=True)
class _Part:
    """A tensor of a row: where it is, its sides as a matrix, r or 0, and how much is sent."""

    name: str
    at: slice
    sides: tuple[int, int]
    rank: int
    sent: int


@lru_cache(maxsize=256)
def _parts(codec: Projection, layout: Layout) -> tuple[_Part, ...]:
    parts = []
    for name, shape in layout.shapes.items():
        n, m = as_matrix(shape)
        r = codec.matrices.rank_of(shape)
        sent = r * (m if codec.side == "left" else n) if r else n * m * codec.others
        parts.append(_Part(name, layout.slices[name], (n, m), r, sent))
    return tuple(parts)


def start_factors(matrices: Matrices, layout: Layout) -> tuple[dict[str, Tensor], ...]:
    """Random P and Q of each matrix to begin with, by name: [n, r] and [m, r], float32."""
    ranks = {name: matrices.rank_of(shape) for name, shape in layout.shapes.items()}
    return tuple(
        {
            name: _start(as_matrix(layout.shapes[name])[side], r, number)
            for number, (name, r) in enumerate(ranks.items(), start=side * len(ranks))
            if r
        }
        for side in (0, 1)
    )


def _start(n: int, r: int, number: int = 0) -> Tensor:
    """Normal columns [n, r], on torch's default device, alike for all who ask for this number."""
    return torch.tensor(
        Streams(0).rng("low_rank", number).standard_normal((n, r)), dtype=torch.float32
    )
