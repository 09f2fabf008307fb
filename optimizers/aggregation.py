"""Rules of robust aggregation: what members that lie cannot decide.

| rule | harmless while fewer than | members of unequal weight |
| --- | --- | --- |
| `Mean` | one lies | yes |
| `CoordinateMedian` | half of them lie | yes |
| `TrimmedMean` | half of them lie, as many as it trims | no |
| `Krum` | half of them but one lie, as many as it is told | no |
| `CentredClipping` | a tenth of them lie, by its proof | yes |
| `GeometricMedian` | half of them lie | yes |

`byzantine` is a number of members or a share of them. A number is a promise: fewer members than it
takes are refused. A share goes with the members that are there, and of very few none may lie.

Legend: n rows, b of a block, c columns of a piece, P values of a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sim.aggregation import Aggregation, Gathered, Mean, shares

__all__ = [
    "Aggregation",
    "CentredClipping",
    "CoordinateMedian",
    "GeometricMedian",
    "Krum",
    "Mean",
    "TrimmedMean",
]


@dataclass(frozen=True)
class CoordinateMedian(Aggregation):
    """The median of each coordinate (Yin et al., 1803.01498, option I).

    Of an even number it is the mean of the middle two. With weights: where half of the weight lies
    below, the mean of two values if that is between them.
    """

    weighted = True
    passes = 4.0  # read, sort by column, write

    def tolerates(self, n: int) -> int:
        return (n - 1) // 2

    def combine(self, rows: Gathered, weights: Tensor | None, before: Tensor | None) -> Tensor:
        if weights is None:
            return rows.columns(_middle)
        return rows.columns(partial(_weighted_middle, shares(rows, weights).double()))


@dataclass(frozen=True)
class TrimmedMean(Aggregation):
    """The mean of each coordinate without its largest and smallest values (1803.01498, option II).

    Args:
        byzantine: values that are left out at each end.
    """

    byzantine: int | float = 0.2

    passes = 4.0  # read, sort by column, write

    def __post_init__(self) -> None:
        _check(self.byzantine)

    def tolerates(self, n: int) -> int:
        return _liars(self, self.byzantine, n, beside=1)

    def combine(self, rows: Gathered, weights: Tensor | None, before: Tensor | None) -> Tensor:
        cut = self.tolerates(rows.n)
        return rows.columns(lambda x: _sorted(x)[:, cut : rows.n - cut].mean(1))


@dataclass(frozen=True)
class Krum(Aggregation):
    """The row that is closest to its n - f - 2 nearest ones (Blanchard et al., 1703.02757).

    Closeness is the sum of squared distances; of equals the first node wins. Multi-Krum is the mean
    of several rows that are closest.

    Args:
        byzantine: f. Needs n >= 2 f + 3; of fewer than three members a share is none.
        selected: rows that are averaged; None for n - f - 2, and one at least.
    """

    byzantine: int | float = 0.2
    selected: int | None = 1

    passes = 4.0  # widened and multiplied with all others, then read; not the arithmetic of it

    def __post_init__(self) -> None:
        _check(self.byzantine)
        if self.selected is not None and self.selected < 1:
            raise ValueError(
                f"aggregation.selected={self.selected}: must be >= 1, or null for n - f - 2"
            )

    def tolerates(self, n: int) -> int:
        return _liars(self, self.byzantine, n, beside=3)

    def combine(self, rows: Gathered, weights: Tensor | None, before: Tensor | None) -> Tensor:
        near = max(1, rows.n - self.tolerates(rows.n) - 2)
        distances = _squared_distances(rows.gram()).sort(dim=1).values
        scores = distances[:, 1 : near + 1].sum(1)  # the nearest of all is the row itself
        many = near if self.selected is None else min(self.selected, rows.n)
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        chosen[scores.sort(stable=True).indices[:many]] = True
        return rows.total(lambda block, at: block[chosen[at]].sum(0)) / many


@dataclass(frozen=True)
class CentredClipping(Aggregation):
    """Rows clipped to a ball around a centre, which moves (Karimireddy et al., 2012.10333).

    `v <- v + sum_i w_i (x_i - v) min(1, radius / |x_i - v|)`, from the v of the round before,
    at first from zero. A row that is not finite counts as v. The proof wants momentum on the nodes.

    Args:
        radius: tau of the paper, in the norm of what is sent.
        iterations: moves of the centre in a round.
    """

    radius: float = 10.0
    iterations: int = 1

    weighted = True
    carries = True

    def __post_init__(self) -> None:
        if not (self.radius > 0 and math.isfinite(self.radius)):
            raise ValueError(f"aggregation.radius={self.radius}: must be a number > 0")
        _check_iterations(self.iterations)

    @property
    def passes(self) -> float:  # type: ignore[override]
        return 4.0 * self.iterations  # read, write what is between, read it twice

    def tolerates(self, n: int) -> int:
        return n // 10

    def combine(self, rows: Gathered, weights: Tensor | None, before: Tensor | None) -> Tensor:
        share, centre = shares(rows, weights), rows.zeros() if before is None else before
        for _ in range(self.iterations):
            centre = centre + rows.total(partial(self._clipped, centre, share))
        return centre

    def _clipped(self, centre: Tensor, share: Tensor, rows: Tensor, at: slice) -> Tensor:
        away, norms = _away(rows, centre)
        return (share[at] * (self.radius / norms).clamp(max=1)) @ away


@dataclass(frozen=True)
class GeometricMedian(Aggregation):
    """The point with the least sum of distances to the rows (RFA, 1912.13445).

    Smoothed Weiszfeld steps: the mean with weights `w_i / max(smoothing, |x_i - v|)` becomes v.
    They begin at the coordinate median: from a far mean they would take long, and from zero they
    would not get away if members sent noughts. A row that is not finite has no weight.

    Args:
        iterations: steps.
        smoothing: nu of the paper, in the norm of what is sent.
    """

    iterations: int = 8
    smoothing: float = 1e-5

    weighted = True

    def __post_init__(self) -> None:
        _check_iterations(self.iterations)
        if not self.smoothing > 0:
            raise ValueError(f"aggregation.smoothing={self.smoothing}: must be > 0")

    @property
    def passes(self) -> float:  # type: ignore[override]
        steps = 4.0 * self.iterations  # read, write what is between, read it twice
        return CoordinateMedian.passes + steps

    def tolerates(self, n: int) -> int:
        return (n - 1) // 2

    def combine(self, rows: Gathered, weights: Tensor | None, before: Tensor | None) -> Tensor:
        share, centre = shares(rows, weights), CoordinateMedian().combine(rows, weights, None)
        for _ in range(self.iterations):
            pull = torch.empty_like(share)
            move = rows.total(partial(self._pulled, centre, share, pull))
            centre = centre + move / pull.sum()
        return centre

    def _pulled(
        self, centre: Tensor, share: Tensor, pull: Tensor, rows: Tensor, at: slice
    ) -> Tensor:
        """The weighted sum of what leads to rows; their weights go to `pull`, [n]."""
        away, norms = _away(rows, centre)
        pull[at] = share[at] / norms.clamp(min=self.smoothing)
        return pull[at] @ away


def check_forgets(rule: Aggregation, why: str) -> None:
    """Refuse a rule that begins at its result of the time before, where that is of no use."""
    if rule.carries:
        raise ValueError(
            f"strategy.aggregation={rule!r}: begins at its result of the time before, but {why}; "
            "choose a rule that does not, such as CoordinateMedian or GeometricMedian"
        )


def _check(byzantine: int | float) -> None:
    least, beyond = (0, math.inf) if isinstance(byzantine, int) else (0.0, 0.5)
    if not least <= byzantine < beyond:
        near = max(least, min(byzantine, 0.49)) if byzantine == byzantine else 0.0
        raise ValueError(
            f"aggregation.byzantine={byzantine}: must be a whole number of members >= 0, or a "
            f"share of them below 0.5; the nearest is {near}"
        )


def _check_iterations(iterations: int) -> None:
    if iterations < 1:
        raise ValueError(f"aggregation.iterations={iterations}: must be >= 1; the nearest is 1")


def _liars(rule: Aggregation, byzantine: int | float, n: int, beside: int) -> int:
    """How many of n members may lie, where f of them need 2 f + `beside`."""
    most = (n - beside) // 2
    if isinstance(byzantine, float):
        return max(0, min(int(byzantine * n), most))
    if byzantine > most:
        raise ValueError(
            f"{rule!r}: {byzantine} that lie need {2 * byzantine + beside} members, and {n} have "
            "sent; give a share below 0.5, such as byzantine=0.2, which goes with those that are "
            f"there, or wait for coordinator.min_nodes={2 * byzantine + beside}"
        )
    return byzantine


def _sorted(x: Tensor) -> Tensor:
    """The values of each column in order, [c, n]; what is no number comes last."""
    columns = x.T.clone(memory_format=torch.contiguous_format)
    if columns.device.type != "cpu":
        return columns.sort(dim=1).values
    columns.numpy().sort(axis=1)  # in a sixth to a sixteenth of the time that torch takes
    return columns


def _middle(x: Tensor) -> Tensor:
    ordered, n = _sorted(x), len(x)
    return (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2


def _weighted_middle(share: Tensor, x: Tensor) -> Tensor:
    ordered, index = x.T.contiguous().sort(dim=1)
    below = share[index].cumsum(1)
    half = below[:, -1:] / 2
    lower, upper = (torch.searchsorted(below, half, right=right) for right in (False, True))
    return ((ordered.gather(1, lower) + ordered.gather(1, upper)) / 2)[:, 0]


def _squared_distances(gram: Tensor) -> Tensor:
    """Of rows from rows, [n, n]; those of a row that is not finite are infinite."""
    norms = gram.diagonal()
    squares = (norms[:, None] + norms - 2 * gram).clamp(min=0)
    return squares.masked_fill(squares.isnan(), math.inf).fill_diagonal_(0)


def _away(rows: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Rows minus the centre, [b, P], and their norms; of one without a finite norm 0 and inf."""
    away = rows - centre
    norms = away.norm(dim=1)
    lost = ~norms.isfinite()
    away[lost] = 0.0
    return away, norms.masked_fill(lost, math.inf)
