"""What must hold on any platform: no link above its capacity, and max-min fairness.

Random platforms are run on the engine and looked at from outside: a rate is the difference of the
bytes moved at two instants between which nothing happens, over the time between them. So nothing
of the solver is trusted.

The certificate (Bertsekas and Gallager, Data Networks, section 6.5.2): rates are max-min fair by
weight exactly when each activity is at its own cap, or crosses a full link on which nobody has a
higher rate per weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from experiments.validate import conservation
from experiments.validate.row import Row
from sim.network.fluid import Activity, Links
from sim.streams import Streams

_TOLERANCE = 1e-6
_SHORTEST = 1e-3
"""Seconds between two looks: shorter ones would see rounding."""
_LOOKS = 60
Routes = Callable[[np.random.Generator], np.ndarray]
Flow = tuple[np.ndarray, float, float]
"""Route (links, int), weight, and cap in bytes/s."""


@dataclass
class Findings:
    """What was seen on a platform.

    Attributes:
        excess: largest load of a link above its capacity, relative.
        unfair: activities without a bottleneck.
        checked: activities that were looked at.
    """

    excess: float = 0.0
    unfair: int = 0
    checked: int = 0


@dataclass
class Scenario:
    """Random flows on `n_links` links, whose capacities change and which fail and come back."""

    name: str
    n_links: int
    n_flows: int
    routes: Routes
    seed: int = 0
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = Streams(self.seed).rng(f"validate.{self.name}")

    def run(self) -> Findings:
        """Run it, and look at some instants."""
        env, rng = simpy.Environment(), self.rng
        capacity = 10 ** rng.uniform(5, 7, self.n_links)
        links = Links(env, capacity)
        flows: dict[int, Flow] = {}
        for flow in range(self.n_flows):
            self._at(env, rng.uniform(0, 30), self._start, links, flows, flow)
        for _ in range(20):
            link, value = int(rng.integers(self.n_links)), float(10 ** rng.uniform(5, 7))
            self._at(env, rng.uniform(0, 60), links.set_capacity, link, value)
        for _ in range(4):
            link, down = int(rng.integers(self.n_links)), rng.uniform(0, 60)
            self._at(env, down, links.down, link)
            self._at(env, down + rng.uniform(0, 5), links.up, link)
        findings = Findings()
        for at in rng.uniform(0, 60, _LOOKS):
            self._at(env, at, self._look, env, links, flows, findings)
        env.run()
        return findings

    def _at(self, env: simpy.Environment, time: float, act: Callable, *arguments: Any) -> None:
        env.timeout(float(time)).callbacks.append(lambda _: act(*arguments))

    def _start(self, links: Links, flows: dict[int, Flow], flow: int) -> None:
        rng, route = self.rng, self.routes(self.rng)
        weight = float(rng.choice([1.0, 1.0, 0.5, 3.0]))
        cap = float(rng.choice([np.inf, np.inf, 10 ** rng.uniform(4, 6)]))
        flows[flow] = route, weight, cap
        size, latency = 10 ** rng.uniform(5, 8), rng.uniform(0, 0.2)
        links.activity(route, size, latency, cap=cap, tag=flow, weight=weight)

    def _look(
        self, env: simpy.Environment, links: Links, flows: dict[int, Flow], findings: Findings
    ) -> None:
        quiet = env.peek() - env.now
        if _SHORTEST < quiet < np.inf:
            first = _moved(links)
            self._at(env, quiet / 2, self._look_again, links, flows, findings, first, quiet / 2)

    def _look_again(
        self,
        links: Links,
        flows: dict[int, Flow],
        findings: Findings,
        first: dict[int, float],
        elapsed: float,
    ) -> None:
        rates = {flow: (moved - first[flow]) / elapsed for flow, moved in _moved(links).items()}
        certify(rates, flows, links.capacity, findings)


def _moved(links: Links) -> dict[int, float]:
    """Bytes that each flow has moved until now."""
    return {mover.tag: moved for mover, moved in links.running() if isinstance(mover, Activity)}


def certify(
    rates: dict[int, float], flows: dict[int, Flow], capacity: np.ndarray, findings: Findings
) -> None:
    """Add what some rates do to capacity and fairness.

    Args:
        rates: bytes/s by flow.
        flows: route (int [links]), weight and cap of each flow.
        capacity: bytes/s of each link, float64 [L].
    """
    load, highest = np.zeros((2, len(capacity)))
    for flow, rate in rates.items():
        route, weight, _ = flows[flow]
        load[route] += rate
        highest[route] = np.maximum(highest[route], rate / weight)
    findings.excess = max(findings.excess, float((load / capacity).max() - 1.0))
    full = load >= capacity * (1.0 - _TOLERANCE)
    for flow, rate in rates.items():
        route, weight, cap = flows[flow]
        bottleneck = full[route] & (rate / weight >= highest[route] * (1.0 - _TOLERANCE))
        findings.checked += 1
        findings.unfair += not (bottleneck.any() or rate >= cap * (1.0 - _TOLERANCE))


def rows() -> list[Row]:
    """Random platforms of three kinds; and where bytes go."""
    scenarios = [
        Scenario("access links", 200, 600, _access(100)),
        Scenario("access links and a backbone", 201, 400, _access(100, backbone=True)),
        Scenario("routes of 1 to 5 links", 60, 300, _arbitrary(60)),
    ]
    return [*(row for scenario in scenarios for row in _rows(scenario)), *conservation.rows()]


def _rows(scenario: Scenario) -> list[Row]:
    found = scenario.run()
    where = f"random platform, {scenario.name}"
    unfair = float(found.unfair) if found.checked else float("nan")
    checked = f"of {found.checked:,} activities, without a bottleneck"
    return [
        _row(
            f"{where}: load above capacity, relative", found.excess, _TOLERANCE, "load <= capacity"
        ),
        _row(f"{where}: {checked}", unfair, 0.0, "max-min certificate"),
    ]


def _row(what: str, ours: float, tolerance: float, source: str) -> Row:
    return Row(what, ours, 0.0, tolerance, source, "property", relative=False)


def _access(n: int, backbone: bool = False) -> Routes:
    def routes(rng: np.random.Generator) -> np.ndarray:
        src, dst = rng.choice(n, 2, replace=False)
        return np.array([src, n + dst, *([2 * n] if backbone else [])])

    return routes


def _arbitrary(n_links: int) -> Routes:
    def routes(rng: np.random.Generator) -> np.ndarray:
        return rng.choice(n_links, int(rng.integers(1, 6)), replace=False)

    return routes
