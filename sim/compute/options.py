"""Options: how a run computes: with values or without, where, with what and in which precision.

What a run may choose beside its algorithm, in one place. `workers` and `memory_limit` never change
a result; everything else may, if only by rounding.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import torch

from sim.network.arguments import check_choice
from sim.units import Quantity, size

CHOICES = {
    "accelerator": ["cpu", "cuda", "auto"],
    "engine": ["auto", "stacked", "vmap", "loop"],
    "state_dtype": ["float32", "bfloat16"],
    "precision": ["float32", "tf32", "bfloat16"],
}
"""What these options may be."""

CORES = "ARCHIPELAGO_CORES"
"""Environment variable: how many cores this process is to use, where several share a machine."""


@dataclass(frozen=True)
class ComputeOptions:
    """How the values of a run are computed.

    Args:
        values: False is timing only: exact bytes and times, no arithmetic.
        accelerator: where tensors live; `"auto"` is the GPU if there is one.
        engine: how the gradients of many nodes are computed: hand-batched, by `torch.func.vmap`,
            one node after the other, or what is fastest for the task.
        workers: threads that compute on a CPU, each with one thread of torch's; None is one per
            core that this process may use. Results do not depend on it.
        memory_limit: bytes that rows and work may take; None is what is free on the device.
        state_dtype: how optimizer moments and rows of strategies are stored.
        precision: of matrix products on a GPU; a CPU computes in float32.
        compile: fuse the `vmap` engine with `torch.compile`, in chunks of one size.
        lazy: batch the gradients of different nodes; False computes each request by itself.

    >>> ComputeOptions(memory_limit="8GB").memory_limit
    8000000000.0
    """

    values: bool = True
    accelerator: str = "cpu"
    engine: str = "auto"
    workers: int | None = None
    memory_limit: Quantity | None = None
    state_dtype: str = "float32"
    precision: str = "float32"
    compile: bool = False
    lazy: bool = True

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        if self.workers is not None and self.workers < 1:
            raise ValueError(
                f"workers={self.workers}: must be >= 1, or null for one per core, of which there "
                f"are {available_cores()} here"
            )
        if self.memory_limit is not None:
            limit = size(self.memory_limit, "memory_limit", positive=True)
            object.__setattr__(self, "memory_limit", limit)
        if self.accelerator == "cpu":
            self._check_precision()

    @property
    def device(self) -> torch.device:
        """Where rows live: torch's meta device if there are no values.

        Raises:
            ValueError: there is no GPU, and the options need one.
        """
        if not self.values:
            return torch.device("meta")
        if self.accelerator != "cpu" and torch.cuda.is_available():
            return torch.device("cuda")
        if self.accelerator == "cuda":
            raise ValueError(
                "compute.accelerator='cuda': torch sees no GPU here; use 'cpu' or 'auto'"
            )
        self._check_precision("compute.")
        return torch.device("cpu")

    def n_workers(self, device: str = "cpu") -> int:
        """How many threads compute on a device of this type: one feeds a GPU."""
        return (self.workers or available_cores()) if device == "cpu" else 1

    def _check_precision(self, path: str = "") -> None:
        if self.precision != "float32":
            raise ValueError(
                f"{path}precision={self.precision!r}: a CPU computes in 'float32'; choose that, or "
                "accelerator=cuda"
            )


def local_processes() -> int:
    """Processes of torchrun's on this machine, with this one; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def available_cores() -> int:
    """Cores that this process may use: what `ARCHIPELAGO_CORES` says, else what the system does.

    Processes that share a machine get their part of it by that variable, or are torchrun's, and
    have an equal part each.

    Raises:
        ValueError: the variable is not a whole number from 1.
    """
    given = os.environ.get(CORES)
    if given is not None:
        if not given.isdecimal() or int(given) < 1:
            raise ValueError(f"{CORES}={given}: must be a whole number >= 1, or not be set")
        return int(given)
    if sys.platform == "linux":  # the others have no such call
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, cores // local_processes())
