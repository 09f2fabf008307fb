"""The fleet on a GPU: eager and compiled, beside what the card can do. Nothing without a GPU."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from experiments.bench.fleets.cases import fleet
from experiments.bench.fleets.speed import COUNTS, REPEATS, UNIT, trained
from experiments.bench.fleets.timing import seconds
from experiments.bench.row import Row, row
from experiments.tasks.markov import MarkovLanguage

NODES, DEMO_NODES = 4096, 16_384
_GB = 1e9
_MODES: tuple[tuple[str, dict[str, object], str | None], ...] = (
    ("eager, float32", {}, None),
    ("eager, tf32", {"precision": "tf32"}, ">= 50000"),
    ("compiled, tf32", {"precision": "tf32", "compile": True}, ">= 100000"),
    ("compiled, bf16", {"precision": "bfloat16", "compile": True}, ">= 100000"),
)


def rows(quick: bool = False) -> list[Row]:
    """GPT d64 (112k parameters, 256 tokens): rates, memory, and shares of the card's own."""
    if not torch.cuda.is_available():
        return []
    nodes, demo, repeats = (64, 64, 1) if quick else (NODES, DEMO_NODES, REPEATS)
    task = MarkovLanguage(width=64)
    task.bind(0, max(nodes, demo))
    made, copy, matmul = [], _copy_rate(), _matmul_rate()
    for name, options, target in _MODES:
        ours = fleet(task, nodes, accelerator="cuda", engine="vmap", **options)
        rates = [nodes / s for s in _times(trained(ours, 1), repeats)]
        what = f"GPU, GPT d64, {nodes:,} nodes, {name}"
        made.append(row(what, UNIT, rates, target=None if quick else target))
        flops = [rate * task.flops_per_step / 1e12 for rate in rates]
        made.append(row(f"{what}: of matmul rate", "TFLOP/s", flops, [matmul / 1e12], "tf32"))
        moved = [rate * _least_bytes(task) / _GB for rate in rates]
        made.append(row(f"{what}: rows, of copy rate", "GB/s", moved, [copy / _GB], "copy"))
        del ours
        torch.cuda.empty_cache()
    made.append(_demo(task, demo))
    for count in COUNTS:
        ours = fleet(task, count, accelerator="cuda", engine="vmap")
        rates = [count / s for s in _times(trained(ours, 1), repeats)]
        made.append(row(f"GPU, GPT d64: any N, {count:,} nodes", UNIT, rates))
    return made


def _demo(task: MarkovLanguage, nodes: int) -> Row:
    """Peak memory of gradients at shared parameters that go into a momentum row per node."""
    torch.cuda.reset_peak_memory_stats()
    ours = fleet(task, nodes, accelerator="cuda", engine="vmap")
    request = ours.request(np.arange(nodes), 1, trains=False)
    request.then = partial(_into_momentum)
    with torch.no_grad():
        ours.result(request, request.ids[:1])
    peak = torch.cuda.max_memory_allocated() / _GB
    held = 4.0 * nodes * task.layout.numel / _GB
    return row(f"GPU, momentum of {nodes:,} nodes: peak", "GB", [peak], [held], "its rows")


def _into_momentum(rows: object, grads: torch.Tensor) -> torch.Tensor:
    block = rows["momentum"]  # type: ignore[index]
    rows["momentum"] = block.mul_(0.999).add_(grads)  # type: ignore[index]
    return grads[:, :1]


def _times(call: object, repeats: int) -> list[float]:
    for _ in range(2):  # compiles, and touches the memory
        seconds(call)  # type: ignore[arg-type]
    return [seconds(call) for _ in range(repeats)]  # type: ignore[arg-type]


def _least_bytes(task: MarkovLanguage) -> float:
    """Bytes of rows that a step of AdamW must move: 2 reads of parameters, 8 of state."""
    return 40.0 * task.layout.numel


def _copy_rate() -> float:
    """Bytes per second of a copy on the card, read and written."""
    x = torch.empty(2**28, device="cuda")
    y = torch.empty_like(x)
    return 2.0 * x.nbytes / min(_times(lambda: y.copy_(x), 5))


def _matmul_rate() -> float:
    """FLOP/s of large matrix products in tf32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        a = torch.rand(8192, 8192, device="cuda")
        return 2.0 * 8192**3 / min(_times(lambda: a @ a, 5))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
