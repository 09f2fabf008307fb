"""Engines: losses and gradients of a chunk of nodes, in one of several ways.

| engine | how | for |
| --- | --- | --- |
| `stacked` | compiled code for the model (`sim.compute.stacked`) | built-in models, on CPUs |
| `vmap` | `torch.func.vmap` over the task's loss | any model, any device |
| `loop` | node after node, by autograd | what cannot be batched; the oracle of the others |

An engine belongs to one worker. What a node gets does not depend on the others in its chunk.

Legend: c nodes of a chunk, P parameters, Pb values of buffers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from sim.compute.stacked import Stacked
from sim.compute.task import Batch, Task

_STACKED_FLOP = 1.3e8
"""Work of a chunk of compiled code: some milliseconds, beside which calling it costs nothing."""
_STACKED_VALUES = 2**19
"""Parameters of a chunk of compiled code: these rows, gradients and moments stay in cache."""
_CHUNK_VALUES = {"cpu": 2**20, "cuda": 2**26}
"""Parameters of a chunk under vmap: on a CPU 4 MB of float32, so that rows and gradients stay in
cache; on a GPU enough to fill it."""
_MAX_CHUNK = {"cpu": 256, "cuda": 4096}
LEAST_ROWS = 2
"""Of a call under vmap: a convolution of one node is rounded otherwise than one among many."""


class Engine(ABC):
    """Computes gradients; `chunk` is how many nodes at a time it does best."""

    name: str
    chunk: int
    shares_exactly = False
    """Nodes that share parameters get the same bits as nodes that each have a copy of them."""

    @abstractmethod
    def gradients(
        self,
        params: Tensor,
        buffers: Tensor | None,
        batch: Batch,
        words: Tensor | None,
        grads: Tensor,
    ) -> Tensor:
        """Losses [c]; the gradients are written to `grads`, new buffers over the old ones.

        Args:
            params: [c, P], or [P] that all share.
            buffers: [c, Pb], or None if the model has none.
            batch: of the c nodes.
            words: int64 [c, 1] that draws depend on, or None if the loss draws nothing.
            grads: [c, P]; or [1, P] for the sum over the nodes, with shared parameters.
        """


class VmapEngine(Engine):
    """`vmap(grad_and_value(loss))`: the general one.

    Args:
        task: whose loss.
        device: type of the device, "cpu" or "cuda".
        compile: let torch.compile fuse it; chunks are then padded to one size.
        precision: of matrix products, see `ComputeOptions`.
        multiple: calls have a multiple of so many rows, the last of which repeats; see `choice`.
    """

    name = "vmap"

    def __init__(
        self,
        task: Task,
        device: str = "cpu",
        compile: bool = False,
        precision: str = "float32",
        multiple: int = LEAST_ROWS,
    ) -> None:
        most = int(np.clip(_CHUNK_VALUES[device] // task.layout.numel, 16, _MAX_CHUNK[device]))
        self.chunk = max(multiple, most // multiple * multiple)
        self._multiple = multiple
        self._padded = compile
        if precision == "tf32":
            torch.backends.cuda.matmul.allow_tf32 = True
        loss = _loss(task)
        if precision == "bfloat16":
            loss = torch.autocast(device, torch.bfloat16)(loss)
        own = vmap(grad_and_value(loss, has_aux=True), in_dims=(0, 0, 0, 0))
        shared = vmap(grad_and_value(loss, has_aux=True), in_dims=(None, 0, 0, 0))
        total = grad_and_value(_total(loss), has_aux=True)
        self._own: Callable[..., Any] = _Compiled(own) if compile else own
        self._shared: Callable[..., Any] = _Compiled(shared) if compile else shared
        self._total = total

    def gradients(
        self,
        params: Tensor,
        buffers: Tensor | None,
        batch: Batch,
        words: Tensor | None,
        grads: Tensor,
    ) -> Tensor:
        c = _length(batch)
        rows = params.new_empty(c, 0) if buffers is None else buffers
        words = (
            torch.zeros(c, 1, dtype=torch.int64, device=params.device) if words is None else words
        )
        if len(grads) == 1 and c > 1 and not self._padded:
            made, (_, (losses, after)) = self._total(params, rows, batch, words)
            grads[0] = made
        elif len(grads) == 1 and c > 1:  # what is compiled is for rows
            made, losses, after = self._rows(params, rows, batch, words, c)
            torch.sum(made, 0, keepdim=True, out=grads)
        else:
            made, losses, after = self._rows(params, rows, batch, words, c)
            grads.copy_(made)
        if buffers is not None:
            buffers.copy_(after)
        return losses

    def _rows(
        self, params: Tensor, buffers: Tensor, batch: Batch, words: Tensor, c: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        shared = params.dim() == 1
        m = self._multiple
        size = self.chunk if self._padded else -(-c // m) * m
        if c < size:
            pad = partial(_padded, size=size)
            buffers, batch, words = tree_map(pad, (buffers, batch, words))
            params = params if shared else pad(params)
        if shared:
            made, (losses, after) = self._shared(params, buffers, batch, words)
        else:
            made, (losses, after) = self._own(params, buffers, batch, words)
        return made[:c], losses[:c], after[:c]


class _Compiled:
    """A function of tensors of one shape: traced when it is first called, then compiled.

    Tracing goes through what Dynamo cannot see: this thread's copy of a module, function modes.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._graph: Callable[..., Any] | None = None
        self._form: Any = None

    def __call__(self, *args: Any) -> Any:
        leaves, form = tree_flatten(args)

        def flat(*tensors: Tensor) -> list[Tensor]:
            made, self._form = tree_flatten(self._function(*tree_unflatten(tensors, form)))
            return made

        if self._graph is None:
            from torch.fx.experimental.proxy_tensor import make_fx  # takes seconds to import

            self._graph = torch.compile(make_fx(flat)(*leaves), dynamic=False)
        return tree_unflatten(self._graph(*leaves), self._form)


class LoopEngine(Engine):
    """One node after the other, by torch's autograd; slow, and never wrong."""

    name = "loop"
    chunk = 16
    shares_exactly = True

    def __init__(self, task: Task) -> None:
        self._task = task

    def gradients(
        self,
        params: Tensor,
        buffers: Tensor | None,
        batch: Batch,
        words: Tensor | None,
        grads: Tensor,
    ) -> Tensor:
        c = _length(batch)
        if len(grads) == 1 and c > 1:
            rows = grads.new_empty(c, grads.shape[1])
            losses = self.gradients(params, buffers, batch, words, rows)
            torch.sum(rows, 0, keepdim=True, out=grads)
            return losses
        losses = params.new_empty(c)
        for i in range(c):
            own = (params if params.dim() == 1 else params[i]).detach().clone().requires_grad_()
            before = own.new_empty(0) if buffers is None else buffers[i]
            mine = tree_map(lambda x, i=i: x[i], batch)
            with torch.enable_grad():
                loss, after = self._task.training_loss(
                    own, before, mine, None if words is None else words[i]
                )
                (grads[i],) = torch.autograd.grad(loss, own)
            losses[i] = loss.detach()
            if buffers is not None:
                buffers[i] = after.detach()
        return losses


class StackedEngine(Engine):
    """Compiled code for the model, in chunks that stay in the cache of a core.

    Args:
        stacked: the code.
        values: P.
        flops: of one step of one node.
    """

    name = "stacked"
    shares_exactly = True

    def __init__(self, stacked: Stacked, values: int, flops: float) -> None:
        self._stacked = stacked
        most = np.clip(_STACKED_VALUES // values, 1, _MAX_CHUNK["cpu"])
        self.chunk = int(np.clip(_STACKED_FLOP // max(1.0, flops), 1, most))

    def gradients(
        self,
        params: Tensor,
        buffers: Tensor | None,
        batch: Batch,
        words: Tensor | None,
        grads: Tensor,
    ) -> Tensor:
        assert buffers is None, "a model with buffers has no such code"
        assert words is None, "a loss that draws has no such code"
        losses = torch.empty(_length(batch))
        rows = params.reshape(-1, params.shape[-1]).numpy()
        self._stacked.gradients(rows, batch, grads.numpy(), losses.numpy())
        return losses


def _loss(task: Task) -> Callable[..., Any]:
    """(params, buffers, batch, words) -> loss, buffers after."""

    def loss(params: Tensor, buffers: Tensor, batch: Batch, words: Tensor) -> Any:
        value, after = task.training_loss(params, buffers, batch, words if task.draws else None)
        return value, after

    return loss


def _total(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The sum over nodes that share parameters, with (losses, buffers after) beside it."""
    each = vmap(loss, in_dims=(None, 0, 0, 0))

    def total(params: Tensor, buffers: Tensor, batch: Batch, words: Tensor) -> Any:
        losses, after = each(params, buffers, batch, words)
        return losses.sum(), (losses, after)

    return total


def _padded(rows: Tensor, size: int) -> Tensor:
    """So many rows; the last one repeats."""
    return torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])])


def _length(batch: Batch) -> int:
    """Nodes of a batch."""
    leaves: list[Tensor] = []
    tree_map(leaves.append, batch)
    return len(leaves[0])
