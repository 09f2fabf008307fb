"""Training runs that were really made on shaped links, predicted by the event simulator.

Inputs are what was measured apart from the quantity itself: the link's rate (iperf3 between two
nodes, before the run) and the seconds of a local step. A round is `H` steps, then a ring all-reduce
of the parameters, tensor by tensor, each waiting for the one before it. Nothing is fitted.

- The round-trip time was not measured; 0.1 ms, the order within one placement group, is assumed.
- Dependable are DiLoCo and local SGD on shaped links with a sync time after the first, which also
  sets up connections. On unshaped links the given rate is that of a single connection, not of the
  collective: those rows use what all-reduces of that size reached, and are printed only.
- Of DDP only the time of whole steps was observed; it is printed only, predicted without overlap.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import networkx as nx
import numpy as np
import simpy

from experiments.validate.columns import DATA, Line, has, read
from experiments.validate.row import Row
from experiments.validate.tcp import Shaper
from experiments.validate.training import utilisation
from sim.network.network import Network

COLUMNS = (
    "config_id",
    "campaign",
    "algorithm",
    "params",
    "replicas",
    "H",
    "repeat",
    "shaped_rate_bps",
    "measured_rate_bps",
    "inner_step_median_s",
    "sync_median_s",
    "first_sync_s",
    "syncstep_wall_median_s",
    "payload_bytes",
    "cu_steady_derived",
    "flags",
)
TOLERANCE = 0.10
"""Accepted median error."""
_ONE_WAY = 0.05e-3
"""Seconds; half of the assumed round-trip time."""
_SOURCE = "measured: 4 nodes, 1 L40S each, tbf (Adnan082/diloco-measured)"
_UNUSABLE = ("sync_from_wall_difference", "link_rate_is_single_flow_cap_not_collective_rate")
_LABELS = {"sync_median_s": "sync (s)", "cu_steady_derived": "utilisation"}


@dataclass(frozen=True)
class Prediction:
    """One quantity of one run, both of the same unit."""

    line: Line
    column: str
    ours: float
    measured: float
    dependable: bool

    @property
    def error(self) -> float:
        """Relative, without its sign."""
        return abs(self.ours / self.measured - 1.0)

    @property
    def rate(self) -> str:
        """The shaped rate, for a reader."""
        shaped = self.line.optional("shaped_rate_bps")
        return f"{shaped / 1e6:,g} Mbit/s" if shaped else "unshaped"


def rows() -> list[Row]:
    """The runs that are shipped, summed up; the TCP model beside it; and whole runs of ours."""
    path = DATA / "diloco_shaped_runs.csv"
    plain = _summary(_predictions(path, None), "")
    shaped = _summary(_predictions(path, Shaper()), ", TCP model", judged=False)
    return [*plain, *shaped, _whole_runs(path)]


def judge(path: str | Path, tcp: bool = False) -> list[Row]:
    """Every run of a file beside its prediction, and the medians, which are judged.

    Args:
        tcp: predict with what `tcp.Shaper` leaves of the measured rate.

    Raises:
        ValueError: a column is missing, a value is impossible, or no run is dependable.
    """
    found = _predictions(path, Shaper() if tcp else None)
    if not any(p.dependable for p in found):
        raise ValueError(
            f"{path}: no dependable run: expected diloco or localsgd on a shaped link with "
            "measured_rate_bps, inner_step_median_s and sync_median_s"
        )
    kind = ", TCP model" if tcp else ""
    return [*(_row(p) for p in found), *_summary(found, kind)]


def _summary(found: list[Prediction], kind: str, judged: bool = True) -> list[Row]:
    """The median error of each quantity: over all dependable runs, and at each rate."""
    rows = []
    for column, label in _LABELS.items():
        groups: dict[str, list[Prediction]] = defaultdict(list)
        for prediction in found:
            if prediction.column == column and prediction.dependable:
                groups["all rates"].append(prediction)
                groups[prediction.rate].append(prediction)
        for name, members in groups.items():
            overall = name == "all rates"
            what = f"{label.split(' (')[0]} of DiLoCo and local SGD, {name}{kind}"
            note = "" if overall else f"median of ours / measured {_ratio(members):.3f}"
            error = median(p.error for p in members)
            rows.append(
                Row(
                    f"{what}: median error of {len(members)} runs",
                    error,
                    0.0,
                    TOLERANCE,
                    _SOURCE,
                    "measurement",
                    relative=False,
                    judged=judged and overall,
                    note=note,
                )
            )
    return rows


def _whole_runs(path: Path) -> Row:
    """Each cell as one run of an experiment; its utilisation beside the median of its repeats."""
    cells: dict[str, list[Line]] = defaultdict(list)
    for prediction in _predictions(path, None):
        if prediction.dependable and prediction.column == "cu_steady_derived":
            cells[prediction.line.text("config_id")].append(prediction.line)
    errors = []
    for lines in cells.values():
        inner, rate, measured = (
            median(line.number(column) for line in lines)
            for column in ("inner_step_median_s", "measured_rate_bps", "cu_steady_derived")
        )
        graph = _nodes(lines[0].count("replicas"), rate / 8, _ONE_WAY)
        steps, params = lines[0].count("H"), lines[0].count("params")
        errors.append(abs(utilisation(graph, params, steps, inner) / measured - 1.0))
    what = f"utilisation, whole runs of the simulator: median error of {len(cells)} cells"
    return Row(what, median(errors), 0.0, TOLERANCE, _SOURCE, "measurement", relative=False)


def _ratio(members: list[Prediction]) -> float:
    return median(p.ours / p.measured for p in members)


def _row(p: Prediction) -> Row:
    run = f"{p.line.text('config_id')} run {p.line.text('repeat')}"
    label = _LABELS.get(p.column, f"{p.column} (s)")
    note = "" if p.dependable else "not dependable"
    return Row(
        f"{run}: {label}",
        p.ours,
        p.measured,
        TOLERANCE,
        _SOURCE,
        "measurement",
        judged=False,
        note=note,
    )


def _predictions(path: str | Path, shaper: Shaper | None) -> list[Prediction]:
    lines = read(path)
    if not has(lines, COLUMNS):
        missing = [name for name in COLUMNS if name not in lines[0].cells]
        raise ValueError(f"{path}: lacks the columns {missing}")
    return [p for line in lines for p in _predict(line, shaper)]


def _predict(line: Line, shaper: Shaper | None) -> Iterator[Prediction]:
    inner = line.optional("inner_step_median_s", positive=True)
    algorithm, n = line.text("algorithm"), line.count("replicas", 2, 1024)
    if inner is None or algorithm not in ("diloco", "localsgd", "ddp"):
        return
    steps, payload = line.count("H"), line.number("payload_bytes", positive=True)
    sizes = [payload] if algorithm == "ddp" else tensors(line.count("params"), payload)
    flags = line.text("flags").split(";")
    usable = algorithm != "ddp" and not any(flag in flags for flag in _UNUSABLE)
    latency = _ONE_WAY if line.optional("shaped_rate_bps") else 0.0  # measured rates include it
    rates = _rates(line, sizes, shaper)
    sync, share = simulate(n, steps, inner, sizes, rates, latency)
    ours = {"sync_median_s": sync, "cu_steady_derived": share}
    if algorithm == "ddp":
        ours = {"syncstep_wall_median_s": inner + sync}
    elif line.optional("sync_median_s") is None:
        ours = {"first_sync_s": sync}
        usable = False
    for column, value in ours.items():
        measured = line.optional(column, positive=True)
        if measured is not None:
            yield Prediction(line, column, value, measured, usable)


def simulate(
    n: int, steps: int, inner: float, sizes: list[float], rates: list[float], latency: float
) -> tuple[float, float]:
    """(seconds of a sync, utilisation) of rounds of `steps` local steps of `inner` seconds.

    Args:
        sizes, rates: bytes of each tensor, and bytes/s of each node's egress while it is summed.
        latency: seconds one way.
    """
    env, network = simpy.Environment(), Network(_nodes(n, rates[0], latency))
    network.attach(env)
    syncs: list[float] = []

    def training() -> Generator[simpy.Event, Any, None]:
        yield env.timeout(steps * inner)
        began = env.now
        for nbytes, rate in zip(sizes, rates):
            if rate != rates[0]:
                for node in range(n):
                    network.set_bandwidth(node, n, rate)
            yield network.all_reduce(range(n), nbytes)
        syncs.append(env.now - began)

    env.run(env.process(training()))
    return syncs[0], steps * inner / env.now


def tensors(params: int, payload: float) -> list[float]:
    """Bytes of each tensor of the measured model; of one vector if it is another model.

    A decoder of width 256, 6 layers, 4 square attention matrices, an MLP of width 768 in three
    matrices, two vectors of norms a layer and one at the end, and two embeddings of 50,257 tokens
    has the 30,846,720 parameters of the measured one.
    """
    width, layer = 256, [*[256 * 256] * 4, *[256 * 768] * 3, 256, 256]
    values = [50257 * width, *layer * 6, width, 50257 * width]
    return [payload * v / params for v in values] if sum(values) == params else [payload]


def _rates(line: Line, sizes: list[float], shaper: Shaper | None) -> list[float]:
    """Bytes/s of a node's egress for each tensor."""
    rate = line.optional("measured_rate_bps", positive=True)
    shaped = line.optional("shaped_rate_bps", positive=True)
    if shaped is None:
        return _unshaped(sizes)
    left = shaper.utilisation(shaped / 8) if shaper else 1.0
    return [left * (rate or shaped) / 8] * len(sizes)


def _unshaped(sizes: list[float]) -> list[float]:
    """What all-reduces reached without shaping, between the measured sizes on a log scale."""
    lines = read(DATA / "nccl_allreduce_unshaped.csv")
    measured = [(x.number("message_bytes"), x.number("bus_rate_bps")) for x in lines]
    known, rates = zip(*sorted(measured))
    return (np.interp(np.log(sizes), np.log(known), rates) / 8).tolist()


def _nodes(n: int, rate: float, latency: float) -> nx.DiGraph:
    """Nodes whose egress is shaped, and whose ingress is not."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(n), kind="host")
    graph.add_node(n, kind="router")
    for node in range(n):
        graph.add_edge(node, n, bandwidth=rate, latency=latency)
        graph.add_edge(n, node, bandwidth=float("inf"), latency=0.0)
    return graph
