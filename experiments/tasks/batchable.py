"""Can a task's loss be batched over nodes? If not: which part of its module cannot, and why.

Legend: P parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from sim.compute.task import Task
from sim.streams import hashes

_RTOL = 1e-3
"""Of gradients, batched against one by one; rounding alone gives about 1e-6."""
_LOOP = "compute.engine=loop computes one node at a time, and can"
_REASONS = {
    ".item()": "it reads a value of a tensor (`.item()`, `if`), which is another for each node",
    "data pointer": "it reads values of a tensor by numpy",
    "dynamic shape": "a shape depends on values (an index that is a mask, `nonzero`)",
}
"""Pieces of torch's messages, and what they mean here."""
_LONGEST = 240
"""Characters of a message of torch."""


@contextmanager
def naming(module: nn.Module, otherwise: str) -> Iterator[None]:
    """Turn what torch raises in this block into one ValueError that names the part that ran.

    Args:
        module: its parts are watched by hooks, which are removed at the end.
        otherwise: what is named if none of its parts was running.
    """
    running: list[str] = []

    def enter(name: str) -> Any:
        return lambda part, inputs: running.append(f"{name or 'module'} ({type(part).__name__})")

    def leave(part: nn.Module, inputs: Any, output: Any) -> None:
        running.pop()

    hooks: list[Any] = []
    for name, part in module.named_modules():
        hooks.append(part.register_forward_pre_hook(enter(name), prepend=True))
        hooks.append(part.register_forward_hook(leave))
    try:
        yield
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        where = running[-1] if running else otherwise
        raise ValueError(f"model: {where}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def check_batchable(task: Task, module: nn.Module) -> None:
    """Compute the gradients of two nodes, batched, and compare them with those of each alone.

    Args:
        task: bound to its nodes.
        module: the one that its training loss runs in this thread.

    Raises:
        ValueError: names the part of the module that cannot be batched.
    """
    _check_batch_norms(module)
    arguments = _two_nodes(task)
    gradient = grad_and_value(task.training_loss, has_aux=True)
    in_dims = (0, 0, 0, 0 if task.draws else None)
    with naming(module, "the loss or its backward pass"):
        try:
            together, _ = vmap(gradient, in_dims=in_dims)(*arguments)
        except RuntimeError as error:
            reason = _reason(str(error))
            raise RuntimeError(f"cannot be batched over nodes: {reason}. {_LOOP}") from error
        for i in range(2):
            own = tree_map(lambda x, i=i: None if x is None else x[i], arguments)
            _compare(together[i], gradient(*own)[0])


def _reason(text: str) -> str:
    """Why torch could not, in words that fit; its own where we have none."""
    known = [reason for piece, reason in _REASONS.items() if piece in text]
    return known[0] if known else _shortened(text)


def _check_batch_norms(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and part.momentum is None and part.track_running_stats:
            raise ValueError(
                f"model: {name or 'module'} ({type(part).__name__}): momentum=None reads its count "
                f"of batches out of a tensor, which cannot be batched over nodes; try 0.1. {_LOOP}"
            )


def _two_nodes(task: Task) -> tuple[Tensor, Tensor, Any, Tensor | None]:
    """Arguments of a training loss, with a leading dimension of two: steps 0 and 1 of node 0."""
    nodes, steps = np.zeros(2, np.int64), np.arange(2)
    params = task.init(torch.Generator().manual_seed(0))
    params = torch.stack([params, 0.9 * params])
    words = torch.from_numpy(hashes(0, "check", nodes, steps, 1).view(np.int64))
    buffers = task.init_buffers().expand(2, -1)
    return params, buffers, task.batch(nodes, steps), words if task.draws else None


def _compare(batched: Tensor, alone: Tensor) -> None:
    """Raise RuntimeError unless two gradients [P] are equal up to rounding."""
    error = (batched - alone).norm().item() / max(alone.norm().item(), 1e-9)
    if error > _RTOL:
        raise RuntimeError(
            f"batched over nodes its gradient differs by {error:.1g} of its length from the one "
            "computed alone; if it draws from Python's or numpy's generators, draw in the "
            "task's `batch` with `sim.streams` instead, and pass that as input"
        )
