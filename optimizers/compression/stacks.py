"""Tensors of one shape as rows of one call, which costs less than a call for each.

Legend: r rows of a payload, P values of all tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sim.compute.layout import Layout
from sim.payload import Context, Payload


def places(keys: Iterable[Hashable]) -> list[list[int]]:
    """Where each key is found, key by key.

    >>> places("abca")
    [[0, 3], [1], [2]]
    """
    found: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        found.setdefault(key, []).append(i)
    return list(found.values())


def stacked_context(ctx: Context, layout: Layout, tensors: int) -> Context:
    """The context of rows that hold so many tensors, like that of a layout, one after the other."""
    step = np.concatenate([ctx.step] * tensors) if np.ndim(ctx.step) else ctx.step
    nodes = np.concatenate([ctx.nodes] * tensors)
    return replace(ctx, layout=layout, step=step, nodes=nodes)


def stack_by_stack(parts: Sequence[Payload], fn: Callable[[Payload, int], Tensor]) -> Tensor:
    """`fn(rows of the tensors of one shape, how many tensors)`, side by side: `[r, P]`."""
    made: dict[int, Tensor] = {}
    for alike in places((id(part.codec), part.shape) for part in parts):
        stack = Payload.cat([parts[i] for i in alike])
        rows = fn(stack, len(alike)).flatten(1)
        made.update(zip(alike, rows.tensor_split(len(alike))))
    return torch.cat([made[i] for i in range(len(made))], dim=1)
