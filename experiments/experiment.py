"""Experiment: what Hydra instantiates and what a notebook calls."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networkx as nx
import torch

from optimizers.local import AdamW
from sim.budget import Budget
from sim.churn import AlwaysOn, Churn
from sim.compute.device import Device
from sim.compute.fleet import Fleet
from sim.compute.joint import Joint
from sim.compute.local_optimizer import LocalOptimizer
from sim.compute.memory import Estimate, check_fits, estimate
from sim.compute.options import ComputeOptions
from sim.compute.task import Task
from sim.compute.workers import one_blas_thread
from sim.coordinators import Coordinator, Elastic
from sim.network.network import Network
from sim.network.options import NetworkOptions
from sim.network.traces import NetworkTrace
from sim.simulation import Simulation
from sim.strategy import Strategy
from sim.streams import Streams
from sim.trace import Trace
from sim.workload import Workload
from topologies.links import validate


@dataclass
class Experiment:
    """One run: every part is a plain object, and `run` puts them together.

    Args:
        task: what is trained.
        topology: hosts 0..N-1, routers and links; see `topologies.links.validate`.
        strategy: the training algorithm.
        overlay: who talks to whom in gossip, on the hosts; by default the links between hosts,
            or everybody with everybody if hosts are joined by routers.
        network: how links are shared, and what losses do to collectives.
        bandwidth_trace: what happens to the links while the run lasts, see `sim.network.traces`.
        device: what the nodes compute on.
        workload: the model the clock charges, or a function of the task that gives it.
        churn: when nodes are online.
        coordinator: who is in a round.
        local: inner optimizer of `train`.
        budget: when the run ends.
        seed: of everything random.
        compute: how values are computed, or that none are.
        collectives: `"coupled"`, `"hops"`, `"flows"` or `"auto"`, see `sim.network.network`.
        evaluations: how many times at most the model is evaluated.
        link_records: record each change of what a link carries, as kind "link", and in other
            records who was in a group and when each was done.

    >>> from experiments.tasks.quadratic import Quadratic
    >>> from optimizers import DiLoCo
    >>> from topologies import ring
    >>> run = Experiment(Quadratic(), ring(4), DiLoCo(inner_steps=5), budget=Budget(steps=10))
    >>> trace = run.run()
    >>> int(trace["metric"]["step"].max())
    10
    """

    task: Task
    topology: nx.Graph
    strategy: Strategy
    overlay: nx.Graph | None = None
    network: NetworkOptions = field(default_factory=NetworkOptions)
    bandwidth_trace: NetworkTrace | None = None
    device: Device = field(default_factory=Device)
    workload: Workload | Callable[[Task], Workload] = Workload.of_task
    churn: Churn = field(default_factory=AlwaysOn)
    coordinator: Coordinator = field(default_factory=Elastic)
    local: LocalOptimizer = field(default_factory=lambda: AdamW(lr=0.01))
    budget: Budget = field(default_factory=lambda: Budget(steps=100))
    seed: int = 0
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    collectives: str = "coupled"
    evaluations: int = 50
    link_records: bool = False
    sim: Simulation | None = field(default=None, init=False, repr=False)
    memory: Estimate | None = field(default=None, init=False, repr=False)
    """What the run needs of this machine, once it is built; None without values."""
    profile: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    """Wall seconds of the last run by cause, and in `total`; see `run`."""

    def build(self, events: str | Path | None = None) -> Simulation:
        """Check the parts against each other and put them together; nothing has run yet.

        Raises:
            ValueError: a part is impossible, two do not fit, or all of it does not fit this
                machine's memory; the message names the key.
        """
        if self.evaluations < 1:
            raise ValueError(f"evaluations={self.evaluations}: must be >= 1")
        validate(self.topology)
        streams = Streams(self.seed)
        network = Network(self.topology, collectives=self.collectives, **vars(self.network))
        self.task.bind(self.seed, network.n)
        given = self.workload
        workload = given if isinstance(given, Workload) else given(self.task)
        devices = self.device.bind(network.n, streams)
        self._check_devices(workload, devices)
        fleet = self._fleet(network.n, workload)
        strategy = self.strategy.bind(fleet.layout)
        if self.compute.values:
            if self.compute.engine != "loop":
                self.task.check()
            self.memory = estimate(fleet, strategy.node_state)
            check_fits(self.memory, self.compute)
        self.sim = Simulation(
            network=network,
            fleet=fleet,
            devices=devices,
            workload=workload,
            coordinator=self.coordinator,
            strategy=strategy,
            sessions=self._sessions(network.n, streams),
            budget=self.budget,
            streams=streams,
            trace=Trace(events, details=self.link_records),
            overlay=lambda: self.overlay_graph(network.n),
            evaluations=self.evaluations,
        )
        if self.link_records:
            network.record_loads()
        if self.bandwidth_trace is not None:
            self._start_trace(network)
        return self.sim

    def run(
        self,
        events: str | Path | None = None,
        joint: Joint | None = None,
        kind: Hashable = None,
    ) -> Trace:
        """Build and run to the end of the budget.

        Args:
            events: a file for the records while the run lasts, one JSON object per line.
            joint: runs that compute together with this one, which is one of its programs.
            kind: see `Joint.join`.

        The wall time by cause is in `profile` afterwards, see `sim.profile.CAUSES`; the network's
        is that of sharing links.
        """
        with _one_thread(self.compute.device), _spared_by_the_collector():
            sim = self.build(events)
            if joint is not None:
                joint.join(sim.fleet, kind)
            started = time.perf_counter()
            try:
                with torch.no_grad():
                    sim.start()
                    sim.run(until=sim.done)
                    sim.progress.evaluate()
            finally:
                sim.trace.close()
        self.profile = self._split(sim, time.perf_counter() - started)
        return sim.trace

    def overlay_graph(self, n: int) -> nx.Graph:
        """The overlay on the hosts: the one given, the host links, or the complete graph."""
        if self.overlay is not None:
            missing = set(range(n)) - set(self.overlay.nodes)
            if missing:
                raise ValueError(
                    f"overlay: lacks the nodes {sorted(missing)[:5]} of the topology's {n}"
                )
            overlay = self.overlay.subgraph(range(n)).copy()
            for node in overlay:
                overlay.nodes[node].setdefault("kind", "host")
            return overlay
        hosts = nx.Graph(self.topology.subgraph(range(n)))
        if not nx.is_connected(hosts):
            hosts = nx.complete_graph(n)
            nx.set_node_attributes(hosts, "host", "kind")
        return hosts

    def _start_trace(self, network: Network) -> None:
        assert self.bandwidth_trace is not None
        try:
            self.bandwidth_trace.start(network)
        except (ValueError, OSError) as error:
            raise ValueError(f"bandwidth_trace: {error}") from error

    def _fleet(self, n: int, workload: Workload) -> Fleet:
        options, device = self.compute, self.compute.device
        if options.values:
            generator = torch.Generator().manual_seed(self.seed)
            initial, layout = self.task.init(generator).to(device), self.task.layout
        else:
            initial, layout = torch.empty(workload.layout.numel, device=device), workload.layout
        return Fleet(self.task, n, self.local, initial, layout, seed=self.seed, options=options)

    def _sessions(self, n: int, streams: Streams) -> Any:
        horizon = self.budget.horizon
        if math.isinf(horizon) and not isinstance(self.churn, AlwaysOn):
            raise ValueError(
                "budget.seconds=null: churn is drawn up to the end of simulated time, so it needs "
                "one; set budget.seconds, or churn=always_on"
            )
        return self.churn.sessions(n, horizon, streams.rng("churn"))

    def _check_devices(self, workload: Workload, devices: Any) -> None:
        """Refuse a model that does not fit the smallest device, with the sum written out."""
        if workload.name == "proxy":
            return
        least = int(devices.memory.argmin())
        charged = workload.layout
        rows = self.strategy.bind(charged).state_rows(self.local.bind(charged))
        workload.check_fits(float(devices.memory[least]), f"device {devices.gpu[least]}", rows)

    def _split(self, sim: Simulation, total: float) -> dict[str, float]:
        parts = sim.profile.seconds | {"network": sim.network.solve_seconds, "events": 0.0}
        return parts | {"events": total - sum(parts.values()), "total": total}


@contextmanager
def _spared_by_the_collector() -> Iterator[None]:
    """What there was before a run, such as modules, is not searched for cycles again and again."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU torch and the BLAS have one thread, so that bits do not depend on the cores."""
    before = torch.get_num_threads()
    if device.type != "cuda":
        torch.set_num_threads(1)
    try:
        with one_blas_thread():
            yield
    finally:
        torch.set_num_threads(before)
