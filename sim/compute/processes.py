"""Processes: several of them compute one run, each the rows of its own nodes.

All processes simulate the whole run: events, network and strategies are deterministic, so they make
the same calls in the same order, and what only one of them knows is exchanged on the way. A process
computes and keeps whole blocks of nodes, and results are put together in order of nodes, so a run
has the same bits with any number of processes.

`torchrun --nproc-per-node 2 -m experiments.run ...` starts them; see `joined`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # default arguments there keep a group that exists by then
from torch import Tensor

from sim.compute.options import local_processes
from sim.compute.parcel import pack, unpack

Made = TypeVar("Made")

_PATIENCE = timedelta(hours=1)
"""How long a process waits for another: shares of a flush may differ by a block. One that dies is
noticed at once."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, and how they tell each other things.

    Every method but `is_first` is called by all of them, in the same order.

    Args:
        rank: of this process, from 0.
        size: how many there are; with one, nothing is sent.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def from_first(self, make: Callable[[], Made]) -> Made:
        """What `make` gives in the first process: for what depends on the clock, or on files."""
        if self.size == 1:
            return make()
        told: list[Any] = [make() if self.is_first else None]
        dist.broadcast_object_list(told, src=0)
        return told[0]

    def least(self, value: float) -> float:
        """The smallest of the values that the processes give."""
        return min(self._tell(value))

    def share(self, mine: Any, device: torch.device) -> list[Any]:
        """What each process gives, in order of ranks; see `sim.compute.parcel` for its form.

        Args:
            device: where the bytes of tensors travel.
        """
        skeleton, data = pack(mine, device)
        told = self._tell((skeleton, len(data)))
        parcels = [data if r == self.rank else data.new_empty(n) for r, (_, n) in enumerate(told)]
        self._broadcast(parcels)
        return [unpack(skeleton, data) for (skeleton, _), data in zip(told, parcels)]

    def rows(self, mine: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows of all processes in order of ranks, of which this one gives `counts[rank]`."""
        whole = mine.new_empty((sum(counts), *mine.shape[1:]))
        pieces = whole.split(list(counts))
        pieces[self.rank].copy_(mine)
        self._broadcast(pieces)
        return whole

    def _tell(self, mine: Any) -> list[Any]:
        if self.size == 1:
            return [mine]
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, mine)
        return told

    def _broadcast(self, pieces: Sequence[Tensor]) -> None:
        """Fill the r-th tensor, contiguous, with what the process of rank r has in it."""
        if self.size == 1:
            return
        raw = [(r, x.view(torch.uint8)) for r, x in enumerate(pieces) if x.numel()]
        for sent in [dist.broadcast(x, r, async_op=True) for r, x in raw]:
            sent.wait()


def here() -> Processes:
    """The processes of torch's process group; this one alone if there is none."""
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size())
    return Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torchrun started with this one, by its environment variables.

    Each process gets a GPU of its own if the machine has enough of them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield here()
        return
    own_gpu, well = torch.cuda.device_count() >= local_processes(), False
    if own_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if own_gpu else "gloo", timeout=_PATIENCE)
    try:
        yield here()
        well = True
    finally:
        if well or not own_gpu:  # NCCL waits for the others, and these for what went wrong here
            dist.destroy_process_group()
