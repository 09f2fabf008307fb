"""Compute utilisation against bandwidth: published tables beside event-driven runs.

The tables are those of Streaming DiLoCo (arXiv 2501.18512, tables 1 and 4) and of Scaling Laws for
DiLoCo (arXiv 2503.09799, table 6): which bandwidth between two data centres lets accelerators
compute 50, 80, 90, 95 or 99 % of the time, from a model's parameters, layers and step time.

What the papers do not print, and what is taken here. No number is fitted, but this reading of the
text was kept, of about 100 variants, because it reproduces most cells of table 4: that table is a
check of the simulator against the reading, and less of the reading itself.

- Layers are equal, and as many as a file's column says (table 6 does not print them; the file that
  ships takes those of table 4 and of the models' reports). Forward, backward of activations and
  of parameters take T / (3 L) each. The first layer passes no gradient on: a step takes
  T - T / (3 L).
- Two replicas, one link of so many bits per second each way, no latency: an all-reduce moves each
  value once. Values have 16 bits, with FP4 exactly 4. The reduction of a layer starts when its
  gradient is released, one at a time.
- Streaming: fragments of 3 layers, strided, one every round(H / fragments) steps; with overlap,
  the forward pass through a fragment waits in the second step after it was sent, without in the
  next one. The run has 3 H steps, and its last reduction belongs to it.
- Bandwidths are 50 points from 0.1 to 1000 Gbit/s, equidistant in the logarithm. Printed is the
  point just below the one that suffices, rounded to 2 decimals and then to 1.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
from torch import Tensor

from experiments.experiment import Experiment
from experiments.tasks.quadratic import Quadratic
from experiments.validate.columns import DATA, Line, read
from experiments.validate.row import Row
from optimizers import SGD, AllReduce, DiLoCo, StreamingDiLoCo
from sim.budget import Budget
from sim.compute.device import Device
from sim.compute.options import ComputeOptions
from sim.coordinators import Static
from sim.payload import Compressor, Context, Dense, Payload, State, Wire
from sim.strategy import Strategy
from sim.workload import uniform_layers

GBIT = 1e9 / 8
"""Bytes per second of 1 Gbit/s."""
GRID = np.logspace(-1, 3, 50)
"""Bandwidths of the tables, Gbit/s."""
_FRAGMENT_LAYERS = 3
_OFF, _MOST_OFF, _SHARE = 1, 2, 0.95
"""Of a file's cells, this share lies within one grid point and all within two."""


@dataclass(frozen=True)
class _Narrow(Compressor):
    """Exactly so many bits per value: for timing, it has no values to lose."""

    bits: int

    separable = True

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        return Payload(self, x.shape[1:], Wire(x, bits=self.bits)), state

    def decode(self, payload: Payload) -> Tensor:
        return payload.body


@dataclass(frozen=True)
class Setting:
    """A model and a method, whose utilisation depends on the bandwidth only.

    Args:
        parameters, layers, step_seconds: of the model, as tables print them.
        method: `data_parallel`, `diloco`, or `streaming`.
        inner_steps: H; 1 for `data_parallel`.
        overlap: tau, steps between a fragment's last gradient and the forward pass that waits for
            it, beyond the next; -1 for the whole cycle.
        bits: per value, 16 or 4.

    >>> round(Setting(10**9, 24, 0.1, "data_parallel").utilisation(100.0), 3)
    0.503
    """

    parameters: int
    layers: int
    step_seconds: float
    method: str
    inner_steps: int = 1
    overlap: int = 0
    bits: int = 16

    def utilisation(self, gbit: float) -> float:
        """The share of the time in which the accelerators compute, at so many Gbit/s."""
        return float(self.metric(gbit)["utilization"])

    def metric(self, gbit: float) -> pd.Series:
        """The last metrics of an event-driven run."""
        return _run(self, gbit)

    @cached_property
    def fragments(self) -> int:
        """How many the model is cut into."""
        return math.ceil(self.layers / _FRAGMENT_LAYERS)

    @property
    def slot(self) -> int:
        """Steps between the turns of two fragments."""
        return max(1, round(self.inner_steps / self.fragments))

    @property
    def steps(self) -> int:
        """Local steps of a run; rounds of data parallelism and of DiLoCo are all alike."""
        if self.method == "streaming":
            # A cycle that is still under way at the end must not weigh.
            rounds = 3 if self.overlap >= 0 else 30
            return self.slot * max(1, round(rounds * self.inner_steps / self.slot))
        return 2 * self.inner_steps

    @property
    def payload_per_sync(self) -> float:
        """Bytes that a node sends for each parameter once, from a run."""
        syncs = self.steps / (self.inner_steps if self.method != "streaming" else self.slot)
        share = 1 if self.method != "streaming" else self.fragments
        return float(self.metric(1.0)["nbytes_per_node"]) * share / syncs

    @property
    def strategy(self) -> Strategy:
        """What is run."""
        codec = Dense("bfloat16") if self.bits == 16 else _Narrow(self.bits)
        outer = SGD(lr=0.7)
        if self.method == "data_parallel":
            return AllReduce(outer, codec, overlap="layerwise")
        if self.method == "diloco":
            return DiLoCo(self.inner_steps, outer, codec, overlap="layerwise")
        cycle = self.fragments * self.slot
        return StreamingDiLoCo(
            inner_steps=self.inner_steps,
            overlap=cycle - 1 if self.overlap < 0 else self.overlap,
            outer=outer,
            compressor=codec,
            fragment_layers=_FRAGMENT_LAYERS,
            reductions="layerwise",
        )


@cache
def _run(setting: Setting, gbit: float) -> pd.Series:
    seconds = setting.step_seconds * (1 - 1 / (3 * setting.layers))
    workload = uniform_layers("table", setting.layers, setting.parameters, step_seconds=seconds)
    graph = nx.Graph()
    graph.add_nodes_from([0, 1], kind="host")
    graph.add_edge(0, 1, bandwidth=gbit * GBIT, latency=0.0)
    trace = Experiment(
        Quadratic(),
        graph,
        setting.strategy,
        # Nothing but passes and links takes time, and everything fits.
        device=Device(speed=1e15, mfu=1, jitter=0, memory=1e18, memory_bandwidth=1e30),
        workload=workload,
        coordinator=Static(),
        local=SGD(lr=0.1),
        budget=Budget(steps=setting.steps),
        compute=ComputeOptions(values=False),
        evaluations=1,
    ).run()
    return trace["metric"].iloc[-1]


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Args:
        label: of its series: model, method, H.
        setting: what is run.
        target: the utilisation that is asked for.
        published: as printed, Gbit/s; a plus at its end means not even that suffices.
        source: of the table.
    """

    label: str
    setting: Setting
    target: float
    published: str
    source: str

    @cached_property
    def place(self) -> int:
        """The grid point just below the one that suffices; the last one if none does."""
        need = bisect_left(range(len(GRID)), True, key=self._suffices)
        return max(0, need - 1)

    @property
    def ours(self) -> str:
        """As the tables print it."""
        return printed(self.place) + ("+" if self.place == len(GRID) - 1 else "")

    @property
    def off(self) -> int:
        """Grid points from what is published, which several points may be printed as."""
        value = float(self.published.rstrip("+"))
        if value >= GRID[-1]:
            return self.place - (len(GRID) - 1)
        alike = [i for i in range(len(GRID)) if float(printed(i)) == value]
        if not alike:
            alike = [int(np.abs(np.log(GRID / value)).argmin())]
        return min((self.place - i for i in alike), key=abs)

    def _suffices(self, point: int) -> bool:
        return self.setting.utilisation(float(GRID[point])) >= self.target


def printed(point: int) -> str:
    """A grid point as the tables print it: rounded to 2 decimals, then to 1.

    >>> printed(0), printed(12)
    ('0.1', '0.9')
    """
    return f"{round(round(float(GRID[point]), 2), 1):.1f}"


def rows() -> list[Row]:
    """The built-in table: what the papers print, and ours."""
    streaming = DATA / "cu_streaming_diloco_table4_1b_10b.csv"
    scaling = DATA / "cu_scaling_laws_table6_chinchilla_deepseek.csv"
    cells = _cells(streaming)
    exact = sum(cell.ours == cell.published for cell in cells)
    return [
        *judge(streaming),
        _row("cells exact", exact, len(cells), 0.04 * len(cells), cells[0].source),
        *judge(scaling),
        *judge(DATA / "time_volume_streaming_diloco_table1.csv"),
        *judge(DATA / "time_volume_eager_table1.csv"),
    ]


def judge(path: str | Path) -> list[Row]:
    """Judge a table of bandwidths (`target_cu`), or of hours and terabytes (`token_budget`).

    Raises:
        ValueError: a cell is impossible or a method unknown; names file, row and column.
    """
    lines = read(path)
    return _hours(lines) if "token_budget" in lines[0].cells else _bandwidths(_cells(path))


def _bandwidths(cells: list[Cell]) -> list[Row]:
    """A row per series, and how many cells are near."""
    series: dict[str, list[Cell]] = {}
    for cell in cells:
        series.setdefault(cell.label, []).append(cell)
    found = [
        _row(
            f"{label}: grid points off, most of {len(of)} cells",
            max((cell.off for cell in of), key=abs),
            0,
            _MOST_OFF,
            of[0].source,
            "; ".join(
                f"{cell.target:.0%}: {cell.ours} for {cell.published}" for cell in of if cell.off
            ),
        )
        for label, of in series.items()
    ]
    far = [f"{cell.label} at {cell.target:.0%}" for cell in cells if abs(cell.off) > _OFF]
    near = 1 - len(far) / len(cells)
    what = f"share of {len(cells)} cells within one grid point"
    note = "further off: " + ", ".join(far) if far else ""
    return [*found, _row(what, near, 1.0, 1 - _SHARE, cells[0].source, note)]


def _hours(lines: list[Line]) -> list[Row]:
    """Hours at 1 Gbit/s of the 1B model, and volumes relative to the first line of a budget."""
    found, volumes = [], _Volumes()
    for line in lines:
        setting = _setting(line, line.text("method"), 10**9, 24, 0.1, 100)
        ideal = line.number("hours_infinite_bandwidth", positive=True)
        published = line.number("hours_at_1_gbit_s", positive=True)
        label = f"{line.text('method')}, {line.text('token_budget')} tokens"
        source = line.cells.get("source", line.where)
        hours = ideal / setting.utilisation(1.0)
        found.append(
            Row(f"{label}: hours at 1 Gbit/s", hours, published, 0.02, source, "published")
        )
        found += volumes.compare(line, setting, label, source)
    return found


@dataclass
class _Volumes:
    """Terabytes of a file relative to each other: what one is, no paper says."""

    first: dict[str, tuple[float, float]] = field(default_factory=dict)

    def compare(self, line: Line, setting: Setting, label: str, source: str) -> list[Row]:
        """Volumes of a line relative to the first of its budget, or else of its method."""
        published = line.number("terabytes_exchanged", positive=True)
        ours = setting.payload_per_sync / setting.inner_steps * _tokens(line)
        keys = line.text("token_budget"), line.text("method")
        before = next((key for key in keys if key in self.first), None)
        for key in keys:
            self.first.setdefault(key, (ours, published))
        if before is None:
            return []
        of_ours, of_published = self.first[before]
        what = f"{label}: volume over that of the first row of {before}"
        return [Row(what, ours / of_ours, published / of_published, 0.05, source, "published")]


def _tokens(line: Line) -> float:
    text = line.text("token_budget")
    number = re.fullmatch(r"(\d+(?:\.\d+)?)([MBT])", text)
    if number is None:
        raise ValueError(f"{line.where}: token_budget={text!r}: expected for example 25B")
    return float(number[1]) * {"M": 1e6, "B": 1e9, "T": 1e12}[number[2]]


def _cells(path: str | Path) -> list[Cell]:
    return [_cell(line) for line in read(path)]


def _cell(line: Line) -> Cell:
    method = line.text("method")
    interval = line.text("sync_interval_steps").strip()
    setting = _setting(
        line,
        method,
        line.count("parameters", high=10**15),
        line.count("layers", high=1000),
        line.number("step_time_s", positive=True),
        line.count("sync_interval_steps", high=10**6) if interval else None,
    )
    published = line.text("published_gbit_s").strip()
    if not re.fullmatch(r"\d+(\.\d+)?\+?", published) or float(published.rstrip("+")) <= 0:
        raise ValueError(
            f"{line.where}: published_gbit_s={published!r}: expected a number > 0, with a plus "
            "at its end if it does not suffice"
        )
    label = " ".join([line.text("model"), method] + ([f"H={interval}"] if interval else []))
    target = line.number("target_cu", positive=True, high=1.0)
    return Cell(label, setting, target, published, line.cells.get("source", line.where))


_METHOD = re.compile(
    r"(?P<name>data_parallel|diloco|streaming)(?P<overlap>_overlap|_1_outer_step_eager)?"
    r"(?P<fp4>_fp4)?(?:_H(?P<inner>[1-9]\d*))?"
)


def _setting(
    line: Line, method: str, parameters: int, layers: int, seconds: float, inner: int | None
) -> Setting:
    """What a method's name says, with H of its own column unless the name gives it."""
    found = _METHOD.fullmatch(method)
    if found is None or (found["name"] != "streaming" and (found["overlap"] or found["fp4"])):
        raise ValueError(
            f"{line.where}: method={method!r}: expected data_parallel, diloco, streaming, "
            "streaming_overlap, streaming_overlap_fp4 or streaming_1_outer_step_eager, and "
            "perhaps _H100"
        )
    if found["name"] == "data_parallel":
        return Setting(parameters, layers, seconds, "data_parallel")
    inner = int(found["inner"]) if found["inner"] else inner
    if inner is None:
        raise ValueError(f"{line.where}: sync_interval_steps is empty: {method} needs it")
    eager = found["overlap"] == "_1_outer_step_eager"  # its volume is that of FP4
    overlap = -1 if eager else int(found["overlap"] is not None)
    bits = 4 if found["fp4"] or eager else 16
    return Setting(parameters, layers, seconds, found["name"], inner, overlap, bits)


def _row(
    what: str, ours: float, reference: float, tolerance: float, source: str, note: str = ""
) -> Row:
    return Row(what, ours, reference, tolerance, source, "published", relative=False, note=note)
