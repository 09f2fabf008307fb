"""DeMo's step beside the loop over nodes and tensors that one would write with `torch.topk`.

Both take a gradient per node into its momentum, take out the largest cosine coefficients of each
block, and combine what the nodes sent into one update: 256 nodes, GPTs of 32k and 112k parameters,
one thread. Gradients are given: the time is that of the algorithm alone, CPU seconds of this
process.

Legend: N nodes, b of a block, P parameters, h x w a block of a tensor, u blocks, k kept of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from experiments.bench.row import Row, row
from experiments.tasks.models import GPT
from optimizers.compression.basis import halves
from optimizers.compression.transform import block_sides, dct_basis
from optimizers.demo import DeMo, Extract
from sim.compute.layout import Layout
from sim.compute.placed import Placed
from sim.payload import Compressor, Context, Payload

NODES, WIDTHS, REPEATS = 256, (32, 64), 5
CHUNK, KEPT, DECAY = 64, 32, 0.999
_BLOCK_VALUES, _LEAST = 2**20, 16
"""A block of rows is what fits the cache in values, but some rows at least, as in the fleet."""


def rows(quick: bool = False) -> list[Row]:
    """Node-steps per second, and how the time of ours divides; `quick` is 8 nodes, once."""
    widths, nodes, repeats = (WIDTHS[:1], 8, 1) if quick else (WIDTHS, NODES, REPEATS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [made for width in widths for made in _compared(width, nodes, repeats)]
    finally:
        torch.set_num_threads(threads)


def _compared(width: int, nodes: int, repeats: int) -> list[Row]:
    layout = Layout.of_module(GPT(64, 64, 2, 4, width))
    ours, loop = _Ours(layout, nodes), _Loop(layout, nodes)
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(nodes, layout.numel, generator=generator)
    parts, loops = [], []
    for _ in range(repeats + 1):
        grads += torch.randn(layout.numel, generator=generator)  # some of it in common
        parts.append([_seconds(ours.extract, grads), _seconds(ours.combine)])
        loops.append(_seconds(loop.step, grads))
    parts, loops = parts[1:], loops[1:]  # the first has compiled functions to load
    torch.testing.assert_close(ours.update.norm(), loop.update.norm(), rtol=0.01, atol=0.0)
    name = f"DeMo step, GPT of width {width} ({layout.numel:,} parameters), {nodes} nodes"
    rates = [nodes / sum(part) for part in parts]
    beside = [nodes / seconds for seconds in loops]
    shares = [("momentum and selection", 0), ("combination", 1)]
    return [
        row(name, "node-steps/s", rates, beside, "loop over nodes and tensors", ">= 4"),
        *(
            row(f"{name}: {what}", "us per node", [1e6 * part[i] / nodes for part in parts])
            for what, i in shares
        ),
    ]


def _seconds(fn: Callable, *args: Tensor) -> float:
    began = time.process_time()
    fn(*args)
    return time.process_time() - began


@dataclass(frozen=True)
class _Block:
    """The rows of some nodes that follow each other, as the fleet hands them to a strategy."""

    layout: Layout
    momentum: Tensor
    nodes: np.ndarray

    @contextmanager
    def in_place(self, name: str) -> Iterator[Placed]:
        yield Placed(self.momentum, self.nodes)

    @property
    def context(self) -> Context:
        return Context(self.layout, 0, self.nodes, 0)

    def encode(self, codec: Compressor, x: Tensor) -> Payload:
        return codec.encode(x, None, self.context)[0]


class _Ours:
    """The arithmetic of `optimizers.DeMo`, block of rows by block of rows."""

    def __init__(self, layout: Layout, nodes: int) -> None:
        demo = DeMo(decay=DECAY)
        self._layout, self._momentum = layout, torch.zeros(nodes, layout.numel)
        self._extract = Extract(demo, layout, *halves(demo.compressor), 1.0)
        self._size = max(_LEAST, _BLOCK_VALUES // layout.numel)
        self._sent: list[Payload] = []
        self.update = torch.zeros(layout.numel)

    def extract(self, grads: Tensor) -> None:
        self._sent = []
        for first in range(0, len(grads), self._size):
            part = slice(first, min(first + self._size, len(grads)))
            nodes = np.arange(part.start, part.stop)
            block = _Block(self._layout, self._momentum, nodes)
            self._sent.append(self._extract(block, grads[part]))

    def combine(self) -> None:
        self.update = Payload.cat(self._sent).combine("senders")


class _Loop:
    """The same, a node and a tensor at a time: momentum as it is, matrix products, `topk`."""

    def __init__(self, layout: Layout, nodes: int) -> None:
        self._layout, self._momentum = layout, torch.zeros(nodes, layout.numel)
        self.update = torch.zeros(layout.numel)

    def step(self, grads: Tensor) -> None:
        sent: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self._layout.shapes}
        for momentum, grad in zip(self._momentum, grads):
            momentum.mul_(DECAY).add_(grad)
            for name, tensor in self._layout.views(momentum).items():
                blocks = _turned(tensor)
                index = blocks.abs().topk(min(KEPT, blocks.shape[1]), dim=1, sorted=False).indices
                values = blocks.gather(1, index)
                fast = torch.zeros_like(blocks).scatter_(1, index, values)
                tensor.sub_(_turned_back(fast, tensor.shape))
                sent[name].append((index, values))
        self.update = torch.cat([self._mean(name, pairs) for name, pairs in sent.items()])

    def _mean(self, name: str, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        shape = self._layout.shapes[name]
        index, values = (torch.cat(same, dim=1) for same in zip(*pairs))
        blocks = torch.zeros_like(_turned(torch.zeros(shape)))
        blocks.scatter_reduce_(1, index, values, reduce="mean", include_self=False)
        return _turned_back(blocks, shape).flatten()


def _turned(tensor: Tensor) -> Tensor:
    """The cosine coefficients of each block, [u, h w]."""
    rows = tensor if tensor.dim() > 1 else tensor[None]
    (h, w), (R, C) = block_sides(rows.shape, CHUNK), rows.shape
    blocks = rows.view(R // h, h, C // w, w).transpose(1, 2)
    return (_basis(h) @ blocks @ _basis(w).T).reshape(-1, h * w)


def _turned_back(coefficients: Tensor, shape: tuple[int, ...]) -> Tensor:
    R, C = shape if len(shape) > 1 else (1, *shape)
    h, w = block_sides((R, C), CHUNK)
    blocks = _basis(h).T @ coefficients.view(R // h, C // w, h, w) @ _basis(w)
    return blocks.transpose(1, 2).reshape(shape)


def _basis(n: int) -> Tensor:
    return dct_basis(n, torch.float32, torch.device("cpu"))
