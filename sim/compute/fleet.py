"""Fleet: named rows [N, P], the lazy queue of compute requests, its flush.

Every gradient is really computed, but not when it is asked for: a request's inputs are fixed when
it is made and its duration comes from the device, so nothing has to run until somebody needs a
value. Then everything in the queue runs together, in parts, on the workers.

Two rules make that sound. *Batch invariance:* a batch depends on (seed, node, step) only. *No
peeking:* a result is handed out when its event fires, never earlier.

Legend: N nodes in the fleet, n of a request or a call, b rows of a block, P parameters.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sim.compute.block import Block
from sim.compute.codec_state import Codecs
from sim.compute.crew import Crew, power_of_two
from sim.compute.layout import Fragment, Layout
from sim.compute.local_optimizer import LocalOptimizer
from sim.compute.options import ComputeOptions
from sim.compute.placed import Placed
from sim.compute.processes import Processes, here
from sim.compute.recycled import Recycled
from sim.compute.request import Request
from sim.compute.shard import Shard
from sim.compute.table import Table
from sim.compute.task import Task
from sim.compute.workers import Workers
from sim.payload import Compressor, Context, Payload
from sim.profile import Profile

_BLOCK_VALUES = {"cpu": 2**21, "cuda": 2**26}
"""Parameters of a block of rows: on a CPU 8 MB of float32, so that it stays in the last cache and
calls cost little beside the arithmetic."""
_MIN_BLOCK, _MAX_BLOCK = 16, 256
Made = TypeVar("Made")


class Fleet:
    """All replicas of a run.

    Args:
        task: the model that is trained.
        n_nodes: N.
        local: the inner optimizer of `train`.
        initial: [P], the parameters that every node starts with.
        layout: names of the P values; the task's, or the workload's on the meta device.
        seed: of draws in losses, such as dropout's.
        options: how to compute. `lazy=False` executes every request by itself when its value is
            read, which is slow and gives the same results: the oracle of the batched queue.
        workers: threads that compute; by default as many as `options` say.

    On the meta device (`initial.device`) nothing is computed: shapes, bytes and times are exact
    and every value is unknown.
    """

    def __init__(
        self,
        task: Task,
        n_nodes: int,
        local: LocalOptimizer,
        initial: Tensor,
        layout: Layout,
        *,
        seed: int = 0,
        options: ComputeOptions | None = None,
        workers: Workers | None = None,
    ) -> None:
        assert initial.shape == (layout.numel,)
        self.task, self.n_nodes, self.layout = task, n_nodes, layout
        self.local = local.bind(layout)
        self.initial, self.seed = initial, seed
        self.options = options or ComputeOptions()
        self.is_meta = initial.device.type == "meta"
        self.block = _block(layout, initial.device.type)
        """Nodes of a block of rows; blocks begin at its multiples."""
        self.processes = Processes() if self.is_meta else here()
        self.shard = Shard(self.processes, n_nodes, self.block)
        self.tables = {"params": Table(n_nodes, initial, own=self.shard.own)}
        self.local_state = self.local.init(initial[None])
        for name, value in self.local_state.items():
            self.tables[f"local.{name}"] = self._new_table(value[0])
        self.carried = [name for name in self.tables if name != "params"]
        """Names of the rows that local steps change, beside the parameters."""
        if task.buffers.numel and not self.is_meta:
            buffers = task.init_buffers().to(initial.device)
            self.tables["buffers"] = Table(n_nodes, buffers, own=self.shard.own)
            self.carried.append("buffers")
        self.steps = np.zeros(n_nodes, dtype=np.int64)
        """Local steps that each node has begun."""
        self.round: int | None = None
        """Number of the round, which all of its members draw a codec's shared support with."""
        self.profile = Profile()
        self.flushes = 0
        n_workers = self.options.n_workers(initial.device.type)
        self.crew = Crew(self, workers or Workers(n_workers))
        self.before: dict[int, Tensor] = {}
        """Parameters of nodes whose steps ran ahead of simulated time, from before these."""
        self._queue: list[Request] = []
        self._waiting: dict[int, list[Request]] = {}  # gradients that are queued, by node
        self._locked: set[int] = set()
        self.codecs = Codecs(self.shard.own, initial)
        self._making, self._spaces = threading.Lock(), threading.local()
        self._results = Recycled()

    # -- rows ---------------------------------------------------------------------------------

    def table(self, name: str) -> Table:
        """The rows of a name; a new name starts as zeros [N, P]."""
        if name not in self.tables:
            with self._making:
                if name not in self.tables:
                    self.tables[name] = self._new_table(torch.zeros_like(self.initial))
        return self.tables[name]

    def get(self, name: str, ids: np.ndarray) -> Tensor:
        """Rows [n, P] to read, never to write."""
        self._check_unlocked(name, ids, "read")
        table = self.table(name)
        if self.shard.exchanges and table.shared_by_all(ids) is None:
            return self.shard.fetch(table.get, ids)
        return table.get(ids)

    def view(self, name: str, ids: np.ndarray) -> Tensor:
        """Rows [n, P] to read at once: the table's own if these lie together, else a copy."""
        own = self.table(name).own_rows(ids)
        return self.get(name, ids) if own is None else own

    def row(self, name: str, node: int) -> Tensor:
        """The row [P] of one node to read at once, never to write: it may be the fleet's own."""
        ids = np.array([node])
        if self.is_meta or self.shard.exchanges:
            return self.get(name, ids)[0]
        self._check_unlocked(name, ids, "read")
        return self.table(name).row(node)

    def lend(self, name: str, ids: np.ndarray) -> Tensor:
        """Rows [n, P] to read at once, or to change and `put`.

        They are the table's own if these lie together, else in memory of this thread, until it is
        lent rows of this name again.
        """
        table = self.table(name)
        own = table.own_rows(ids)
        if own is not None and name != "params":
            return own
        if self.is_meta or name == "params" or self.shard.exchanges:
            return self.get(name, ids)
        self._check_unlocked(name, ids, "read")
        return table.gather(ids, self.space(name, (len(ids), *table.default.shape)))

    def space(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Memory of this thread, with whatever was left in it, until it is asked for again."""
        spaces: dict[str, Tensor] = self._spaces.__dict__
        values = math.prod(shape)
        if name not in spaces or len(spaces[name]) < values:
            spaces[name] = self.initial.new_empty(values)
        return spaces[name][:values].view(shape)

    def place(self, name: str, ids: np.ndarray) -> Placed | None:
        """Rows [n, P] to change where they lie, all private; None if they must be `put`."""
        self._check_unlocked(name, ids, "written")
        if self.initial.device.type != "cpu" or self.shard.exchanges:
            return None  # elsewhere rows are gathered faster at once, or are not all here
        if name == "params":
            self.keep_inputs(ids)
        return self.table(name).place(ids)

    def put(self, name: str, ids: np.ndarray, rows: Tensor) -> None:
        """Write rows [n, P], or one vector [P] that all of the nodes then share.

        Raises:
            RuntimeError: one of the nodes is training.
        """
        self._check_unlocked(name, ids, "written")
        if name == "params":
            self.keep_inputs(ids)
        if rows.dim() == 1:
            self.shard.check_together(name)
            self.table(name).share(ids, rows)
        else:
            self.table(name).put(ids, rows)

    def blocks(self, ids: np.ndarray) -> list[np.ndarray]:
        """The nodes of a call, ascending, cut into pieces that fit the cache.

        Cuts are at fixed nodes, so what is added up block by block has the same bits however many
        workers and processes there are.
        """
        if self.is_meta or len(ids) <= 1:
            return [ids] if len(ids) else []
        return np.split(ids, np.flatnonzero(np.diff(ids // self.block)) + 1)

    def map(
        self, fn: Callable[[np.ndarray], Made], ids: np.ndarray, *, everywhere: bool = False
    ) -> list[Made]:
        """`fn` of every block of nodes, in order, computed on the workers.

        Args:
            fn: may use rows of the block's nodes only.
            everywhere: it uses none and writes none, so that each process had better compute all.
        """
        blocks = self.blocks(ids)
        if everywhere or not self.shard.exchanges or not blocks:
            return self.crew.workers.map(lambda _, block: fn(block), blocks)
        return self.shard.map(self, fn, blocks)

    def forget(self, node: int) -> None:
        """A node left: its rows and codec states return to the start."""
        ids = np.array([node])
        self._locked.discard(node)
        self.before.pop(node, None)
        for table in self.tables.values():
            table.reset(ids)
        self.codecs.reset(node)

    def copy_params(self, source: int, node: int) -> None:
        """A joiner gets its donor's parameters; those before its steps if that is training."""
        self.put("params", np.array([node]), self.committed(np.array([source]))[0].clone())
        if "buffers" in self.tables:
            self.put("buffers", np.array([node]), self.get("buffers", np.array([source])))

    def committed(self, ids: np.ndarray) -> Tensor:
        """Parameters [n, P] to read; of nodes that are training, those from before."""
        if self.shard.exchanges:
            return self.shard.fetch(self.committed, ids)
        rows, training = self.table("params").get(ids), self.before.keys() & set(ids.tolist())
        if training:
            rows = rows.clone()
            for i in [i for i, node in enumerate(ids.tolist()) if node in training]:
                rows[i] = self.before[int(ids[i])]
        return rows

    def mean_buffers(self, ids: np.ndarray) -> Tensor:
        """The mean of the nodes' buffers, [Pb]."""
        return self.get("buffers", ids).mean(0)

    def encode(
        self, codec: Compressor, ids: np.ndarray, x: Tensor, fragment: Fragment | None = None
    ) -> Payload:
        """Encode `x` [n, P] with the nodes' own codec states, which are kept here.

        With a fragment `x` is [n, p], its columns, and so are the states.
        """
        return self.codecs.encode(codec, x, self.context(ids, fragment))

    def context(self, ids: np.ndarray, fragment: Fragment | None = None) -> Context:
        """What encoding of nodes' rows, or of a fragment's columns, depends on beside them."""
        layout = self.layout if fragment is None else fragment.layout
        step = self.steps[ids] if self.round is None else self.round
        return Context(layout, step, ids, self.seed)

    # -- the queue ----------------------------------------------------------------------------

    def request(self, ids: np.ndarray, steps: int, *, trains: bool, held: bool = False) -> Request:
        """Queue work on nodes whose inputs are what they hold now; nothing runs yet.

        A request that is held takes its steps, but sees the inputs of when it is `enqueue`-d.
        """
        self._check_unlocked("params", ids, "used")
        request = Request(ids, self.steps[ids].copy(), steps, trains)
        self.steps[ids] += steps
        if not held:
            self.enqueue(request)
        return request

    def enqueue(self, request: Request) -> None:
        """Put a request into the queue: its inputs are what the nodes hold now."""
        self._queue.append(request)
        if request.trains:
            self._locked.update(request.ids.tolist())
        else:
            request.shared = self.tables["params"].shared_by_all(request.ids)
            self._await(request)

    def result(self, request: Request, ids: np.ndarray) -> Tensor | Payload | None:
        """The value of a request for those of its nodes that are in `ids`; runs the queue.

        Returns:
            [n, P] gradients, or what `then` made of them; None for local steps, whose result is
            in the rows, and for gradients of which only sums are kept.
        """
        if not request.executed:
            self.flush(None if self.options.lazy else [request])
        return request.rows(ids)

    def total(self, request: Request, ids: np.ndarray) -> Tensor:
        """The sum over some nodes of a request that keeps sums, [P]; in order of nodes.

        Parts in which a node is not wanted are computed again without it.
        """
        self.result(request, ids)
        total, whole = self.initial.new_zeros(self.layout.numel), len(ids) == len(request.ids)
        for place in sorted(request.sums):
            part = request.sums[place]
            wanted = np.ones(len(part.ids), dtype=bool) if whole else np.isin(part.ids, ids)
            if wanted.all():
                total += part.total
            elif wanted.any():
                again = self._again(request, part.ids[wanted])
                self.flush([again])
                for first in sorted(again.sums):
                    total += again.sums[first].total
        return total

    def abandon(self, request: Request, node: int) -> None:
        """A node left: what it was asked to compute is dropped, at no cost if it has not run."""
        if not request.executed:
            request.drop(node)

    def release(self, ids: np.ndarray) -> None:
        """The nodes' local steps are over in simulated time: their rows may be used again."""
        self._locked.difference_update(ids.tolist())
        for node in self.before.keys() & set(ids.tolist()):
            del self.before[node]

    def flush(self, requests: list[Request] | None = None) -> None:
        """Run the queued requests (or only some of them) in as few batched calls as possible."""
        chosen = self._queue if requests is None else requests
        self._queue = [r for r in self._queue if requests is not None and r not in chosen]
        self._waiting.clear()
        for request in self._queue:
            self._await(request)
        self.flushes += 1
        for request in chosen:
            self._open(request)
        # Gradients first: they see rows as they are.
        for trains in (False, True):
            some = [r for r in chosen if r.trains == trains and len(r.ids)]
            if some and not self.is_meta:
                self.crew.run(some, trains)

    @property
    def has_waiting(self) -> bool:
        """Gradients are queued, at parameters of the moment when they were asked for."""
        return bool(self._waiting)

    # -- execution ----------------------------------------------------------------------------

    def _open(self, request: Request) -> None:
        """Make place for the results of a request."""
        request.executed = True
        n, like = len(request.ids), self.initial
        request.losses = like.new_full((n,), float("nan"))
        if request.trains or request.summed:
            return
        if self.is_meta and request.then is not None and n:
            made = request.then(Block(self, request.ids), like.new_empty(n, self.layout.numel))
            if isinstance(made, Payload):
                request.pieces[0] = made
                return
        if n and (request.then is None or self.is_meta):
            request.values = self._results.rows(n, like)

    def _again(self, request: Request, ids: np.ndarray) -> Request:
        """A request for some of the nodes of one, at the parameters that they had then."""
        at = np.searchsorted(request.ids, ids)
        steps = request.steps
        again = Request(ids, request.first_steps[at], steps, False, request.then, summed=True)
        assert request.shared is not None
        again.inputs = dict.fromkeys(ids.tolist(), request.shared)
        return again

    # -- bookkeeping --------------------------------------------------------------------------

    def keep_inputs(self, ids: np.ndarray) -> None:
        """Rows are about to change: requests that still wait keep what they saw."""
        for node in ids.tolist():
            for request in self._waiting.get(node, ()):
                if node in self.shard.own and node not in request.inputs:
                    request.inputs[node] = self.tables["params"].get(np.array([node]))[0]

    def _await(self, request: Request) -> None:
        if not request.trains:
            for node in request.ids.tolist():
                self._waiting.setdefault(node, []).append(request)

    def _new_table(self, default: Tensor) -> Table:
        """A table of state, which may be kept in fewer bits than the parameters."""
        small = self.options.state_dtype == "bfloat16" and default.is_floating_point()
        return Table(self.n_nodes, default, torch.bfloat16 if small else None, self.shard.own)

    def _check_unlocked(self, name: str, ids: np.ndarray, what: str) -> None:
        if self._locked and (name == "params" or name.startswith("local.")):
            training = self._locked.intersection(ids.tolist())
            if training:
                raise RuntimeError(
                    f"rows {name!r} of nodes {sorted(training)} cannot be {what}: they are training"
                )


def _block(layout: Layout, device: str) -> int:
    """Nodes of a block of rows, a power of two."""
    if device != "cuda":
        return power_of_two(_BLOCK_VALUES["cpu"] / layout.numel, _MIN_BLOCK, _MAX_BLOCK)
    return power_of_two(_BLOCK_VALUES["cuda"] / layout.numel, _MIN_BLOCK, 16 * _MAX_BLOCK)
