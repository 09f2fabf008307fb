"""Asynchronous SGD with a parameter server (Dean et al., NeurIPS 2012: Downpour SGD)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from optimizers.strategy import NodeState, NodeStrategy, Program
from sim.compute.local_optimizer import LocalOptimizer
from sim.node import Node
from sim.payload import Compressor, Dense, Payload
from sim.rows import mean_params
from sim.simulation import Simulation
from sim.units import Quantity, seconds


@dataclass(frozen=True)
class ParameterServer(NodeStrategy):
    """One node holds the parameters; the others push gradients and pull parameters, unawaited.

    A gradient is as old as the pushes that overtook it. Encoding is batched with the gradients.

    Args:
        lr: learning rate of the server's step on each gradient that arrives.
        server: id of the node that serves and does not train (it trains if it is the only one).
        compressor: how a gradient is written on the wire.
        patience: a worker that hears nothing for so long goes on with the parameters it has.
    """

    lr: float = 0.1
    server: int = 0
    compressor: Compressor = field(default_factory=Dense)
    patience: Quantity = "10min"

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"strategy.lr={self.lr}: must be > 0")
        if self.server < 0:
            raise ValueError(f"strategy.server={self.server}: must be the id of a node, >= 0")
        object.__setattr__(
            self, "patience", seconds(self.patience, "strategy.patience", positive=True)
        )

    @property
    def passes(self) -> float:
        return 3.0

    def state_rows(self, local: LocalOptimizer) -> float:
        return 0.0

    @property
    def node_state(self) -> NodeState:
        return NodeState(local=False, sends=self.compressor)

    def start(self, sim: Simulation) -> None:
        if self.server >= sim.fleet.n_nodes:
            last = sim.fleet.n_nodes - 1
            raise ValueError(f"strategy.server={self.server}: must be between 0 and {last}")

    def node(self, node: Node) -> Program:
        if node.sim.fleet.n_nodes == 1:
            return self.alone(node)
        return self.serve(node) if node.id == self.server else self.work(node)

    def serve(self, node: Node) -> Program:
        theta = node.params
        while True:
            message = yield node.recv("gradient")
            grad = message.value  # nobody reads it again: new parameters take its memory
            theta = torch.sub(theta, grad, alpha=self.lr, out=grad)
            node["params"] = theta  # the vector that is sent is the one that is held
            node.send(message.src, node.encode(node.sim.dense, theta[None]), "parameters")

    def work(self, node: Node) -> Program:
        while True:
            payload = yield node.grad().then(self.encode)
            node.send(self.server, payload, "gradient")
            message = yield node.recv("parameters", timeout=float(self.patience))
            if message:  # a dead server or a lost message is not a deadlock
                node["params"] = message.value

    def alone(self, node: Node) -> Program:
        while True:
            grad = yield node.grad()
            node.params -= self.lr * grad

    def encode(self, rows: Any, grad: Tensor) -> Payload:
        """Encode a block of gradients, inside the flush."""
        return rows.encode(self.compressor, grad)

    def consensus(self, sim: Simulation) -> Tensor:
        """The server's parameters; the mean of those online while it is away."""
        if self.server in sim.online:
            return sim.node(self.server).params
        return mean_params(sim)
