"""Parts: what a worker does at a time, the gradients or the local steps of some nodes.

A part reads and writes rows of its own nodes only and hands results to places of their own, so
parts may run in any order, at the same time. Its memory is the worker's, reused from part to part.

Legend: c nodes of a part or chunk, P parameters, Pb values of buffers, H steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from sim.compute.block import Block
from sim.compute.request import PartSum, Request, Then
from sim.payload import Payload
from sim.streams import hashes

if TYPE_CHECKING:
    from sim.compute.engines import Engine
    from sim.compute.fleet import Fleet

_BATCH_ROWS = 64
"""Batches (of a node and a step) that are drawn in one call."""


@dataclass(frozen=True)
class Part:
    """Nodes of one or several requests, in order.

    Attributes:
        ids: nodes, int64 [c].
        first: the local step at which each begins, int64 [c].
        steps: local steps of each, ascending, int64 [c]; for gradients all 1.
        places: where each stands in its request, int64 [c].
        owners: which request each belongs to, int64 [c], an index into `requests`.
        requests: those that the part serves.
    """

    ids: np.ndarray
    first: np.ndarray
    steps: np.ndarray
    places: np.ndarray
    owners: np.ndarray
    requests: Sequence[Request]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: slice | np.ndarray) -> Part:
        return Part(
            self.ids[at],
            self.first[at],
            self.steps[at],
            self.places[at],
            self.owners[at],
            self.requests,
        )

    @staticmethod
    def of(requests: Sequence[Request]) -> Part:
        """All nodes of requests, by number of steps, then by node."""
        sizes = [len(r.ids) for r in requests]
        whole = Part(
            np.concatenate([r.ids for r in requests]),
            np.concatenate([r.first_steps for r in requests]),
            np.repeat([r.steps for r in requests], sizes),
            np.concatenate([np.arange(size) for size in sizes]),
            np.repeat(np.arange(len(requests)), sizes),
            requests,
        )
        order = np.lexsort((whole.owners, whole.ids, whole.steps))
        return whole[order]

    def cut(self, size: int) -> list[Part]:
        """Pieces of so many nodes."""
        return [self[i : i + size] for i in range(0, len(self), max(1, size))]

    def cut_at(self, grain: int) -> list[Part]:
        """Pieces of at most so many nodes, cut where nodes are multiples of it."""
        bounds = [0, *(np.flatnonzero(np.diff(self.ids // grain)) + 1).tolist(), len(self)]
        return [self[a:b] for a, b in pairwise(bounds)]

    def runs(self) -> list[tuple[int, int]]:
        """Where nodes of one `then` follow each other: from, to."""
        bounds, start = [], 0
        for stop in range(1, len(self) + 1):
            if stop == len(self) or self.then(stop) != self.then(start):
                bounds.append((start, stop))
                start = stop
        return bounds

    def then(self, i: int) -> Then | None:
        """What is made of the gradient of the i-th node."""
        return self.requests[self.owners[i]].then


class Worker:
    """A worker's engine and memory.

    Args:
        fleet: whose rows.
        engine: computes its gradients.
    """

    def __init__(self, fleet: Fleet, engine: Engine) -> None:
        self._fleet, self.engine = fleet, engine
        self._space: dict[str, Tensor] = {}
        self.strategy_seconds = 0.0
        """Wall seconds in `then` functions since this was last read."""

    def space(self, name: str, rows: int, like: Tensor) -> Tensor:
        """Rows `[rows, *like.shape]` of a name, with whatever was left in them."""
        shape = (rows, *like.shape)
        held = self._space.get(name)
        if held is None or len(held) < rows:
            held = self._space[name] = like.new_empty(shape)
        return held[:rows]

    # -- gradients ----------------------------------------------------------------------------

    def gradients(self, part: Part) -> None:
        """One gradient of each node of a part, handed to the requests."""
        params = self._inputs(part)
        summed = len(params) == 1 and part.requests[part.owners[0]].summed and part.then(0) is None
        if summed:
            self._sum(part, params)
            return
        grads = self.space("grads", len(part), self._fleet.initial)
        losses = self._chunks(part, params, grads)
        started = time.perf_counter()
        for start, stop in part.runs():
            then, block = part.then(start), grads[start:stop]
            rows = Block(self._fleet, part.ids[start:stop])
            made = block if then is None else then(rows, block)
            self._hand_out(part[start:stop], made, grads)
        self._lose(part, losses)
        self.strategy_seconds += time.perf_counter() - started

    def _sum(self, part: Part, params: Tensor) -> None:
        """Only the sum of a part's gradients, at parameters that its nodes share."""
        total = self._fleet.initial.new_zeros(1, self._fleet.layout.numel)
        piece = self.space("grads", 1, self._fleet.initial)
        losses = []
        for chunk in part.cut(self.engine.chunk):
            losses.append(self._engine_call(chunk, params, piece))
            total += piece
        self._lose(part, torch.cat(losses))
        request = part.requests[part.owners[0]]
        request.sums[int(part.places[0])] = PartSum(part.ids, total[0])

    def _chunks(self, part: Part, params: Tensor, grads: Tensor) -> Tensor:
        """Losses [c] of a part, whose gradients go to `grads` [c, P]."""
        losses, size = [], self.engine.chunk
        for i in range(0, len(part), size):
            own = params if len(params) == 1 else params[i : i + size]
            losses.append(self._engine_call(part[i : i + size], own, grads[i : i + size]))
        return losses[0] if len(losses) == 1 else torch.cat(losses)

    def _engine_call(self, part: Part, params: Tensor, grads: Tensor) -> Tensor:
        """The engine's losses, with the nodes' batches, and their buffers kept."""
        fleet = self._fleet
        batch, words = self.data(part.ids, part.first)
        if not fleet.task.buffers.numel:
            return self.engine.gradients(params, None, batch, words, grads)
        buffers = fleet.tables["buffers"].get(part.ids).clone()
        losses = self.engine.gradients(params, buffers, batch, words, grads)
        fleet.tables["buffers"].put(part.ids, buffers)
        return losses

    def data(self, ids: np.ndarray, steps: np.ndarray) -> tuple[Any, Tensor | None]:
        """Batches of nodes at steps, and the words that their draws depend on."""
        fleet, device = self._fleet, self._fleet.initial.device
        batch = fleet.task.batch(ids, steps)
        words = None
        if fleet.task.draws:
            words = torch.from_numpy(hashes(fleet.seed, "draws", ids, steps, 1).view(np.int64))
            words = words.to(device)
        return (batch if device.type == "cpu" else tree_map(lambda x: x.to(device), batch)), words

    def _inputs(self, part: Part) -> Tensor:
        """Parameters as they were when the requests were made: [c, P], or [1, P] if shared."""
        table = self._fleet.tables["params"]
        kept = [
            i
            for i, (node, owner) in enumerate(zip(part.ids, part.owners))
            if int(node) in part.requests[owner].inputs
        ]
        shared = table.shared_by_all(part.ids)
        if shared is not None and not kept:
            return shared[None]
        params = table.gather(part.ids, self.space("params", len(part), self._fleet.initial))
        for i in kept:
            params[i] = part.requests[part.owners[i]].inputs[int(part.ids[i])]
        return params

    # -- results ------------------------------------------------------------------------------

    def _hand_out(self, part: Part, made: Tensor | Payload, scratch: Tensor) -> None:
        """Give each request its rows of what was made of a block."""
        for k in np.unique(part.owners):
            at = np.flatnonzero(part.owners == k)
            piece, request = part, part.requests[k]
            mine: Any = made
            if len(at) < len(part):
                piece = part[at]
                where = torch.from_numpy(at)
                mine = made.rows(where) if isinstance(made, Payload) else made[where]
            first = int(piece.places[0])
            if request.summed:
                rows = mine.decode() if isinstance(mine, Payload) else mine
                request.sums[first] = PartSum(piece.ids, rows.sum(0))
            elif isinstance(mine, Payload):
                request.pieces[first] = mine.apart_from(scratch)
            else:
                request.keep(piece.places, mine)

    def _lose(self, part: Part, losses: Tensor) -> None:
        """Note the losses of a part's nodes in their requests."""
        for k in np.unique(part.owners):
            at = np.flatnonzero(part.owners == k)
            seen = part.requests[k].losses
            assert seen is not None
            seen[torch.from_numpy(part.places[at])] = losses[torch.from_numpy(at)]

    # -- local steps --------------------------------------------------------------------------

    def train(self, part: Part) -> None:
        """Local steps of a part; parameters and optimizer state stay in cache meanwhile."""
        fleet, c = self._fleet, len(part)
        names = ["params", *fleet.carried]
        rows = {name: self._checked_out(name, part) for name in names}
        self._keep_before(part, rows["params"])
        state = {name: rows[f"local.{name}"] for name in fleet.local_state}
        grads = self.space("grads", c, fleet.initial)
        losses = fleet.initial.new_empty(c)
        for live, batch, words in self._batches(part):
            buffers = rows["buffers"][live:] if "buffers" in rows else None
            losses[live:] = self.engine.gradients(
                rows["params"][live:], buffers, batch, words, grads[live:]
            )
            some = {name: value[live:] for name, value in state.items()}
            fleet.local.step_(rows["params"][live:], grads[live:], some)
        fleet.keep_inputs(part.ids)  # of gradients that wait, when requests run one by one
        for name in names:
            fleet.tables[name].put(part.ids, rows[name])
        self._lose(part, losses)

    def _checked_out(self, name: str, part: Part) -> Tensor:
        """Rows to work on: the table's own if they lie together, else a copy in this memory."""
        table = self._fleet.tables[name]
        own = table.own_rows(part.ids)
        if own is not None and (name != "params" or not self._fleet.has_waiting):
            return own
        return table.gather(part.ids, self.space(name, len(part), table.default))

    def _keep_before(self, part: Part, params: Tensor) -> None:
        """Parameters from before the steps, of nodes that train on in simulated time."""
        early = [i for i, k in enumerate(part.owners) if not part.requests[k].due]
        if not early:
            return
        shared = self._fleet.tables["params"].shared_by_all(part.ids)
        for i in early:
            before = params[i].clone() if shared is None else shared
            self._fleet.before[int(part.ids[i])] = before

    def _batches(self, part: Part) -> Any:
        """Per step the first node that is not finished, batch, words; drawn several at once."""
        c, most = len(part), int(part.steps.max(initial=0))
        together = max(1, _BATCH_ROWS // c)
        for begin in range(0, most, together):
            steps = range(begin, min(begin + together, most))
            lives = [int(np.searchsorted(part.steps, h, side="right")) for h in steps]
            ids = np.concatenate([part.ids[live:] for live in lives])
            at = np.concatenate([part.first[live:] + h for h, live in zip(steps, lives)])
            batch, words = self.data(ids, at)
            start = 0
            for live in lives:
                rows = slice(start, start + c - live)
                start += c - live
                some = tree_map(lambda x, rows=rows: x[rows], batch)
                yield live, some, None if words is None else words[rows]
