"""Fixtures: a small task, a small network, and experiments whose times are easy to do by hand."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.experiment import Experiment
from experiments.tasks.quadratic import Quadratic
from optimizers import SGD, AllReduce
from sim.budget import Budget
from sim.churn import AlwaysOn, Churn
from sim.compute.device import Device
from sim.compute.layout import Layout
from sim.coordinators import Static
from sim.simulation import Simulation
from sim.strategy import Shared, Strategy
from topologies import ring

torch.set_num_threads(1)
os.environ.setdefault("ARCHIPELAGO_CACHE", str(Path(tempfile.gettempdir()) / "archipelago-tests"))

Absence = tuple[float, float]


@dataclass(frozen=True)
class Absences(Churn):
    """Everybody is online but for the absences given, as (from, to) in seconds."""

    away: Mapping[int, tuple[Absence, ...]]

    def sessions(self, n: int, horizon: float, rng: np.random.Generator) -> pd.DataFrame:
        rows = []
        for node in range(n):
            here = 0.0
            for left, back in self.away.get(node, ()):
                rows += [(node, here, left)] if left > here else []
                here = back
            rows += [(node, here, math.inf)] if here < math.inf else []
        rows.sort(key=lambda row: (row[1], row[0]))
        return pd.DataFrame(rows, columns=["node", "start", "end"])


@dataclass(frozen=True)
class Idle(Strategy):
    """Knows the initial parameters, and does nothing: for tests that make the moves themselves."""

    passes = 0.0

    def init(self, sim: Simulation) -> Shared:
        return {"params": sim.initial_params()}

    def start(self, sim: Simulation) -> None: ...

    def admit(self, sim: Simulation, node: int) -> None: ...

    def consensus(self, sim: Simulation) -> torch.Tensor:
        return sim.shared["params"]


class Bowl(Quadratic):
    """A quadratic of 8 parameters in two tensors, so that it can be cut into fragments."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.layout = Layout({"layer.0": (5,), "layer.1": (3,)})


@pytest.fixture
def quadratic() -> Quadratic:
    """Nodes that disagree about the optimum, with noise; 8 parameters, 32 bytes."""
    task = Bowl(dimension=8, condition=4.0, heterogeneity=0.5, noise=0.1)
    task.bind(0, 8)
    return task


@pytest.fixture
def ring4():
    """Four hosts in a circle: 0.1 s, 32 bytes/s, so that a vector takes 1 s."""
    return ring(4, bandwidth=32, latency=0.1)


@pytest.fixture
def tiny(quadratic: Quadratic) -> Callable[..., Experiment]:
    """`tiny(strategy, away={2: (1.5, 4.0)}, ...)`: an experiment whose local step takes 1 s.

    `away` says from when to when a node is offline: one pair, or a list of them.
    """

    def build(
        strategy: Any = None,
        *,
        n: int = 4,
        away: Mapping[int, Absence | list[Absence]] | None = None,
        **parts: Any,
    ) -> Experiment:
        pairs = {
            node: tuple(spans) if isinstance(spans, list) else (spans,)
            for node, spans in (away or {}).items()
        }
        defaults: dict[str, Any] = {
            "task": quadratic,
            "topology": parts.get("topology") or ring(n, bandwidth=32, latency=0.1),
            "strategy": strategy or AllReduce(SGD(lr=0.1)),
            "device": Device(speed=48, mfu=1, jitter=0),
            "local": SGD(lr=0.1),
            "coordinator": Static(),
            "churn": Absences(pairs) if pairs else AlwaysOn(),
            "budget": Budget(seconds=40),
        }
        return Experiment(**defaults | parts)

    return build


@pytest.fixture
def idle(tiny: Callable[..., Experiment]) -> Callable[..., Simulation]:
    """`idle(away=..., ...)`: a simulation as `tiny` makes it, started, in which nobody trains."""

    def build(**parts: Any) -> Simulation:
        sim = tiny(**{"strategy": Idle()} | parts).build()
        sim.start()
        return sim

    return build
