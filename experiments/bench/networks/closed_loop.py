"""Every node sends again at once, for ever, as a simpy process: flows per second of wall time.

`python -m experiments.bench.networks.closed_loop NODES FLOWS REPEATS [LATENCY]` measures in a
process of its own, whose peak memory is then that of the network, and prints JSON. Bare timeouts
of as many processes are measured in turns: what simpy by itself does on this machine now.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import simpy

from experiments.bench.networks import loads
from sim.network.network import Network

_DRAWN = 100_003
"""Random numbers drawn before the clock starts, then used round and round."""


@dataclass(frozen=True)
class Loop:
    """What was measured with so many nodes.

    Attributes:
        flows: completed per second of wall time, from the start of the first, each repeat.
        timeouts: bare timeouts per second of wall time, each repeat.
        solving: share of that time in the solver, each repeat; the rest is simpy's events,
            processes and Python between them.
        build: seconds to make the network from its graph.
        peak: bytes of resident memory at most, after the flows and before the timeouts.
    """

    nodes: int
    flows: list[float]
    timeouts: list[float]
    solving: list[float]
    build: float
    peak: float


def measure(nodes: int, flows: int, repeats: int, latency: float = 0.0) -> Loop:
    """Measure in a process of its own."""
    arguments = [str(nodes), str(flows), str(repeats), str(latency)]
    command = [sys.executable, "-m", "experiments.bench.networks.closed_loop", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Loop(**json.loads(done.stdout))


def network_loop(network: Network, flows: int) -> float:
    """Wall seconds of so many flows; every node sends to a random other one, again and again."""
    env = simpy.Environment()
    network.attach(env)
    rng, n = np.random.default_rng(1), network.n
    hops = cycle(rng.integers(1, n, _DRAWN).tolist())
    sizes = cycle(loads.sizes(_DRAWN, rng).tolist())

    def node(src: int, ended: Callable[[], None]) -> Generator[simpy.Event]:
        while True:
            yield network.transfer(src, (src + next(hops)) % n, next(sizes))
            ended()

    return _run(env, node, n, flows)


def timeout_loop(n: int, events: int) -> float:
    """Wall seconds of so many timeouts of n processes."""
    env = simpy.Environment()
    delays = cycle(np.random.default_rng(1).exponential(1.0, _DRAWN).tolist())

    def node(src: int, ended: Callable[[], None]) -> Generator[simpy.Event]:
        while True:
            yield env.timeout(next(delays))
            ended()

    return _run(env, node, n, events)


def _run(env: simpy.Environment, node: Callable, n: int, events: int) -> float:
    """Start n processes, and stop the clock after so many of their events."""
    done, left = env.event(), _count_down(events)

    def ended() -> None:
        if next(left) == 0:
            done.succeed()

    for i in range(n):
        env.process(node(i, ended))
    began = time.perf_counter()
    env.run(done)
    return time.perf_counter() - began


def _count_down(n: int) -> Iterator[int]:
    return iter(range(n - 1, -n, -1))  # those in the same instant as the last one come after 0


def main() -> None:
    """Measure, print JSON."""
    nodes, flows, repeats = (int(argument) for argument in sys.argv[1:4])
    small = Network(loads.access_graph(10))
    network_loop(small, 100)  # compiled code is loaded
    began = time.perf_counter()
    network = Network(loads.access_graph(nodes, float(sys.argv[4])))
    build = time.perf_counter() - began
    ours, timeouts, solving, peak = [], [], [], 0.0
    for _ in range(repeats):
        seconds = network_loop(network, flows)
        ours.append(flows / seconds)
        solving.append(network.solve_seconds / seconds)
        peak = peak or 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        timeouts.append(flows / timeout_loop(nodes, flows))
    print(json.dumps(vars(Loop(nodes, ours, timeouts, solving, build, peak))))


if __name__ == "__main__":
    main()
