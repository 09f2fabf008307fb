"""SparseLoCo: DiLoCo with top-k and error feedback (Sarfi et al., 2508.15706); CCLoco, Templar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from optimizers.compression import Blocks, Chain, CodeBook, PerTensor, TopK
from optimizers.compression.feedback import check_fed_back
from optimizers.strategy import GroupStrategy, NodeState, Program, Shared
from sim.aggregation import Aggregation, Mean
from sim.group import Group
from sim.overlap import Overlap
from sim.payload import Compressor, Dense, Payload, Wire
from sim.simulation import Simulation
from sim.units import Quantity


def chunk_top_k() -> Compressor:
    """The paper's codec: of blocks of 64 x 64 the 64 largest, in 2 bits, with 12 bits of index."""
    top_k = TopK(64, index="packed")
    return PerTensor(Chain(Blocks(64), top_k, CodeBook(bins=4, centred=True)))


@dataclass(frozen=True)
class SparseLoCo(GroupStrategy):
    """Algorithm 1 of arXiv 2508.15706: local steps, then a plain step on a few large values.

        e_i <- decay e_i + (theta - params_i);  q_i = compressed e_i;  e_i <- e_i - q_i
        theta <- theta - lr mean(q)

    The error buffer, rows `error`, is the momentum: there is no other one. It begins at zero, and
    is lost with a node that leaves. What was sent and did not arrive stays in it.

    Args:
        inner_steps: H, local steps between two synchronisations.
        lr: of the outer step.
        decay: of the error buffer.
        compressor: what is sent of it, quantisation included: the error feeds back both.
        weight_decay: decoupled, on theta, before the step.
        lr_in_buffer: add `lr * (theta - params)`, as the authors' code (tplr-ai/CCLoco) does, and
            apply `lr` again in the step; the paper has it in the step only. Equal at lr = 1.
        aggregate: `"all"` averages over the nodes (paper), `"senders"` each value over those that
            sent it (their code), which is up to n times as much.
        aggregation: the rule that stands for the mean over all nodes, see `DiLoCo`; to it, what a
            node did not send is zero.
        clip_to_median: scale what a node sends of a tensor down to the median norm of the nodes,
            as Templar does against nodes that send too much.
        overlap, bucket, streams: how gathers overlap with the backward pass of a round's last
            step, see `sim.overlap.Overlap`.
    """

    inner_steps: int = 15
    lr: float = 1.0
    decay: float = 0.95
    compressor: Compressor = field(default_factory=chunk_top_k)
    weight_decay: float = 0.0
    lr_in_buffer: bool = False
    aggregate: str = "all"
    aggregation: Aggregation = field(default_factory=Mean)
    clip_to_median: bool = False
    overlap: str = "none"
    bucket: Quantity = "25MB"
    streams: int = 1

    def __post_init__(self) -> None:
        self._overlap()
        check_fed_back(self.compressor)
        if self.inner_steps < 1:
            raise ValueError(f"strategy.inner_steps={self.inner_steps}: must be >= 1")
        if not self.lr > 0:
            raise ValueError(f"strategy.lr={self.lr}: must be > 0; the paper has 1.0")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"strategy.decay={self.decay}: must be in [0, 1]; the paper has 0.95")
        if not self.weight_decay >= 0:
            raise ValueError(f"strategy.weight_decay={self.weight_decay}: must be >= 0")
        if self.aggregate not in ("all", "senders"):
            raise ValueError(f"strategy.aggregate={self.aggregate!r}: must be 'all' or 'senders'")
        if self.aggregate == "senders" and not self.aggregation.summable:
            raise ValueError(
                f"strategy.aggregation={self.aggregation!r}: combines whole rows; choose "
                "strategy.aggregate='all'"
            )

    @property
    def passes(self) -> float:
        return 9.0  # outer step 3; error: read with theta and params, written; read, written

    @property
    def node_state(self) -> NodeState:
        return NodeState(named=("error",), sends=self.compressor, gathers=True)

    def init(self, sim: Simulation) -> Shared:
        return {"theta": sim.initial_params()}

    def run(self, sim: Simulation) -> Program:
        s, parts = sim.shared, self._overlap().bind(sim)
        while True:
            group = yield sim.coordinator.round()
            theta = group.params = s["theta"]
            steps, added = group.train(self.inner_steps), self._added(theta)
            error = group.rows(added, "error", "params")
            received = yield group.all_gather(error, self.compressor, after=steps, parts=parts)
            if received is not None:
                counted = clipped_to_median(received) if self.clip_to_median else received
                mean = yield from group.combined(counted, self.aggregation, self.aggregate)
                s["theta"] = theta * (1 - self.lr * self.weight_decay) - self.lr * mean
            here = group.online
            here.update(added, "error", "params")
            take_out(here, received)

    def _added(self, theta: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The error buffer of nodes with the outer gradient added, of both and their parameters."""
        scale = self.lr if self.lr_in_buffer else 1.0
        return lambda e, params: (theta - params).mul_(scale).add_(e, alpha=self.decay)

    def _overlap(self) -> Overlap:
        return Overlap(self.overlap, self.bucket, self.streams).check(self.compressor)

    def consensus(self, sim: Simulation) -> Tensor:
        """The outer parameters, as they were after the last outer step."""
        return sim.shared["theta"]


def take_out(group: Group, received: Payload | None) -> None:
    """Take what a gather has brought of members out of their error buffers."""
    if received is not None:
        told = group.among(set(group.ids).intersection(received.nodes or ()))
        at = np.searchsorted(np.array(received.nodes), told.index)
        told.add("error", received.rows(torch.from_numpy(at)), -1.0)


def clipped_to_median(received: Payload) -> Payload:
    """The payload with rows scaled down to the median of their norms, tensor by tensor.

    The norm is that of the values that are sent. Of an even number the median is the lower one.
    """
    content = received.content
    if isinstance(content, tuple):
        clipped = tuple(clipped_to_median(part) for part in content)
        return Payload(received.codec, received.shape, clipped, **received.side)
    if received.codec.quantises and isinstance(content, Wire):  # codes cannot be scaled
        values = Wire(received.decode())
        return clipped_to_median(Payload(Dense("native"), received.shape, values))
    if isinstance(content, Payload):
        inner = clipped_to_median(content)
        return Payload(received.codec, received.shape, inner, **received.side)
    norm = content.data.flatten(1).norm(dim=1)
    factor = (norm.median() / (norm + 1e-8)).clamp(max=1)
    scaled = content.data * factor.reshape(-1, *[1] * (content.data.dim() - 1))
    return Payload(received.codec, received.shape, Wire(scaled), **received.side)
