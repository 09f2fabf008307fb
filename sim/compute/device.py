"""Device: how fast the nodes compute; how long a step takes, with jitter and stragglers.

- `Device` is configuration; `Device.bind` draws a fleet from it, a `Devices` of arrays per node.
- Times are a pure function of (seed, node, step): every strategy meets the same weather, and
  node 3 is the same machine in a fleet of 4 and of 4,000.
- `GPUS` is a table of published peaks and prices; the CSV beside it names the source of each row.

Legend: n nodes of a request, N of the fleet.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim.streams import Streams, uniforms
from sim.units import Quantity, bandwidth, nearest, size, speed

_SLICE = 64
"""Steps drawn at once; fixed, so that sums round alike whoever shares the call."""


@dataclass(frozen=True)
class Gpu:
    """A kind of accelerator: peak dense bf16 FLOP/s, bytes, bytes/s and dollars per hour.

    Memory is decimal, as printed on the box: slightly less than what the part has.
    """

    label: str
    speed: float
    memory: float
    memory_bandwidth: float
    price: float


def _read_gpus() -> dict[str, Gpu]:
    with (Path(__file__).parent / "data" / "gpus.csv").open(newline="", encoding="utf-8") as file:
        return {
            row["gpu"]: Gpu(
                row["label"],
                1e12 * float(row["bf16_tflops"]),
                1e9 * float(row["memory_gb"]),
                1e9 * float(row["bandwidth_gbs"]),
                float(row["usd_per_hour"]),
            )
            for row in csv.DictReader(file)
        }


GPUS: dict[str, Gpu] = _read_gpus()
"""Accelerators by short name: `h100`, `a100`, `rtx4090`, ..."""


@dataclass(frozen=True)
class Device:
    """What the nodes of a fleet compute on.

    Args:
        gpus: a name in `GPUS`; or names with shares, `{"rtx4090": 2, "rtx3090": 1}`, drawn
            independently per node; or a list, of which node i gets item i modulo its length.
        gpus_per_node: accelerators that share one replica; multiplies all four quantities.
        mfu: share of the peak that training reaches, in (0, 1]. The default is near published
            runs: 0.433 for INTELLECT-1's 10B on H100 without communication (arXiv 2412.01152,
            table 2), 0.38 to 0.43 for Llama 3 405B (arXiv 2407.21783, table 4).
        spread: sigma of a log-normal factor of each node's speed; its mean is 1.
        jitter: sigma of a log-normal factor of each step's time; its mean is 1.
        stragglers: (probability, factor): each step takes `factor` times as long with this
            probability, on top of jitter; the mean time grows by 1 + probability * (factor - 1).
        speed, memory, memory_bandwidth, price: replace the table's values on every node: peak
            FLOP/s before `mfu`, bytes, bytes/s, dollars per hour, each of one accelerator.

    >>> devices = Device(speed="100TFLOPS", mfu=0.5, jitter=0).bind(2, Streams(0))
    >>> devices.seconds(1e14, nodes=[0, 1], steps=[0, 0])
    array([2., 2.])
    """

    gpus: str | Mapping[str, float] | Sequence[str] = "h100"
    gpus_per_node: int = 1
    mfu: float = 0.4
    spread: float = 0.0
    jitter: float = 0.05
    stragglers: tuple[float, float] = (0.0, 1.0)
    speed: Quantity | None = None
    memory: Quantity | None = None
    memory_bandwidth: Quantity | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        self._read_kinds()
        self._read_quantities()
        if self.gpus_per_node < 1:
            raise ValueError(f"gpus_per_node={self.gpus_per_node}: must be >= 1")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu={self.mfu}: must lie in (0, 1]; large runs reach 0.3 to 0.5")
        for name in ("spread", "jitter"):
            if not 0 <= getattr(self, name) <= 3:
                raise ValueError(f"{name}={getattr(self, name)}: sigma must lie in [0, 3]")
        probability, factor = self.stragglers
        if not (0 <= probability <= 1 and factor >= 1):
            raise ValueError(
                f"stragglers={self.stragglers}: (probability, factor) in [0, 1] and >= 1; "
                "write for example (0.01, 5)"
            )

    def bind(self, n_nodes: int, streams: Streams) -> Devices:
        """Draw the machines of nodes 0..n_nodes-1; node i depends on the seed and i only."""
        kinds, nodes = self._kinds(n_nodes, streams), np.arange(n_nodes)
        normal = _normals(uniforms(streams.seed, "device.speed", nodes, np.zeros_like(nodes), 2))
        factor = np.exp(self.spread * normal - self.spread**2 / 2)
        return Devices(
            seed=streams.seed,
            gpu=tuple(kinds) if self.speed is None else ("custom",) * n_nodes,
            speed=self._column("speed", kinds) * self.mfu * factor,
            memory_bandwidth=self._column("memory_bandwidth", kinds),
            memory=self._column("memory", kinds),
            price=self._column("price", kinds),
            jitter=self.jitter,
            stragglers=self.stragglers,
        )

    def _read_kinds(self) -> None:
        if isinstance(self.gpus, Mapping):
            object.__setattr__(self, "gpus", {k: float(v) for k, v in self.gpus.items()})
            if not all(v >= 0 for v in self.gpus.values()) or not sum(self.gpus.values()) > 0:
                raise ValueError(f"gpus={self.gpus}: shares must be >= 0, one of them > 0")
        elif not isinstance(self.gpus, str):
            object.__setattr__(self, "gpus", tuple(self.gpus))
            if not self.gpus:
                raise ValueError(f"gpus=[]: name at least one of {list(GPUS)}")
        for name in (self.gpus,) if isinstance(self.gpus, str) else self.gpus:
            if name not in GPUS:
                close = nearest(str(name), list(GPUS))
                raise ValueError(f"gpus={name!r}: did you mean {close!r}? There are {list(GPUS)}")

    def _read_quantities(self) -> None:
        for name, read in (("speed", speed), ("memory", size), ("memory_bandwidth", bandwidth)):
            if getattr(self, name) is not None:
                value = read(getattr(self, name), name, positive=True)
                object.__setattr__(self, name, value)
        if self.price is not None and not self.price >= 0:
            raise ValueError(f"price={self.price}: must be >= 0 dollars per hour")
        object.__setattr__(self, "stragglers", tuple(float(x) for x in self.stragglers))
        if len(self.stragglers) != 2:
            raise ValueError(f"stragglers={self.stragglers}: must be (probability, factor)")

    def _kinds(self, n_nodes: int, streams: Streams) -> list[str]:
        if isinstance(self.gpus, str):
            return [self.gpus] * n_nodes
        names = list(self.gpus)
        if not isinstance(self.gpus, Mapping):
            return [names[i % len(names)] for i in range(n_nodes)]
        shares = np.cumsum(list(self.gpus.values()))
        nodes = np.arange(n_nodes)
        draws = uniforms(streams.seed, "device.kind", nodes, np.zeros_like(nodes), 1)[:, 0]
        chosen = np.searchsorted(shares, draws * shares[-1], side="right")
        return [names[i] for i in chosen]

    def _column(self, name: str, kinds: list[str]) -> np.ndarray:
        value = getattr(self, name)
        values = [getattr(GPUS[kind], name) if value is None else value for kind in kinds]
        return self.gpus_per_node * np.array(values, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Devices:
    """The machines of a fleet; arrays are indexed by node id, shape [N], float64."""

    seed: int
    gpu: tuple[str, ...]
    """Name of each node's accelerator in `GPUS`; "custom" where the configuration gave a speed."""
    speed: np.ndarray
    """FLOP/s reached in training: peak times `mfu` times the node's own factor."""
    memory_bandwidth: np.ndarray
    """Bytes per second."""
    memory: np.ndarray
    """Bytes."""
    price: np.ndarray
    """Dollars per hour."""
    jitter: float
    stragglers: tuple[float, float]

    def seconds(
        self,
        flops: float | np.ndarray,
        nodes: Sequence[int] | np.ndarray,
        steps: int | Sequence[int] | np.ndarray,
        count: int = 1,
    ) -> np.ndarray:
        """Time of `count` consecutive steps of `flops` each, starting at `steps[i]` on node i.

        A request of many steps takes the sum of what its steps take one by one.

        Args:
            flops: FLOP of one step, a number or [n].
            nodes, steps: integers [n]; `steps` may be a single number.

        Returns:
            Seconds, float64 [n].
        """
        ids = np.asarray(nodes)
        first = np.asarray(steps)
        first = first if first.shape == ids.shape else np.broadcast_to(first, ids.shape)
        total = np.zeros(ids.shape)
        for start in range(0, count, _SLICE):
            taken = first[:, None] + np.arange(start, min(start + _SLICE, count))
            total += self._factors(np.repeat(ids, taken.shape[1]), taken)
        return total * (flops / self.speed[ids])

    def memory_seconds(
        self, nbytes: float | np.ndarray, nodes: Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """Time to read or write `nbytes` (a number or [n]) of memory: float64 [n], no jitter."""
        return nbytes / self.memory_bandwidth[np.asarray(nodes)]

    def _factors(self, nodes: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Sum over the columns of `steps` [n, k] of each step's time over its nominal time."""
        probability, factor = self.stragglers
        if self.jitter == 0 and probability == 0:
            return np.full(len(steps), float(steps.shape[1]))
        draws = uniforms(self.seed, "device.step", nodes, steps.ravel(), 3)
        times = np.exp(self.jitter * _normals(draws) - self.jitter**2 / 2)
        times *= np.where(draws[:, 2] < probability, factor, 1.0)
        return times.reshape(steps.shape).sum(axis=1)


def _normals(draws: np.ndarray) -> np.ndarray:
    """Standard normals from two uniforms per row (Box and Muller, 1958): [n, >= 2] -> [n]."""
    return np.sqrt(-2 * np.log1p(-draws[:, 0])) * np.cos(2 * np.pi * draws[:, 1])
