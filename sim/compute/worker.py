"""Worker: gradients and local steps of a block of rows, in one core's engine and memory.

Memory is reused from block to block; parameters and optimizer state stay in cache meanwhile.

Legend: c rows of a block or of a strip of it, P parameters, Pb values of buffers, H steps.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from sim.compute.block import Block
from sim.compute.parts import Part, Strip
from sim.compute.request import PartSum, index
from sim.payload import Payload
from sim.streams import hashes

if TYPE_CHECKING:
    from sim.compute.engines import Engine
    from sim.compute.fleet import Fleet

_BATCH_ROWS = 256
"""Batches (of a node and a step) that are drawn ahead."""


class StripErrors(Exception):
    """What handing out the gradients of some strips of a block ended with; the others have theirs.

    Args:
        errors: by the place of the strip.
    """

    def __init__(self, errors: dict[int, Exception]) -> None:
        super().__init__(errors)
        self.errors = errors


class Worker:
    """Computes blocks, each of which is one or several strips.

    Args:
        engine: computes gradients.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._space: dict[str, Tensor] = {}
        self.strategy_seconds: defaultdict[Fleet, float] = defaultdict(float)
        """Wall seconds in `then` functions, by fleet; who reads them takes them out."""

    def _rows(self, name: str, rows: int, like: Tensor) -> Tensor:
        """Rows `[rows, *like.shape]` of a name, with whatever was left in them."""
        held = self._space.get(name)
        if held is None or len(held) < rows or held.shape[1:] != like.shape:
            held = self._space[name] = like.new_empty((rows, *like.shape))
        return held[:rows]

    # -- gradients ----------------------------------------------------------------------------

    def gradients(self, strips: Sequence[Strip]) -> None:
        """The gradient of each node of a block, over its steps, handed to the requests."""
        if len(strips) == 1 and self._sums_only(strips[0]):
            return
        params = self._inputs(strips)
        rows, initial = strips[-1].rows.stop, strips[0].fleet.initial
        grads, losses = self._rows("grads", rows, initial), initial.new_empty(rows)
        for i in range(0, rows, self.engine.chunk):
            chunk = slice(i, min(i + self.engine.chunk, rows))
            some = [strip for strip in (strip.within(chunk) for strip in strips) if strip]
            own = params if params.dim() == 1 else params[chunk]
            losses[chunk] = self._mean_gradients(some, own, grads[chunk])
        errors: dict[int, Exception] = {}
        for k, strip in enumerate(strips):
            try:
                self._deliver(strip, grads[strip.rows], losses[strip.rows], grads)
            except Exception as error:  # one run's, raised below
                errors[k] = error
        if errors:
            raise errors[0] if len(strips) == 1 else StripErrors(errors)

    def _deliver(self, strip: Strip, grads: Tensor, losses: Tensor, scratch: Tensor) -> None:
        """Hand gradients [c, P] of a strip to its requests, or what these want made of them."""
        fleet, part = strip.fleet, strip.part
        for start, stop in part.runs():
            then, block = part.then(start), grads[start:stop]
            made: Tensor | Payload = block
            if then is not None:
                started = time.perf_counter()
                made = then(Block(fleet, part.ids[start:stop]), block)
                self.strategy_seconds[fleet] += time.perf_counter() - started
            _hand_out(part[start:stop], made, scratch)
        _lose(part, losses)

    def _sums_only(self, strip: Strip) -> bool:
        """Compute only the sum of a part's gradients, if it is that which is wanted.

        Its nodes must share their parameters, or there is no short way.
        """
        fleet, part = strip.fleet, strip.part
        request = part.requests[part.owners[0]]
        if not request.summed or request.then is not None:
            return False
        steps = request.steps
        params = self._inputs([strip])
        if params.dim() > 1:
            return False
        total = fleet.initial.new_zeros(1, fleet.layout.numel)
        piece, losses = self._rows("grads", 1, fleet.initial), []
        for i in range(0, len(part), self.engine.chunk):
            some = strip.within(slice(i, min(i + self.engine.chunk, len(part))))
            assert some is not None
            for step in range(steps):
                found = self._engine_call([some], params, piece, step)
                total += piece
            losses.append(found)
        total = total / steps if steps > 1 else total
        _lose(part, torch.cat(losses))
        request.sums[int(part.places[0])] = PartSum(part.ids, total[0])
        return True

    def _mean_gradients(self, strips: Sequence[Strip], params: Tensor, grads: Tensor) -> Tensor:
        """Write each node's mean gradient over its steps; the losses of its last one.

        Nodes are in order of their number of steps, of which several strips have the same.
        """
        losses = self._engine_call(strips, params, grads)
        steps, first = np.concatenate([strip.part.steps for strip in strips]), strips[0].rows.start
        for step in range(1, int(steps[-1])):
            live = int(np.searchsorted(steps, step, side="right"))
            rows = slice(first + live, first + len(steps))
            some = [strip for strip in (strip.within(rows) for strip in strips) if strip]
            more = self._rows("more", len(steps), strips[0].fleet.initial)[live:]
            own = params if params.dim() == 1 else params[live:]
            losses[live:] = self._engine_call(some, own, more, step)
            grads[live:] += more
        if steps[-1] > 1:
            grads /= torch.from_numpy(steps).to(grads)[:, None]
        return losses

    def _engine_call(
        self, strips: Sequence[Strip], params: Tensor, grads: Tensor, step: int = 0
    ) -> Tensor:
        """The engine's losses, with the nodes' batches, and their buffers kept.

        Args:
            step: counted from the first one of each node.
        """
        batch, words = _side_by_side(
            [_draw(strip.fleet, strip.part.ids, strip.part.first + step) for strip in strips]
        )
        if not strips[0].fleet.task.buffers.numel:
            return self.engine.gradients(params, None, batch, words, grads)
        tables = [strip.fleet.tables["buffers"] for strip in strips]
        kept = [table.get(strip.part.ids) for table, strip in zip(tables, strips)]
        buffers = torch.cat(kept)
        losses = self.engine.gradients(params, buffers, batch, words, grads)
        for table, strip, rows in zip(tables, strips, buffers.split([len(x) for x in kept])):
            table.put(strip.part.ids, rows)
        return losses

    def _inputs(self, strips: Sequence[Strip]) -> Tensor:
        """Parameters as they were when the requests were made: [c, P], or [P] if shared."""
        if len(strips) == 1:
            shared = strips[0].fleet.tables["params"].shared_by_all(strips[0].part.ids)
            if shared is not None and not _kept(strips[0].part):
                return shared
        params = self._rows("params", strips[-1].rows.stop, strips[0].fleet.initial)
        for strip in strips:
            part, own = strip.part, params[strip.rows]
            strip.fleet.tables["params"].gather(part.ids, own)
            for i in _kept(part):
                own[i] = part.requests[part.owners[i]].inputs[int(part.ids[i])]
        return params

    # -- local steps --------------------------------------------------------------------------

    def train(self, strips: Sequence[Strip]) -> None:
        """Local steps of a block."""
        fleet, c = strips[0].fleet, strips[-1].rows.stop
        names = ["params", *fleet.carried]
        rows = {name: self._checked_out(name, strips) for name in names}
        for strip in strips:
            _keep_before(strip, rows["params"][strip.rows])
        state = {name: rows[f"local.{name}"] for name in fleet.local_state}
        grads = self._rows("grads", c, fleet.initial)
        losses = fleet.initial.new_empty(c)
        optimizers = [(strip.fleet.local, strip.rows) for strip in strips]
        for live, batch, words in _batches(strips):
            buffers = rows["buffers"][live:] if "buffers" in rows else None
            params, made = rows["params"][live:], grads[live:]
            losses[live:] = self.engine.gradients(params, buffers, batch, words, made)
            some = {name: value[live:] for name, value in state.items()}
            if len(strips) == 1:
                fleet.local.step_(params, made, some)
            else:
                type(fleet.local).step_each_(optimizers, params, made, some)
        for strip in strips:
            part, tables = strip.part, strip.fleet.tables
            strip.fleet.keep_inputs(part.ids)  # of gradients that wait, when requests run alone
            for name in names:
                tables[name].put(part.ids, rows[name][strip.rows])
            _lose(part, losses[strip.rows])

    def _checked_out(self, name: str, strips: Sequence[Strip]) -> Tensor:
        """Rows to work on: a table's own if they lie together, else copies in this memory."""
        if len(strips) == 1:
            fleet, ids = strips[0].fleet, strips[0].part.ids
            own = fleet.tables[name].own_rows(ids)
            if own is not None and (name != "params" or not fleet.has_waiting):
                return own
        out = self._rows(name, strips[-1].rows.stop, strips[0].fleet.tables[name].default)
        for strip in strips:
            strip.fleet.tables[name].gather(strip.part.ids, out[strip.rows])
        return out


def _kept(part: Part) -> list[int]:
    """Nodes whose inputs a request kept, because their row was overwritten; by their place."""
    nodes = zip(part.ids.tolist(), part.owners.tolist())
    return [i for i, (node, owner) in enumerate(nodes) if node in part.requests[owner].inputs]


def _keep_before(strip: Strip, params: Tensor) -> None:
    """Parameters from before the steps, of nodes that train on in simulated time."""
    fleet, part = strip.fleet, strip.part
    early = [i for i, k in enumerate(part.owners) if not part.requests[k].due]
    if not early:
        return
    table = fleet.tables["params"]
    for i in early:
        shared = table.shared_by_all(part.ids[i : i + 1])
        fleet.before[int(part.ids[i])] = params[i].clone() if shared is None else shared


# -- data -------------------------------------------------------------------------------------


def _batches(strips: Sequence[Strip]) -> Iterator[tuple[int, Any, Tensor | None]]:
    """Per step the first row that is not finished, batch, words; drawn several steps at once."""
    most = int(strips[0].part.steps.max(initial=0))
    together = max(1, _BATCH_ROWS // max(1, strips[-1].rows.stop))
    for begin in range(0, most, together):
        steps = range(begin, min(begin + together, most))
        for pieces in zip(*(_draw_steps(strip, steps) for strip in strips)):
            yield pieces[0][0], *_side_by_side([piece[1:] for piece in pieces])


def _draw_steps(strip: Strip, steps: range) -> Iterator[tuple[int, Any, Tensor | None]]:
    """Per step the first node of a strip that is not finished, and the others' batch and words."""
    part, c = strip.part, len(strip.part)
    lives = [int(np.searchsorted(part.steps, h, side="right")) for h in steps]
    ids = np.concatenate([part.ids[live:] for live in lives])
    at = np.concatenate([part.first[live:] + h for h, live in zip(steps, lives)])
    batch, words = _draw(strip.fleet, ids, at)
    start = 0
    for live in lives:
        rows = slice(start, start + c - live)
        start += c - live
        some = tree_map(lambda x, rows=rows: x[rows], batch)
        yield live, some, None if words is None else words[rows]


def _draw(fleet: Fleet, ids: np.ndarray, steps: np.ndarray) -> tuple[Any, Tensor | None]:
    """Batches of nodes at steps, and the words that their draws depend on."""
    device = fleet.initial.device
    batch = fleet.task.batch(ids, steps)
    words = None
    if fleet.task.draws:
        words = torch.from_numpy(hashes(fleet.seed, "draws", ids, steps, 1).view(np.int64))
        words = words.to(device)
    return (batch if device.type == "cpu" else tree_map(lambda x: x.to(device), batch)), words


def _side_by_side(
    drawn: Sequence[tuple[Any, Tensor | None]],
) -> tuple[Any, Tensor | None]:
    """Batches and words of strips as those of their block."""
    if len(drawn) == 1:
        return drawn[0]
    batches, words = zip(*drawn)
    batch = tree_map(lambda *pieces: torch.cat(pieces), *batches)
    return batch, None if words[0] is None else torch.cat(words)


# -- results ----------------------------------------------------------------------------------


def _hand_out(part: Part, made: Tensor | Payload, scratch: Tensor) -> None:
    """Give each request its rows of what was made of a block."""
    for request, at in part.shares():
        mine: Any = made
        if len(at) < len(part):
            mine = made.rows(index(at)) if isinstance(made, Payload) else made[index(at)]
        first = int(part.places[at[0]])
        if request.summed:
            rows = mine.decode() if isinstance(mine, Payload) else mine
            request.sums[first] = PartSum(part.ids[at], rows.sum(0))
        elif isinstance(mine, Payload):
            request.pieces[first] = mine.apart_from(scratch)
        else:
            request.keep(part.places[at], mine)


def _lose(part: Part, losses: Tensor) -> None:
    """Note the losses of a part's nodes in their requests."""
    for request, at in part.shares():
        assert request.losses is not None
        request.losses[index(part.places[at])] = losses[index(at)]
