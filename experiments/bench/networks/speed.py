"""Links under ten thousand flows that all start at once: ours beside SimGrid, same inputs.

Both are timed from the first flow that is issued to the last one's end, without the building of
the platform, in turns. SimGrid runs in the mode that is faster on a smaller load of the same kind,
for as long as it may; where that is not enough, its row is a bound. Ours is run as one batch,
which is what SimGrid does too: its driver issues all flows and then only waits for them. Beside
that stands what the same flows cost as plain flows with callbacks on a simpy clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import simpy
from numpy import ndarray

from experiments.bench.networks import loads
from experiments.bench.networks.loads import Load
from experiments.bench.networks.rival import MODES, SimGrid, Timed
from experiments.bench.row import Row, row
from experiments.validate.replay import COALESCING
from sim.network.batch import finish_times
from sim.network.fluid import Links

REPEATS = 3


@dataclass(frozen=True)
class Case:
    """A kind of load.

    Args:
        make: makes it, from flows and hosts.
        hosts, flows: of the measured load.
        target: speed over SimGrid's; `approximate_target` in approximate mode, None to leave it
            out.
    """

    make: Callable[[int, int], Load]
    hosts: int
    flows: int
    target: str
    approximate_target: str | None = None


CASES = (
    Case(loads.private_access, 10_000, 10_000, ">= 15"),
    Case(loads.regional, 1_000, 10_000, ">= 6"),
    Case(loads.one_backbone, 1_000, 10_000, ">= 3", ">= 6"),
)


@dataclass(frozen=True)
class Patience:
    """How long SimGrid may take.

    Args:
        limit: wall seconds of one run.
        total: no further run is started after so many, in one case.
        pilot: by how much the load is smaller on which its modes are compared.
    """

    limit: float = 90.0
    total: float = 20.0
    pilot: float = 0.3


Ways = dict[str, tuple[Callable[[Load], Timed], str | None, str]]


def batch(load: Load, approximate: float = 0.0) -> Timed:
    """Ours as one batch: `sim.network.batch.finish_times`."""
    routes = load.routes()
    lengths, crossed = np.array([len(route) for route in routes]), np.concatenate(routes)
    began = time.perf_counter()
    finish = finish_times(load.capacity, lengths, crossed, load.nbytes, 0.0, approximate)
    return Timed(time.perf_counter() - began, finish)


class _Flow:
    """Notes when it ends."""

    __slots__ = ("env", "finish", "number", "row")

    def __init__(self, env: simpy.Environment, finish: ndarray, number: int) -> None:
        self.env, self.finish, self.number, self.row = env, finish, number, -1

    def conclude(self, moved: float, ok: bool) -> None:
        self.row, self.finish[self.number] = -1, self.env.now


def by_simpy(load: Load) -> Timed:
    """Ours on a simpy clock: a plain flow, as of a transfer, and a callback each."""
    env, routes, nbytes = simpy.Environment(), load.routes(), load.nbytes.tolist()
    links, finish = Links(env, load.capacity), np.full(len(routes), np.nan)
    links.core = np.concatenate(routes)
    lengths = np.array([len(route) for route in routes])
    first = (np.cumsum(lengths) - lengths).tolist()

    def issue(_: simpy.Event) -> None:
        for flow, (begin, count, size) in enumerate(zip(first, lengths.tolist(), nbytes)):
            route = -1, begin, count, -1
            links.flow(_Flow(env, finish, flow), route, size, 0.0, np.inf, 1.0)

    env.timeout(0.0).callbacks.append(issue)
    began = time.perf_counter()
    env.run()
    return Timed(time.perf_counter() - began, finish)


def rows(case: Case, simgrid: SimGrid | None, patience: Patience) -> list[Row]:
    """Speed, and how far finish times are from SimGrid's."""
    load, ways = case.make(case.flows, case.hosts), _ways(case)
    mode = faster_mode(case, simgrid, patience) if simgrid else MODES[0]
    timed = in_turns(load, ways, simgrid, mode, patience)
    theirs = timed.pop("SimGrid")
    made = []
    for way, (_, target, bound) in ways.items():
        made.append(_speed(load, way, timed[way], theirs, _label(simgrid, mode), target, patience))
        if theirs:
            off = deviation(timed[way][-1].finish, theirs[-1].finish)
            name = f"{_name(load)}: finish times, {way}"
            made.append(row(name, "largest relative deviation", [off], target=bound))
    return made


def faster_mode(case: Case, simgrid: SimGrid, patience: Patience) -> str:
    """SimGrid's faster mode on a smaller load of the same kind."""
    flows, hosts = round(case.flows * patience.pilot), round(case.hosts * patience.pilot)
    smaller = case.make(flows, max(hosts, 2))
    best, fastest = MODES[0], patience.limit
    for mode in MODES:
        done = simgrid.run(smaller, mode, patience.limit)
        if done is not None and done.seconds < fastest:
            best, fastest = mode, done.seconds
    return best


def in_turns(
    load: Load, ways: Ways, simgrid: SimGrid | None, mode: str, patience: Patience
) -> dict[str, list[Timed]]:
    """Runs of each of our ways, in turns with those of "SimGrid", until one took too long."""
    timed: dict[str, list[Timed]] = {way: [] for way in [*ways, "SimGrid"]}
    for _ in range(REPEATS):
        for way, (run, _, _) in ways.items():
            timed[way].append(run(load))
        if simgrid is None or sum(run.seconds for run in timed["SimGrid"]) > patience.total:
            continue
        done = simgrid.run(load, mode, patience.limit)
        if done is None:
            simgrid = None
        else:
            timed["SimGrid"].append(done)
    return timed


def deviation(ours: ndarray, theirs: ndarray) -> float:
    """The largest relative difference of finish times; nan if one is missing in ours."""
    return float(np.abs(ours / theirs - 1.0).max())


def _ways(case: Case) -> Ways:
    """How ours is run, the bound of its speed over SimGrid's, and that of its deviation."""
    ways: Ways = {"one batch": (batch, case.target, "<= 1e-6")}
    if case.approximate_target is not None:
        coarse = partial(batch, approximate=COALESCING)
        name = f"one batch, approximate {COALESCING:g}"
        ways[name] = coarse, case.approximate_target, "<= 1e-3"
    return ways | {"through simpy": (by_simpy, None, "<= 1e-6")}


def _speed(
    load: Load,
    way: str,
    ours: Sequence[Timed],
    theirs: Sequence[Timed],
    label: str | None,
    target: str | None,
    patience: Patience,
) -> Row:
    """Flows per second, beside SimGrid's or, where it was too slow, beside a bound of that."""
    flows, name = len(load.nbytes), f"{_name(load)}: speed, {way}"
    rates = [flows / run.seconds for run in ours]
    if label is None:
        return row(f"{name} (no SimGrid on this machine)", "flows/s", rates)
    others = [flows / run.seconds for run in theirs]
    if not others:
        others, label = [flows / patience.limit], f"{label}, not done in {patience.limit:g} s"
    return row(name, "flows/s", rates, others, label, target)


def _label(simgrid: SimGrid | None, mode: str) -> str | None:
    return f"SimGrid {simgrid.version} {mode}" if simgrid else None


def _name(load: Load) -> str:
    return f"{load.name}, {len(load.nbytes):,} flows, {len(load.out):,} hosts"
