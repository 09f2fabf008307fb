"""Memory: the bytes that a run will hold, known before anything is computed.

Of each node there are rows (its parameters if they are its own, moments, rows of the strategy), the
states of codecs, and while an exchange lasts its payload and results. Beside them there is the work
of one moment. What the data of a task takes is held already when this is asked; messages that queue
on slow links are not counted.

Legend: N nodes, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from sim.compute.choice import build
from sim.compute.fleet import Fleet
from sim.compute.layout import Layout
from sim.compute.local_optimizer import LocalOptimizer
from sim.compute.options import ComputeOptions, local_processes
from sim.compute.processes import here
from sim.compute.room import free_nbytes
from sim.payload import Dense, Payload
from sim.strategy import NodeState


@dataclass(frozen=True)
class Estimate:
    """The memory of a run.

    Args:
        n_nodes: N.
        layout: of a row.
        local: the inner optimizer.
        state: what is kept of each node.
        buffers: values of a node's buffers, such as running statistics.
        dtype: of parameters.
        state_dtype: of moments and of rows of the strategy, see `ComputeOptions`.
        work: bytes of gradients and local steps at one moment, whatever N is.
        own: nodes whose rows this process keeps, of several that compute the run; None is all.
    """

    n_nodes: int
    layout: Layout
    local: LocalOptimizer
    state: NodeState
    buffers: int = 0
    dtype: torch.dtype = torch.float32
    state_dtype: str = "float32"
    work: float = 0.0
    own: int | None = None

    @property
    def kept(self) -> int:
        """Nodes whose rows this process keeps."""
        return self.n_nodes if self.own is None else self.own

    @property
    def seen(self) -> int:
        """Nodes whose part of an exchange this process holds: of means of dense rows, its own."""
        summed = isinstance(self.state.sends, Dense) and not self.state.results
        summed = summed and not self.state.gathers
        return self.kept if summed else self.n_nodes

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """Bytes of one node's rows, by name."""
        values, found = self.layout.numel, {}
        if self.state.params:
            found["parameters"] = values * self.dtype.itemsize
        if self.buffers:
            found["buffers"] = self.buffers * self.dtype.itemsize
        if self.state.local:
            like = torch.empty(1, values, dtype=self.dtype, device="meta")
            found |= {name: self._stored(x) for name, x in self.local.init(like).items()}
        width = self._stored(torch.empty(values, dtype=self.dtype, device="meta"))
        return found | dict.fromkeys(self.state.named, width)

    @cached_property
    def codec_state(self) -> int:
        """Bytes of one node's codec state, such as the error that it feeds back."""
        if self.state.sends is None:
            return 0
        with torch.device("meta"):
            start = self.state.sends.init(self.layout, 1)
        tensors = [x for x in tree_leaves(start) if isinstance(x, Tensor)]
        return sum(
            x.numel() * (self.dtype if x.is_floating_point() else x.dtype).itemsize for x in tensors
        )

    @cached_property
    def payload(self) -> int:
        """Bytes of one node's payload as it lies in memory, which is not what is sent."""
        codec = self.state.sends
        if codec is None:
            return 0
        if codec.sized_by_data:  # at most every value
            return self.layout.numel * self.dtype.itemsize
        return sum(x.nbytes for x in _tensors(codec.template(self.layout, self.dtype)))

    @property
    def exchange(self) -> int:
        """Bytes of one node while an exchange lasts: payloads are made in pieces, then joined."""
        return 2 * self.payload + self.state.results * self.layout.numel * self.dtype.itemsize

    @property
    def per_node(self) -> float:
        """Bytes of one node; of several processes, on average over all nodes."""
        return self._held / self.n_nodes

    @property
    def total(self) -> float:
        """Bytes of the run."""
        return self._held + self.work

    def most(self, room: float) -> int:
        """How many nodes fit into so many bytes, of those that there are."""
        left = max(0.0, room - self.work)
        return min(self.n_nodes, int(left // self.per_node)) if self.per_node else self.n_nodes

    def __str__(self) -> str:
        names = [name for name, nbytes in self.rows.items() if nbytes > 0.01 * self.layout.numel]
        parts = {
            f"rows {_size(self.kept * sum(self.rows.values()))}: {', '.join(names)}": len(names),
            f"codec states {_size(self.kept * self.codec_state)}": self.codec_state,
            f"exchange {_size(self.seen * self.exchange)}": self.exchange,
            f"work {_size(self.work)}": self.work,
        }
        told = "; ".join(text for text, there in parts.items() if there)
        where = "" if self.own is None else " in each process"
        return f"{self.n_nodes:,} nodes need {_size(self.total)}{where} ({told})"

    @property
    def _held(self) -> int:
        """Bytes of all nodes, as far as this process has them."""
        kept = self.kept * (sum(self.rows.values()) + self.codec_state)
        return kept + self.seen * self.exchange

    def _stored(self, x: Tensor) -> int:
        """Bytes of a row as tables keep it: moments may be narrower than parameters."""
        narrow = x.is_floating_point() and self.state_dtype == "bfloat16"
        return x.numel() * (2 if narrow else x.dtype.itemsize)


def estimate(fleet: Fleet, state: NodeState) -> Estimate:
    """What a run of a fleet will hold; nothing but the loss of one node is computed.

    Args:
        state: of the strategy, see `Strategy.node_state`.
    """
    return Estimate(
        fleet.n_nodes,
        fleet.layout,
        fleet.local,
        state,
        buffers=fleet.task.buffers.numel,
        dtype=fleet.initial.dtype,
        state_dtype=fleet.options.state_dtype,
        work=_workspace_nbytes(fleet),
        own=fleet.shard.most if fleet.processes.size > 1 else None,
    )


def check_fits(need: Estimate, options: ComputeOptions) -> None:
    """Refuse a run that does not fit the memory that it may take.

    Raises:
        ValueError: with the sum, how many nodes would fit, and what each way out would need.
    """
    limit = options.memory_limit
    room = here().least(_free_nbytes(options.device) if limit is None else float(limit))
    if need.total <= room:
        return
    there = f"{_size(room)} are free" if limit is None else f"memory_limit is {_size(room)}"
    most = need.most(room)
    fits = f"at most {most:,} of them fit" if most else "not even one of them fits"
    ways = [f"{what} ({_size(other.total)})" for what, other in _ways_out(need)]
    raise ValueError(f"{need}, {there}: {fits}; or choose {', '.join([*ways, 'compute=meta'])}")


def at_once(needs: Iterable[float], room: float) -> int:
    """How many runs may go on at the same time: so many of the largest fit, or one.

    >>> at_once([3e9, 1e9, 2e9], room=5.5e9)
    2
    """
    sums = np.cumsum(sorted(needs, reverse=True))
    return max(1, int((sums <= room).sum()))


def saved_nbytes(loss: Callable[[Tensor], Tensor], params: Tensor) -> int:
    """Bytes of activations that `loss(params)` leaves for its backward pass.

    Args:
        loss: of one node.
        params: [P]; the loss is computed, once.
    """
    leaf, saved = params.detach().requires_grad_(), dict[int, int]()

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss(leaf)
    saved.pop(leaf.untyped_storage().data_ptr(), None)
    return sum(saved.values())


def _workspace_nbytes(fleet: Fleet) -> float:
    """Bytes that all workers work in: blocks of rows, and activations of a chunk of nodes.

    Rows are parameters, gradients, a result and moments. Of an engine that is yet to be chosen the
    code that is made for the model is expected, if there is any.
    """
    one, options, name = np.zeros(1, dtype=np.int64), fleet.options, fleet.options.engine
    stacked = fleet.task.stacked() if fleet.initial.device.type == "cpu" else None
    if name == "auto":
        name = "vmap" if stacked is None else "stacked"
    if name == "stacked" and stacked is not None:
        per_node = 4.0 * stacked.values_per_node(fleet.task.batch(one, one))
    else:
        per_node = _activations_nbytes(fleet)
    activations = build(name, fleet.task, options).chunk * per_node
    rows = (3.0 + fleet.local.state_rows) * fleet.initial.nbytes
    return options.n_workers(fleet.initial.device.type) * (fleet.block * rows + activations)


def _activations_nbytes(fleet: Fleet) -> float:
    """Bytes that autograd saves for the loss of one node."""
    one, device, task = np.zeros(1, dtype=np.int64), fleet.initial.device, fleet.task
    words = torch.zeros(1, dtype=torch.int64, device=device)
    batch = tree_map(lambda x: x[0].to(device), task.batch(one, one))
    buffers = task.init_buffers().to(device)

    def loss(params: Tensor) -> Tensor:
        return task.training_loss(params, buffers, batch, words if task.draws else None)[0]

    return saved_nbytes(loss, fleet.initial)


def _free_nbytes(device: torch.device) -> float:
    """Bytes that this process may take of what is free: processes share a machine's memory."""
    return free_nbytes(device) / (local_processes() if device.type == "cpu" else 1)


def _ways_out(need: Estimate) -> Iterator[tuple[str, Estimate]]:
    """What takes clearly less, as it is written on the command line."""
    ways = {
        "compute.state_dtype=bfloat16": replace(need, state_dtype="bfloat16"),
        "local=sgd": replace(need, state=replace(need.state, local=False)),
    }
    return ((what, other) for what, other in ways.items() if other.total < 0.95 * need.total)


def _tensors(payload: Payload) -> Iterator[Tensor]:
    """All that a payload holds: what is sent, and what is kept beside it."""
    wires = [*payload.side.values(), payload.exact, payload.content]
    for wire in wires:
        for part in wire if isinstance(wire, tuple) else (wire,):
            if isinstance(part, Payload):
                yield from _tensors(part)
            elif part is not None:
                yield part.data


def _size(nbytes: float) -> str:
    """Bytes in three digits."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= scale:
            return f"{float(f'{nbytes / scale:.3g}'):,g} {unit}"
    return f"{nbytes:.0f} B"
