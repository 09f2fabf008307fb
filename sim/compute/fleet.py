"""Fleet: named rows [N, P], the lazy queue of compute requests, its flush.

Every gradient is really computed, but not when it is asked for: a request's inputs are fixed when
it is made and its duration comes from the device, so nothing has to run until somebody needs a
value. Then everything in the queue runs together, in chunks of rows, as batched calls.

Two rules make that sound. *Batch invariance:* a batch depends on (seed, node, step) only. *No
peeking:* a result is handed out when its event fires, never earlier.

Legend: N nodes in the fleet, n of a request, c rows of a chunk, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.utils._pytree import tree_map

from sim.compute.block import Block
from sim.compute.codec_state import CodecState
from sim.compute.layout import Fragment, Layout
from sim.compute.local_optimizer import LocalOptimizer
from sim.compute.table import Table
from sim.compute.task import Task
from sim.payload import Compressor, Context, Payload
from sim.profile import Profile

_CHUNK_VALUES = 2**20
"""Parameters of one chunk: 4 MB of float32, so that a chunk and its gradients stay in cache."""
_MIN_CHUNK, _MAX_CHUNK = 16, 256
Part = list[tuple[int, int, int]]
"""Rows of a chunk: node, its place in its request, and which request that is."""


@dataclass(eq=False)
class Request:
    """Gradients, or a number of local steps, of some nodes; queued until a value is needed."""

    ids: np.ndarray
    """Nodes, int64 [n], ascending."""
    first_steps: np.ndarray
    """The local step at which each node begins, int64 [n]: it selects the data."""
    steps: int
    trains: bool
    """True: local steps that write rows; False: one gradient at the parameters of the moment."""
    then: Callable[[Any, Tensor], Tensor | Payload] | None = None
    executed: bool = False
    results: list[Tensor | Payload] = field(default_factory=list)
    losses: Tensor | None = None
    """Loss of each node before its (last) step, [n]."""
    inputs: dict[int, Tensor] = field(default_factory=dict)
    """Parameters [P] of nodes whose row was overwritten while the request was waiting."""


class Fleet:
    """All replicas of a run.

    Args:
        task: the model that is trained.
        n_nodes: N.
        local: the inner optimizer of `train`.
        initial: [P], the parameters that every node starts with.
        layout: names of the P values; the task's, or the workload's on the meta device.
        lazy: False executes every request by itself when its value is read, which is slow and
            gives the same results: it is the oracle of the batched queue.

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
        lazy: bool = True,
    ) -> None:
        assert initial.shape == (layout.numel,)
        self.task, self.n_nodes, self.local, self.layout = task, n_nodes, local, layout
        self.initial, self.seed, self.lazy = initial, seed, lazy
        self.is_meta = initial.device.type == "meta"
        self.tables = {"params": Table(n_nodes, initial)}
        self.local_state = local.init(initial[None])
        for name, value in self.local_state.items():
            self.tables[f"local.{name}"] = Table(n_nodes, value[0])
        self.steps = np.zeros(n_nodes, dtype=np.int64)
        """Local steps that each node has begun."""
        self.round: int | None = None
        """Number of the round, which all of its members draw a codec's shared support with."""
        self.profile = Profile()
        self.flushes = self.flushed_rows = 0
        self.chunk = int(np.clip(_CHUNK_VALUES // layout.numel, _MIN_CHUNK, _MAX_CHUNK))
        self._queue: list[Request] = []
        self._locked: set[int] = set()
        self._before: dict[int, Tensor] = {}  # parameters of nodes whose steps ran ahead of time
        self._codecs: dict[tuple[Compressor, Layout], CodecState] = {}
        # On the meta device payloads of as many rows are all alike, and encoding one is slow.
        self._valueless: dict[tuple[Compressor, Layout, int], Payload] = {}
        self._gradients = vmap(grad_and_value(task.loss), in_dims=(0, 0))
        self._gradients_at_one = vmap(grad_and_value(task.loss), in_dims=(None, 0))

    # -- rows ---------------------------------------------------------------------------------

    def table(self, name: str) -> Table:
        """The rows of a name; a new name starts as zeros [N, P]."""
        if name not in self.tables:
            self.tables[name] = Table(self.n_nodes, torch.zeros_like(self.initial))
        return self.tables[name]

    def get(self, name: str, ids: np.ndarray) -> Tensor:
        """Rows [n, P] to read, never to write."""
        self._check_unlocked(name, ids, "read")
        return self.table(name).get(ids)

    def put(self, name: str, ids: np.ndarray, rows: Tensor) -> None:
        """Write rows [n, P], or one vector [P] that all of the nodes then share.

        Raises:
            RuntimeError: one of the nodes is training.
        """
        self._check_unlocked(name, ids, "written")
        if name == "params":
            self._keep_inputs(ids)
        if rows.dim() == 1:
            self.table(name).share(ids, rows)
        else:
            self.table(name).put(ids, rows)

    def blocks(self, ids: np.ndarray) -> list[np.ndarray]:
        """The nodes of a call, cut into pieces that fit the cache."""
        size = len(ids) if self.is_meta else self.chunk
        return [ids[i : i + size] for i in range(0, len(ids), max(1, size))]

    def forget(self, node: int) -> None:
        """A node left: its rows and codec states return to the start."""
        ids = np.array([node])
        self._locked.discard(node)
        self._before.pop(node, None)
        for table in self.tables.values():
            table.reset(ids)
        for state in self._codecs.values():
            state.reset(node)

    def copy_params(self, source: int, node: int) -> None:
        """A joiner gets its donor's parameters; those before its steps if that is training."""
        self.put("params", np.array([node]), self.committed(np.array([source]))[0].clone())

    def committed(self, ids: np.ndarray) -> Tensor:
        """Parameters [n, P] to read; of nodes that are training, those from before."""
        rows, training = self.table("params").get(ids), self._before.keys() & set(ids.tolist())
        if training:
            rows = rows.clone()
            for i in [i for i, node in enumerate(ids.tolist()) if node in training]:
                rows[i] = self._before[int(ids[i])]
        return rows

    def encode(
        self, codec: Compressor, ids: np.ndarray, x: Tensor, fragment: Fragment | None = None
    ) -> Payload:
        """Encode `x` [n, P] with the nodes' own codec states, which are kept here.

        With a fragment `x` is [n, p], its columns, and so are the states.
        """
        if self.is_meta and codec.sized_by_data:
            raise ValueError(
                f"compute=meta with {codec!r}: its size depends on values, which a timing-only run "
                "does not have; choose a codec of fixed size, such as TopK"
            )
        layout = self.layout if fragment is None else fragment.layout
        key = (codec, layout)
        if key not in self._codecs:
            self._codecs[key] = CodecState(codec, layout, self.n_nodes, self.initial)
        states = self._codecs[key]
        alike = (*key, len(x))
        if alike in self._valueless:
            return self._valueless[alike]
        step = self.steps[ids] if self.round is None else self.round
        context = Context(layout, step, ids, self.seed)
        with self.profile("strategy"):
            payload, state = codec.encode(x, states.get(ids), context)
            states.put(ids, state)
        if self.is_meta:
            self._valueless[alike] = payload
        return payload

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

    def result(self, request: Request, ids: np.ndarray) -> Tensor | Payload | None:
        """The value of a request for those of its nodes that are in `ids`; runs the queue.

        Returns:
            [n, P] gradients, or what `then` made of them; None for local steps, whose result is
            in the rows.
        """
        if not request.executed:
            self.flush(None if self.lazy else [request])
        if request.trains or not request.results:
            return None
        whole = request.results[0]
        if len(request.results) > 1:
            request.results = [_cat(request.results)]
            whole = request.results[0]
        if len(ids) == len(request.ids):
            return whole
        at = torch.from_numpy(np.flatnonzero(np.isin(request.ids, ids)))
        return whole.rows(at) if isinstance(whole, Payload) else whole[at]

    def abandon(self, request: Request, node: int) -> None:
        """A node left: what it was asked to compute is dropped, at no cost if it has not run."""
        if not request.executed:
            keep = request.ids != node
            request.ids, request.first_steps = request.ids[keep], request.first_steps[keep]

    def release(self, ids: np.ndarray) -> None:
        """The nodes' local steps are over in simulated time: their rows may be used again."""
        self._locked.difference_update(ids.tolist())
        for node in self._before.keys() & set(ids.tolist()):
            del self._before[node]

    def flush(self, requests: list[Request] | None = None) -> None:
        """Run the queued requests (or only some of them) in as few batched calls as possible."""
        chosen = self._queue if requests is None else requests
        self._queue = [r for r in self._queue if requests is not None and r not in chosen]
        self.flushes += 1
        for request in chosen:
            request.executed = True
        self._run_gradients([r for r in chosen if not r.trains])  # first: they see rows as they are
        with self.profile("gradients"):
            self._run_training([r for r in chosen if r.trains])

    # -- execution ----------------------------------------------------------------------------

    def _run_gradients(self, requests: list[Request]) -> None:
        """One gradient each; rows of all requests are chunked together, in order of nodes."""
        rows = [(int(node), i, k) for k, r in enumerate(requests) for i, node in enumerate(r.ids)]
        rows.sort()
        for part in [rows[i : i + self.chunk] for i in range(0, len(rows), self.chunk)]:
            ids = np.array([node for node, _, _ in part], dtype=np.int64)
            steps = np.array([requests[k].first_steps[i] for _, i, k in part], dtype=np.int64)
            with self.profile("gradients"):
                params = self._inputs(ids, [requests[k] for *_, k in part])
                grads, losses = self._gradient(params, ids, steps)
            self._hand_out(requests, part, ids, grads, losses)

    def _inputs(self, ids: np.ndarray, owners: list[Request]) -> Tensor:
        """Parameters [c, P] as they were when the requests were made; [P] when they are equal."""
        table = self.tables["params"]
        kept = [i for i, (node, owner) in enumerate(zip(ids, owners)) if int(node) in owner.inputs]
        shared = table.shared_by_all(ids)
        if shared is not None and not kept:
            return shared
        params = table.get(ids)
        if kept:
            params = params.clone()
            for i in kept:
                params[i] = owners[i].inputs[int(ids[i])]
        return params

    def _gradient(
        self, params: Tensor, ids: np.ndarray, steps: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Gradients [c, P] and losses [c] of one chunk."""
        self.flushed_rows += len(ids)
        if self.is_meta:
            return self.initial.new_empty(len(ids), self.layout.numel), self.initial.new_empty(
                len(ids)
            )
        device = self.initial.device
        batch = tree_map(lambda x: x.to(device), self.task.batch(ids, steps))
        function = self._gradients_at_one if params.dim() == 1 else self._gradients
        return function(params, batch)

    def _hand_out(
        self, requests: list[Request], part: Part, ids: np.ndarray, grads: Tensor, losses: Tensor
    ) -> None:
        """Give each request its rows of a chunk; equal `then` functions run on them together."""
        start = 0
        while start < len(part):
            then, stop = requests[part[start][2]].then, start + 1
            while stop < len(part) and requests[part[stop][2]].then == then:
                stop += 1
            block = grads[start:stop]
            with self.profile("strategy"):
                made = block if then is None else then(Block(self, ids[start:stop]), block)
            self._deliver(requests, part[start:stop], made, losses[start:stop])
            start = stop

    def _deliver(
        self, requests: list[Request], part: Part, made: Tensor | Payload, losses: Tensor
    ) -> None:
        owners = {k for *_, k in part}
        for k in sorted(owners):
            at = torch.tensor([i for i, row in enumerate(part) if row[2] == k])
            whole = len(owners) == 1
            piece = made if whole else (made.rows(at) if isinstance(made, Payload) else made[at])
            request, loss = requests[k], losses if whole else losses[at]
            request.results.append(piece)
            request.losses = loss if request.losses is None else torch.cat([request.losses, loss])

    def _run_training(self, requests: list[Request]) -> None:
        """H local steps, chunk by chunk: parameters and optimizer state stay in cache meanwhile."""
        rows = [
            (r.steps, int(node), i, k)
            for k, r in enumerate(requests)
            for i, node in enumerate(r.ids)
        ]
        rows.sort(key=lambda row: (row[0], row[1]))
        for request in requests:
            request.losses = torch.full((len(request.ids),), float("nan"))
        for part in [rows[i : i + self.chunk] for i in range(0, len(rows), self.chunk)]:
            ids = np.array([row[1] for row in part], dtype=np.int64)
            begin = np.array([requests[k].first_steps[i] for *_, i, k in part], dtype=np.int64)
            steps = np.array([row[0] for row in part], dtype=np.int64)
            losses = self._train_chunk(ids, begin, steps)
            for loss, (_, _, i, k) in zip([] if self.is_meta else losses, part):
                seen = requests[k].losses
                assert seen is not None
                seen[i] = loss

    def _train_chunk(self, ids: np.ndarray, begin: np.ndarray, steps: np.ndarray) -> Tensor:
        """Local steps of one chunk, whose rows are sorted by number of steps; last losses [c]."""
        if self.is_meta:
            return self.initial.new_empty(len(ids))
        before = self.tables["params"].get(ids)
        self._before.update(zip(ids.tolist(), before))
        params, names = before.clone(), list(self.local_state)
        state = {n: self.tables[f"local.{n}"].get(ids).clone() for n in names}
        losses = self.initial.new_empty(len(ids))
        for h in range(int(steps.max(initial=0))):
            live = slice(int(np.searchsorted(steps, h, side="right")), len(ids))
            grads, loss = self._gradient(params[live], ids[live], begin[live] + h)
            losses[live] = loss
            some = {name: value[live] for name, value in state.items()}
            self.local.step_(params[live], grads, some)
        self._keep_inputs(ids)  # of gradients that wait, when requests run one by one
        self.tables["params"].put(ids, params)
        for n in names:
            self.tables[f"local.{n}"].put(ids, state[n])
        return losses

    # -- bookkeeping --------------------------------------------------------------------------

    def _keep_inputs(self, ids: np.ndarray) -> None:
        """Rows are about to change: requests that still wait keep what they saw."""
        written = set(ids.tolist())
        for request in self._queue:
            if not request.trains:
                for node in written.intersection(request.ids.tolist()).difference(request.inputs):
                    request.inputs[node] = self.tables["params"].get(np.array([node]))[0].clone()

    def _check_unlocked(self, name: str, ids: np.ndarray, what: str) -> None:
        if self._locked and (name == "params" or name.startswith("local.")):
            training = self._locked.intersection(ids.tolist())
            if training:
                raise RuntimeError(
                    f"rows {name!r} of nodes {sorted(training)} cannot be {what}: they are training"
                )


def _cat(pieces: list[Any]) -> Any:
    return Payload.cat(pieces) if isinstance(pieces[0], Payload) else torch.cat(pieces)
