"""Asynchronous DiLoCo as the notebook of google-deepmind/asyncdiloco computes it.

Outer gradients come from the file. Everything else (who pushes when, versions, staleness, weights,
the server's parameters) is what a run gives whose devices take the file's seconds per step and
whose network is free.

Legend: E events, K workers, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.errors import unknown
from experiments.experiment import Experiment
from experiments.validate.golden.case import DOUBLE, Case
from experiments.validate.row import Row
from optimizers import SGD, AsyncDiLoCo
from optimizers.server_rules import Buffered, ByStaleness, DyLU, Equal, ServerRule, Vanilla
from sim.budget import Budget
from sim.compute.device import Devices
from sim.compute.task import Task
from sim.payload import Dense
from sim.simulation import Simulation
from sim.strategy import Shared
from sim.streams import Streams
from topologies import complete

# Values that `meta` leaves out are those of the notebook's own signatures.
_WEIGHTS = {"constant": 0.0, "polynomial": 0.5}
"""`sync_weight_method`, and the power of staleness that it is."""


def rows(case: Case) -> Iterator[Row]:
    """Order, times, versions, staleness and weights of the pushes; the server after each."""
    rule, events = _Recorded(_rule(case)), len(case["event_worker"])
    if events == 0 or events != case.count("events", events):
        raise ValueError(f"{case.name}: meta.events={case.meta['events']}, arrays have {events}")
    sim = _run(case, rule, events)
    pushes = sim.trace.rows("push")[:events]
    for what, ours in {
        "event_worker": "node",
        "event_base_version": "version",
        "event_staleness": "staleness",
        "event_inner_steps": "steps",
        "event_time": "time",
        "event_finish_time": "sent",
    }.items():
        values = torch.tensor([float(push[ours]) for push in pushes], dtype=torch.float64)
        yield case.compare(what, values, case[what].double(), DOUBLE * (1 + float(values.max())))
    weigh = _weigher(case)  # not used by `delayed_sgd`, but computed
    each = [weigh.weight(push["staleness"], case.workers) for push in pushes]
    weights = torch.tensor(each, dtype=torch.float64)
    yield case.compare("event_sync_weight", weights, case["event_sync_weight"].double(), DOUBLE)
    deltas = [grad / push["weight"] for grad, push in zip(rule.grads, pushes)]
    yield case.compare("pseudograd", torch.stack(deltas), case.flat("pseudograd"))
    yield case.compare("server", torch.stack(rule.thetas[:events]), case.flat("server"))


def _rule(case: Case) -> ServerRule:
    outer = case.given("outer")
    if not isinstance(outer, dict) or not {"lr"} <= {*outer} <= {"lr", "momentum", "nesterov"}:
        raise ValueError(
            f"{case.name}: meta.outer={outer!r}: must be of SGD: lr, and momentum and nesterov"
        )
    sgd = SGD(outer["lr"], outer.get("momentum", 0.0), outer.get("nesterov", False))
    rules: dict[str, ServerRule] = {
        "vanilla": replace(_weigher(case), rule=Vanilla(sgd)),
        "delayed_sgd": Buffered(sgd),
    }
    method = str(case.given("sync_method", "vanilla"))
    if method not in rules:
        raise ValueError(
            unknown(f"{case.name}: meta.sync_method={method!r}", "rule", method, list(rules))
        )
    return rules[method]


def _weigher(case: Case) -> ByStaleness:
    """How staleness weighs."""
    by = str(case.given("sync_weight_method", "constant"))
    if by not in _WEIGHTS:
        raise ValueError(
            unknown(f"{case.name}: meta.sync_weight_method={by!r}", "weight", by, list(_WEIGHTS))
        )
    return ByStaleness(Vanilla(), _WEIGHTS[by])


def _run(case: Case, rule: ServerRule, events: int) -> Simulation:
    """A whole run of the K workers and a server, node K, until it has handled all events."""
    if case.number("sync_time", 0.0):
        raise ValueError(f"{case.name}: meta.sync_time={case.meta['sync_time']}: must be 0")
    strategy = AsyncDiLoCo(
        case.count("inner_steps"),
        rule,
        DyLU(5) if case.flag("scale_steps", False) else Equal(),
        grace=case.number("max_wait_time", 0.5),
        server=case.workers,
        compressor=Dense("native"),
    )
    graph = complete(case.workers + 1, bandwidth=np.inf, latency=0)
    seconds = case.given("sec_per_step")
    work = _work(seconds)
    device = _Seconds(tuple(seconds), work)
    parts: dict[str, Any] = {"device": device, "local": SGD(1.0), "budget": Budget(steps=10**9)}
    sim = Experiment(_Drifts(case, work), graph, strategy, **parts).build()
    sim.start()
    while len(sim.trace.rows("push")) < events:
        sim.step()
    return sim


def _work(seconds: Any) -> float:
    """FLOP of a step that a division by a speed makes exactly these seconds, as far as it can be.

    Who comes first may hang on a rounding, in the notebook as here.
    """
    known = isinstance(seconds, list) and all(isinstance(s, int | float) for s in seconds)
    if not known or not all(0 < s < np.inf for s in seconds):
        raise ValueError(f"meta.sec_per_step={seconds!r}: must be a list of seconds > 0")
    off = [(sum(work / (work / s) != s for s in seconds), work) for work in range(1, 1000, 2)]
    return float(min(off)[1])


class _Drifts(Task):
    """The first step of a worker's round moves it by the file's outer gradient, the others not."""

    def __init__(self, case: Case, work: float) -> None:
        self.layout, self._start = case.layout, case.flat("init")
        self.tokens_per_step, self.flops_per_token = 1, work
        worker, steps = case["event_worker"].numpy(), case["event_inner_steps"].numpy()
        moves = case.flat("pseudograd")
        self._moves: dict[tuple[int, int], Tensor] = {}
        for node in range(case.workers):
            own = np.flatnonzero(worker == node)
            begins = np.cumsum(steps[own]) - steps[own]
            self._moves |= {(node, int(at)): moves[e] for at, e in zip(begins, own)}

    def bind(self, seed: int, n_nodes: int) -> None: ...

    def init(self, generator: torch.Generator) -> Tensor:
        return self._start.clone()

    def batch(self, nodes: np.ndarray, steps: np.ndarray) -> Tensor:
        still = torch.zeros_like(self._start)
        return torch.stack(
            [self._moves.get(at, still) for at in zip(nodes.tolist(), steps.tolist())]
        )

    def loss(self, params: Tensor, batch: Tensor) -> Tensor:
        return (params * batch).sum()

    def evaluate(self, params: Tensor, buffers: Tensor | None = None) -> dict[str, float]:
        return {"loss": float(params.norm())}


@dataclass(frozen=True)
class _Seconds:
    """Devices that take so many seconds for a step of so many FLOP, and none for their memory.

    The last serves.
    """

    seconds: tuple[float, ...]
    work: float

    def bind(self, n_nodes: int, streams: Streams) -> Devices:
        if n_nodes != len(self.seconds) + 1:
            raise ValueError(
                f"meta.workers={n_nodes - 1}, but sec_per_step has {len(self.seconds)}: they do "
                "not belong together"
            )
        unlimited = np.full(n_nodes, np.inf)
        return Devices(
            seed=streams.seed,
            gpu=("custom",) * n_nodes,
            speed=self.work / np.array([*self.seconds, 1.0]),
            memory_bandwidth=unlimited,
            memory=unlimited,
            price=np.zeros(n_nodes),
            jitter=0.0,
            stragglers=(0.0, 1.0),
        )


@dataclass(frozen=True)
class _Recorded(ServerRule):
    """A rule, what it was given, and the parameters after each push."""

    rule: ServerRule
    grads: list[Tensor] = field(default_factory=list, compare=False)
    thetas: list[Tensor] = field(default_factory=list, compare=False)

    @property
    def passes(self) -> float:
        return self.rule.passes

    def init(self, theta: Tensor) -> Shared:
        return self.rule.init(theta)

    def weight(self, staleness: int, workers: int) -> float:
        return self.rule.weight(staleness, workers)

    def step(
        self, theta: Tensor, grad: Tensor, state: Shared, workers: int
    ) -> tuple[Tensor, Shared]:
        theta, state = self.rule.step(theta, grad, state, workers)
        self.grads.append(grad)
        self.thetas.append(theta)
        return theta, state
