"""Churn: the sessions in which nodes are online, generated or read from a trace.

A churn model answers with a table drawn before the run, so every strategy meets the same
sessions. Columns: `node` (int), `start` and `end` (seconds since the start of the run, end
excluded). Sessions of a node do not overlap, the table is sorted by start, then node; starts lie
before the horizon, ends may lie beyond it or be infinite.

- Generated sessions alternate with times off, drawn independently per node. Node i gets its own
  stream: its sessions do not depend on how many nodes there are.
- By default the start is *stationary*: time 0 is an arbitrary moment of a process that has run
  for ever. A node is online with probability E[up] / (E[up] + E[down]), and what remains of the
  interval under way is a uniform share of a length-biased draw (long intervals are the likely ones
  to be met; Cox, Renewal Theory, 1962, chapter 5).
"""

from __future__ import annotations

import csv
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sim.units import Quantity, seconds, size

if TYPE_CHECKING:
    import pandas as pd

MAX_SESSIONS = 10_000_000
"""More expected sessions than this is taken for a slip of units."""


class Churn(ABC):
    """When nodes are online."""

    @abstractmethod
    def sessions(self, n: int, horizon: float, rng: np.random.Generator) -> pd.DataFrame:
        """The sessions of nodes 0..n-1 that start before `horizon` (s), as the module describes."""


@dataclass(frozen=True)
class AlwaysOn(Churn):
    """Every node is online from the start, for ever."""

    def sessions(self, n: int, horizon: float, rng: np.random.Generator) -> pd.DataFrame:
        return _table([(node, 0.0, math.inf) for node in range(n)])


class RenewalChurn(Churn):
    """Sessions and times off that alternate, each with its own law; nodes are independent.

    Attributes:
        initial_online: None for a stationary start; else the probability of being online at time
            0, where a fresh interval then begins on every node (1: all arrive together).
    """

    initial_online: float | None

    @property
    @abstractmethod
    def laws(self) -> tuple[Law, Law]:
        """The laws of a session and of a time off."""

    @property
    def availability(self) -> float:
        """Long-run share of time that a node is online."""
        up, down = self.laws
        return up.mean / (up.mean + down.mean)

    def sessions(self, n: int, horizon: float, rng: np.random.Generator) -> pd.DataFrame:
        up, down = self.laws
        expected = n * horizon / (up.mean + down.mean)
        if not (0 < horizon < math.inf and expected <= MAX_SESSIONS):
            raise ValueError(
                f"horizon={horizon:g} s: must be > 0 and bring at most {MAX_SESSIONS:,} sessions; "
                f"about {expected:.3g} expected of {n} nodes, with means {up.mean:g} s online and "
                f"{down.mean:g} s offline; choose a shorter horizon or longer sessions"
            )
        key, rows = int(rng.integers(2**63)), []
        for node in range(n):
            stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence([key, node])))
            rows += [(node, *session) for session in self._walk(horizon, stream)]
        return _table(rows)

    def _walk(self, horizon: float, rng: np.random.Generator) -> Iterator[tuple[float, float]]:
        """(start, end) of the sessions of one node."""
        up, down = self.laws
        now, initial = 0.0, self.initial_online
        online = rng.random() < (self.availability if initial is None else initial)
        law = up if online else down
        length = law.residual(rng) if initial is None else law.draw(rng)
        while now < horizon:
            if online and now + length > now:  # a draw below the clock's resolution is no session
                yield now, now + length
            now, online = now + length, not online
            length = (up if online else down).draw(rng)


@dataclass(frozen=True)
class Exponential(RenewalChurn):
    """Memoryless sessions and times off.

    Args:
        up, down: mean length of a session and of a time off.
        initial_online: see `RenewalChurn`.

    >>> Exponential(up="3h", down="1h").availability
    0.75
    """

    up: Quantity
    down: Quantity
    initial_online: float | None = None

    def __post_init__(self) -> None:
        _read_times(self, "up", "down")
        _check_initial(self.initial_online)

    @property
    def laws(self) -> tuple[Law, Law]:
        return WeibullLaw(1.0, float(self.up)), WeibullLaw(1.0, float(self.down))


@dataclass(frozen=True)
class Weibull(RenewalChurn):
    """Weibull sessions and times off; a shape below 1 has many short and a few long ones.

    Args:
        shape, scale: of sessions; the scale is a time, which 63 % of the sessions do not reach.
        down_shape, down_scale: of times off.
        initial_online: see `RenewalChurn`.
    """

    shape: float
    scale: Quantity
    down_shape: float
    down_scale: Quantity
    initial_online: float | None = None

    def __post_init__(self) -> None:
        _read_times(self, "scale", "down_scale")
        _check_range(self, 0.1, 100, "shape", "down_shape")
        _check_initial(self.initial_online)

    @property
    def laws(self) -> tuple[Law, Law]:
        up = WeibullLaw(self.shape, float(self.scale))
        return up, WeibullLaw(self.down_shape, float(self.down_scale))


@dataclass(frozen=True)
class LogNormal(RenewalChurn):
    """Log-normal sessions and times off.

    Args:
        median, sigma: of sessions; sigma is that of the logarithm.
        down_median, down_sigma: of times off.
        initial_online: see `RenewalChurn`.
    """

    median: Quantity
    sigma: float
    down_median: Quantity
    down_sigma: float
    initial_online: float | None = None

    def __post_init__(self) -> None:
        _read_times(self, "median", "down_median")
        _check_range(self, 0, 5, "sigma", "down_sigma")
        _check_initial(self.initial_online)

    @property
    def laws(self) -> tuple[Law, Law]:
        up = LogNormalLaw(float(self.median), self.sigma)
        return up, LogNormalLaw(float(self.down_median), self.down_sigma)


@dataclass(frozen=True)
class TraceChurn(Churn):
    """Sessions from a CSV file with the columns `node,start,end`; the file is not trusted.

    Nodes are integers from 0; times are numbers in seconds. An empty `end` means for ever. Other
    columns are ignored; sessions that start at or after the horizon are left out. A node that
    the file does not name never comes online. Errors name the line.

    Args:
        path: the file, relative to the working directory.
        max_bytes: a larger file is refused.
    """

    path: str
    max_bytes: Quantity = "64MB"

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_bytes", size(self.max_bytes, "max_bytes", positive=True))

    def sessions(self, n: int, horizon: float, rng: np.random.Generator) -> pd.DataFrame:
        rows: list[tuple[int, float, float]] = []
        busy_until: dict[int, float] = {}
        for start, end, node, line in sorted(self._read()):
            self._require(node < n, line, f"node={node}: this run has nodes 0..{n - 1}")
            free = busy_until.get(node, 0.0)
            self._require(
                start >= free, line, f"start={start:g}: node {node} is busy until {free:g}"
            )
            busy_until[node] = end
            if start < horizon:
                rows.append((node, start, end))
        return _table(rows)

    def _read(self) -> Iterator[tuple[float, float, int, int]]:
        """(start, end, node, line) of each row."""
        path, nbytes = Path(self.path), Path(self.path).stat().st_size
        if nbytes > float(self.max_bytes):
            raise ValueError(f"{path}: {nbytes:,} bytes; at most max_bytes={self.max_bytes:,.0f}")
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            reader = csv.DictReader(file)
            missing = sorted({"node", "start", "end"} - set(reader.fieldnames or ()))
            if missing:
                raise ValueError(f"{path}: lacks the columns {missing}; expected node,start,end")
            for row in reader:
                yield *self._times(row, reader.line_num), reader.line_num

    def _times(self, row: dict[str, str | None], line: int) -> tuple[float, float, int]:
        try:
            node, start = int(row["node"] or ""), float(row["start"] or "")
            end = float(row["end"] or math.inf)
        except ValueError as error:
            raise ValueError(f"{self.path}, line {line}: {error}") from None
        self._require(node >= 0, line, f"node={node}: must be >= 0")
        self._require(0 <= start < math.inf, line, f"start={start:g}: must be finite and >= 0")
        self._require(end > start, line, f"end={end:g}: must exceed start={start:g}")
        return start, end, node

    def _require(self, holds: bool, line: int, message: str) -> None:
        if not holds:
            raise ValueError(f"{self.path}, line {line}: {message}")


class Law(ABC):
    """A law of positive lengths of time, in seconds."""

    @property
    @abstractmethod
    def mean(self) -> float:
        """Expected length."""

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> float:
        """The length of a fresh interval."""

    @abstractmethod
    def residual(self, rng: np.random.Generator) -> float:
        """What remains, at an arbitrary moment, of the interval under way."""


@dataclass(frozen=True)
class WeibullLaw(Law):
    """P(length > t) = exp(-(t / scale)^shape); exponential for shape 1."""

    shape: float
    scale: float

    @property
    def mean(self) -> float:
        return self.scale * math.gamma(1 + 1 / self.shape)

    def draw(self, rng: np.random.Generator) -> float:
        return self.scale * rng.standard_exponential() ** (1 / self.shape)

    def residual(self, rng: np.random.Generator) -> float:
        # (length / scale)^shape is Exp(1); biased by length it is Gamma(1 + 1 / shape)
        biased = self.scale * rng.standard_gamma(1 + 1 / self.shape) ** (1 / self.shape)
        return biased * rng.random()


@dataclass(frozen=True)
class LogNormalLaw(Law):
    """log(length) is normal with mean log(median) and standard deviation sigma."""

    median: float
    sigma: float

    @property
    def mean(self) -> float:
        return self.median * math.exp(self.sigma**2 / 2)

    def draw(self, rng: np.random.Generator) -> float:
        return self.median * math.exp(self.sigma * rng.standard_normal())

    def residual(self, rng: np.random.Generator) -> float:
        # biased by length, log(length) keeps its spread and its mean moves by sigma^2
        return self.draw(rng) * math.exp(self.sigma**2) * rng.random()


def _table(rows: list[tuple[int, float, float]]) -> pd.DataFrame:
    import pandas as pd

    rows = sorted(rows, key=lambda row: (row[1], row[0]))
    node, start, end = zip(*rows) if rows else ((), (), ())
    return pd.DataFrame(
        {
            "node": np.array(node, np.int64),
            "start": np.array(start, float),
            "end": np.array(end, float),
        }
    )


def _read_times(config: RenewalChurn, *names: str) -> None:
    for name in names:
        value = seconds(getattr(config, name), name, positive=True)
        if value == math.inf:
            raise ValueError(f"{name}=inf: must be finite; for nodes that never leave use AlwaysOn")
        object.__setattr__(config, name, value)


def _check_range(config: RenewalChurn, low: float, high: float, *names: str) -> None:
    for name in names:
        if not low <= getattr(config, name) <= high:
            raise ValueError(f"{name}={getattr(config, name)}: must lie in [{low}, {high}]")


def _check_initial(probability: float | None) -> None:
    if probability is not None and not 0 <= probability <= 1:
        raise ValueError(
            f"initial_online={probability}: must lie in [0, 1], or None for a stationary start"
        )
