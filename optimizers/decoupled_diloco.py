"""Decoupled DiLoCo: learners that never wait, and a syncer that takes a quorum (2604.21428).

Legend: m learners that were heard, p parameters of a fragment.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import count
from typing import Any

import simpy
import torch
from torch import Tensor

from optimizers.async_diloco import Roster, params_at
from optimizers.diloco import nesterov
from optimizers.stamp import Header, header_of, stamped
from optimizers.strategy import NodeState, NodeStrategy, Program
from optimizers.streaming_diloco import layer_groups
from sim.compute.layout import Fragment, Layout
from sim.compute.local_optimizer import LocalOptimizer
from sim.delivery import Message
from sim.node import Node
from sim.payload import Dense, Payload
from sim.simulation import Simulation
from sim.units import Quantity, seconds


@dataclass(frozen=True)
class DecoupledDiLoCo(NodeStrategy):
    """Decoupled DiLoCo of arXiv 2604.21428.

    A learner sends its parameters of one fragment after the other to the syncer, and goes on. The
    syncer takes fragment t mod F once a quorum of learners has sent it, waits a little for others,
    merges what it has and sends the result to all; a learner mixes in what has come whenever it
    ends its local steps. Outer gradients are measured from the syncer's parameters of that moment.

    A fragment whose last sending is still on its way is not sent: the next one will bring more.

    A learner weighs tokens^2 / steps since its fragment was last merged. Embeddings are merged by
    the weighted mean, other tensors by `rda`. A syncer that comes back has the parameters of a
    donor and no momentum.

    Args:
        inner_steps: H, local steps from one sending of a fragment to the next; a multiple of F.
        fragments: F, groups of whole layers.
        pattern: how layers are dealt to fragments, `"strided"` or `"consecutive"`.
        overlap: tau, steps from sending a fragment to the end of its slot of H/F steps, where the
            result is expected; less than a slot. Who is late holds up nobody.
        mixing: alpha, the share of the local value that is kept; 0 overwrites it.
        outer: one state per fragment.
        quorum: K, learners that must have sent a fragment; all, if fewer are there.
        grace: gamma, the share of the time left before the result is expected, which is tau mean
            steps minus what the quorum took and the last result took to arrive.
        max_grace: the longest that the syncer waits after a quorum, s.
        radial: merge by `rda`; else by the weighted mean throughout.
        embeddings: a tensor whose name contains one of these is an embedding.
        server: id of the syncer, which does not train (it trains if it is the only node).
    """

    inner_steps: int = 100
    fragments: int = 2
    pattern: str = "strided"
    overlap: int = 1
    mixing: float = 0.5
    outer: LocalOptimizer = field(default_factory=nesterov)
    quorum: int = 1
    grace: float = 0.5
    max_grace: Quantity = "1min"
    radial: bool = True
    embeddings: Sequence[str] = ("emb", "token", "position", "wte", "wpe")
    server: int = 0

    def __post_init__(self) -> None:
        n = self.fragments
        if n < 1 or self.inner_steps < n or self.inner_steps % n:
            raise ValueError(
                f"strategy.inner_steps={self.inner_steps}: must be a multiple of the {n} "
                f"fragments; the nearest is {max(1, round(self.inner_steps / max(1, n))) * n}"
            )
        if not 0 <= self.overlap < self.inner_steps // n:
            raise ValueError(
                f"strategy.overlap={self.overlap}: must be between 0 and "
                f"{self.inner_steps // n - 1}, less than a slot of {self.inner_steps // n} steps"
            )
        if not 0 <= self.mixing <= 1:
            raise ValueError(f"strategy.mixing={self.mixing}: must be between 0 and 1")
        if self.quorum < 1 or self.server < 0:
            raise ValueError(
                f"strategy.quorum={self.quorum}, server={self.server}: must be >= 1 and >= 0"
            )
        if not 0 <= self.grace <= 1:
            raise ValueError(f"strategy.grace={self.grace}: must be between 0 and 1, a share")
        object.__setattr__(self, "max_grace", seconds(self.max_grace, "strategy.max_grace"))
        object.__setattr__(self, "embeddings", tuple(self.embeddings))

    @property
    def passes(self) -> float:
        return self.outer.passes + 5.0  # the outer step, the differences, and the mixing

    @property
    def node_state(self) -> NodeState:
        return NodeState(sends=Dense(), results=1)  # what the syncer merges

    def start(self, sim: Simulation) -> None:
        last = sim.fleet.n_nodes - 1
        if self.server > last:
            raise ValueError(f"strategy.server={self.server}: must be between 0 and {last}")
        self.split(sim)

    def node(self, node: Node) -> Program:
        if node.sim.fleet.n_nodes == 1:
            return self.alone(node)
        return self.sync(node) if node.id == self.server else self.learn(node)

    def learn(self, node: Node) -> Program:
        """Local steps without an end; fragments leave and arrive beside them."""
        parts, slot, done = self.split(node.sim), self.inner_steps // self.fragments, 0
        sent = _Sent(node, parts)
        for turn in count():
            yield node.train(slot - self.overlap)
            done += slot - self.overlap
            k = turn % len(parts)
            columns = node.part(parts[k])
            theta = columns.encode(node.sim.dense, columns["params"])
            tokens = round(done * node.sim.workload.tokens_per_step)
            theta = stamped(theta, Header(turn, done, tokens))
            sent.send(self.server, theta, f"fragment {k}", k)
            if self.overlap:
                yield from self.receive(node, parts)
                yield node.train(self.overlap)
                done += self.overlap
            yield from self.receive(node, parts)

    def receive(self, node: Node, parts: Sequence[Fragment]) -> Program:
        """Mix in the newest of each fragment that has come."""
        found = {}
        while message := (yield node.recv("merged", timeout=0)):
            found[header_of(message).version % len(parts)] = message.value
        for k, theta in found.items():
            node.part(parts[k]).update(
                lambda local, new=theta: torch.lerp(new.expand_as(local), local, self.mixing),
                "params",
            )

    def sync(self, node: Node) -> Program:
        """Merge one fragment after the other, each as soon as a quorum and a window allow it."""
        syncer = _Syncer(self, node)
        for turn in count():
            k = turn % self.fragments
            heard = yield from syncer.quorum(k)
            heard = yield from syncer.grace(k, heard)
            part = syncer.parts[k]
            theta, outer = part.take(node.params), self.outer.bind(part.layout)
            deltas = theta - torch.stack([message.value for message in heard.values()])
            delta = self.merge(deltas, syncer.weights(k, heard), part.layout)
            theta, syncer.outer[k] = outer.step(theta, delta, syncer.outer[k])
            syncer.publish(turn, theta, list(heard))

    def merge(self, deltas: Tensor, weights: Tensor, layout: Layout) -> Tensor:
        """One outer gradient [p] of several [m, p], weighted."""
        merged = weights @ deltas / weights.sum()
        if self.radial and not deltas.is_meta:
            for name, at in layout.slices.items():
                if not any(part in name for part in self.embeddings):
                    merged[at] = rda(deltas[:, at], weights)
        return merged

    def alone(self, node: Node) -> Program:
        """Learner and syncer in one."""
        parts, theta, slot = self.split(node.sim), node.params, self.inner_steps // self.fragments
        outer = [self.outer.bind(part.layout).init(part.take(theta)) for part in parts]
        for turn in count():
            node.sim.shared["params"] = theta
            yield node.train(slot)
            k, part = turn % len(parts), parts[turn % len(parts)]
            old, local = part.take(theta), part.take(node.params)
            new, outer[k] = self.outer.bind(part.layout).step(old, old - local, outer[k])
            theta = part.replaced(theta, new)
            node.params = part.replaced(node.params, torch.lerp(new, local, self.mixing))

    def split(self, sim: Simulation) -> list[Fragment]:
        """The fragments of the trained model, each with what the clock charges for it."""
        return _split(sim.fleet.layout, sim.workload.layout, self.fragments, self.pattern)

    def consensus(self, sim: Simulation) -> Tensor:
        """The syncer's parameters; the mean of those online while it is away."""
        return params_at(sim, self.server)


@lru_cache(maxsize=16)
def _split(trained: Layout, charged: Layout, fragments: int, pattern: str) -> list[Fragment]:
    """Both layouts cut alike; once, for every node asks."""
    groups = [layer_groups(of, fragments, pattern) for of in (trained, charged)]
    pairs = zip(*groups, strict=True)
    return [Fragment(trained, tuple(a), charged.select(b)) for a, b in pairs]


def rda(deltas: Tensor, weights: Tensor) -> Tensor:
    """Radial-directional average: the mean length, in the direction of the mean direction.

        (sum w |v| / sum w) unit(sum w unit(v) / sum w),    unit(0) = 0

    Unlike that of a mean, its length does not fall with the number of deltas that are nearly
    orthogonal.

    Args:
        deltas: of one tensor, [m, p].
        weights: [m].

    >>> rda(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.ones(2))
    tensor([2.1213, 2.1213])
    """
    weights = weights / weights.sum()
    lengths = torch.linalg.vector_norm(deltas, dim=1)
    direction = torch.where(lengths > 0, weights / lengths, 0.0) @ deltas
    length = torch.linalg.vector_norm(direction)
    return torch.where(length > 0, (weights @ lengths) / length, 0.0) * direction


def token_weight(now: Header, merged: Header) -> float:
    """tokens^2 / steps of a learner since it was last merged; since it began, if that is later."""
    if now.steps <= merged.steps:  # what it sent before it left was merged after that
        merged = Header()
    return (now.tokens - merged.tokens) ** 2 / (now.steps - merged.steps)


class _Sent:
    """What a node has sent of each fragment to whom."""

    def __init__(self, node: Node, parts: Sequence[Fragment]) -> None:
        self._node, self._parts = node, parts
        self._last: dict[tuple[int, int], simpy.Event] = {}

    def send(self, dst: int, x: Payload, tag: str, k: int) -> simpy.Event:
        """The delivery of fragment k; that of before, if it is not over."""
        last = self._last.get((dst, k))
        if last is None or last.processed:
            last = self._last[dst, k] = self._node.send(dst, x, tag, self._parts[k])
        return last


class _Syncer:
    """The syncer's state: outer momentum by fragment, and who was merged when."""

    def __init__(self, strategy: DecoupledDiLoCo, node: Node) -> None:
        self._strategy, self._node, self._sim = strategy, node, node.sim
        self.parts = strategy.split(node.sim)
        theta = node.params
        outer = strategy.outer
        self.outer = [outer.bind(part.layout).init(part.take(theta)) for part in self.parts]
        self._next: list[Any] = [node.recv(f"fragment {k}") for k in range(len(self.parts))]
        self._sent, self._learners = _Sent(node, self.parts), Roster(node)
        self._merged: dict[tuple[int, int, int], Header] = {}
        self._sync_seconds = self._quorum_seconds = self._window = 0.0

    def quorum(self, k: int) -> Generator[simpy.Event, Any, dict[int, Message]]:
        """Wait for enough learners to have sent a fragment; the last message of each."""
        heard, first = self._taken(k, {}), self._sim.now
        while len(heard) < max(1, min(self._strategy.quorum, len(self._learners.ids))):
            yield self._next[k] | self._sim.membership_changed
            first = first if heard else self._sim.now
            self._taken(k, heard)
        self._quorum_seconds = self._sim.now - first
        return heard

    def grace(
        self, k: int, heard: dict[int, Message]
    ) -> Generator[simpy.Event, Any, dict[int, Message]]:
        """Wait for others while there is time; what was heard, in order of learners."""
        rule, speeds = self._strategy, self._sim.devices.speed[self._learners.index]
        step = float((self._sim.workload.flops_per_step / speeds).mean()) if len(speeds) else 0.0
        left = rule.overlap * step - self._quorum_seconds - self._sync_seconds
        self._window = min(max(0.0, rule.grace * left), float(rule.max_grace))
        closing = self._sim.timeout(self._window)
        while not closing.processed and not self._all(heard):
            yield self._next[k] | closing
            self._taken(k, heard)
        return dict(sorted(heard.items()))

    def _all(self, heard: Mapping[int, Message]) -> bool:
        """Whether every learner was heard; one that has left may be counted among them."""
        learners = self._learners.ids
        return len(heard) >= len(learners) and heard.keys() >= set(learners)

    def weights(self, k: int, heard: dict[int, Message]) -> Tensor:
        """Of each learner that was heard, [m]."""
        found = []
        for learner, message in heard.items():
            now = header_of(message)
            life = learner, int(self._sim.departures[learner]), k  # away, it begins at zero again
            found.append(token_weight(now, self._merged.get(life, Header())))
            self._merged[life] = now
        return torch.tensor(found).to(self._sim.fleet.initial)

    def publish(self, turn: int, theta: Tensor, learners: list[int]) -> None:
        """Keep a merged fragment [p], and send it to all."""
        k, sim, node = turn % len(self.parts), self._sim, self._node
        columns = node.part(self.parts[k])
        columns["params"] = theta[None]
        merged = stamped(columns.encode(sim.dense, theta[None]), Header(turn))
        sent = [self._sent.send(i, merged, "merged", k) for i in self._learners.ids]
        sim.all_of(sent).callbacks.append(partial(self._delivered, sim.now))
        took = {"quorum_seconds": self._quorum_seconds, "window": self._window}
        who = {"turn": turn, "fragment": k, "learners": len(learners), "ids": tuple(learners)}
        sim.record("merge", time=sim.now, **who, **took)

    def _taken(self, k: int, heard: dict[int, Message]) -> dict[int, Message]:
        """Add what has arrived of a fragment; of each learner the last counts."""
        while self._next[k].triggered:
            message = self._next[k].value
            heard[message.src] = message
            self._next[k] = self._node.recv(f"fragment {k}")
        return heard

    def _delivered(self, began: float, _: simpy.Event) -> None:
        self._sync_seconds = self._sim.now - began
