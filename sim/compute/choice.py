"""Choice: which engine computes a task's gradients; verified first, then measured, then kept.

`auto` compares every engine that can batch the task with the plain loop on a few rows, and takes
the fastest of those that agree. What was chosen is kept on disk for this machine, model and these
versions, so that another run takes the same path and gives the same bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from sim.compute.engines import Engine, LoopEngine, StackedEngine, VmapEngine
from sim.compute.options import ComputeOptions
from sim.compute.task import Task
from sim.compute.workers import Workers
from sim.streams import hashes

TOLERANCE = 1e-5
"""Largest distance of a gradient from the loop's, relative to its norm."""
CACHE = "ARCHIPELAGO_CACHE"
"""Environment variable: the folder where choices are kept; `~/.cache/archipelago` without."""
_COARSE = 0.1
"""The same where matrix products were asked for in fewer bits."""
_MAX_BYTES = 1 << 20
_VERIFIED, _MEASURED, _REPEATS = 4, 8, 3
_PREFERENCE = ("stacked", "vmap", "loop")
_CLEARLY = 1.3
"""A less preferred engine must be so many times faster: near ties are noise."""


@dataclass(frozen=True)
class Choice:
    """An engine, and what speaks for it.

    Attributes:
        name: of the engine.
        rates: node-steps per second and worker that were measured, by engine.
        refused: why an engine cannot be used, by engine.
    """

    name: str
    rates: Mapping[str, float]
    refused: Mapping[str, str]


def build(name: str, task: Task, options: ComputeOptions) -> Engine:
    """A new engine, for one worker.

    Raises:
        ValueError: the task has no code of its own for the model.
    """
    if name == "loop":
        return LoopEngine(task)
    if name == "vmap":
        return VmapEngine(task, options.device.type, options.compile, options.precision)
    stacked = task.stacked()
    if stacked is None:
        raise ValueError(
            f"compute.engine='stacked': {type(task).__name__} has no hand-batched code for its "
            "model; choose 'vmap', or 'auto'"
        )
    return StackedEngine(stacked, task.flops_per_step)


def choose(task: Task, initial: Tensor, options: ComputeOptions) -> Choice:
    """The engine for a task that is bound, with parameters like `initial` [P].

    Raises:
        ValueError: the engine that the options name cannot compute the task.
    """
    if options.engine == "loop":
        return Choice("loop", {}, {})
    if options.engine != "auto":
        build(options.engine, task, options)
        return Choice(options.engine, {}, {})
    key = _key(task, initial, options)
    kept = _read().get(key)
    if kept is None:
        kept = asdict(_measured(task, initial, options))
        kept = _keep(key, kept)
    return Choice(kept["name"], kept["rates"], kept["refused"])


def _measured(task: Task, initial: Tensor, options: ComputeOptions) -> Choice:
    case = _Case(task, initial)
    wanted = case.gradients(LoopEngine(task), _VERIFIED)
    rates, refused = {}, {}
    for name in _PREFERENCE:
        try:
            engine = _usable(name, task, initial, options)
            if engine is None:
                continue
            found = case.gradients(engine, _VERIFIED)
        except (RuntimeError, ValueError) as error:  # what vmap cannot do
            refused[name] = str(error).splitlines()[0]
            continue
        bound = TOLERANCE if options.precision == "float32" else _COARSE
        distance = float(((found - wanted).norm(dim=1) / wanted.norm(dim=1).clamp(1e-30)).max())
        if not distance <= bound and not (found == wanted).all():
            refused[name] = f"gradients differ from the loop's by {distance:.1e}"
            warnings.warn(f"compute.engine={name}: {refused[name]}; not used", stacklevel=2)
            continue
        rates[name] = case.rate(engine)
    best = max(rates.values())
    name = next(n for n in _PREFERENCE if n in rates and rates[n] * _CLEARLY >= best)
    return Choice(name, rates, refused)


def _usable(name: str, task: Task, initial: Tensor, options: ComputeOptions) -> Engine | None:
    """An engine to try; None if it is not made for such a task."""
    if name == "stacked":
        plain = initial.device.type == "cpu" and initial.dtype == torch.float32
        if not plain or task.stacked() is None:
            return None
    return build(name, task, options)


class _Case:
    """A few nodes at the start of a task."""

    def __init__(self, task: Task, initial: Tensor) -> None:
        self._task, self._initial = task, initial
        self._workers = Workers(1)  # with one thread in the BLAS, as in a run

    def gradients(self, engine: Engine, n: int) -> Tensor:
        """Gradients [n, P] of n nodes, each at slightly different parameters."""
        task, device = self._task, self._initial.device
        nodes = steps = np.zeros(n, dtype=np.int64)  # these are there in every run
        scale = 1 + 1e-2 * torch.arange(n, device=device)[:, None]
        params = self._initial * scale.to(self._initial.dtype)
        batch = torch.utils._pytree.tree_map(lambda x: x.to(device), task.batch(nodes, steps))
        words = None
        if task.draws:
            words = torch.from_numpy(hashes(0, "draws", nodes, steps, 1).view(np.int64)).to(device)
        buffers = None
        if task.buffers.numel:
            buffers = task.init_buffers().to(device).repeat(n, 1)
        grads = torch.empty_like(params)
        with torch.no_grad():
            self._workers.map(
                lambda _, e: e.gradients(params, buffers, batch, words, grads), [engine]
            )
        return grads

    def rate(self, engine: Engine) -> float:
        """Node-steps per second."""
        self.gradients(engine, _MEASURED)
        seconds = []
        for _ in range(_REPEATS):
            started = time.perf_counter()
            self.gradients(engine, _MEASURED)
            if self._initial.is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        return _MEASURED / min(seconds)


def _key(task: Task, initial: Tensor, options: ComputeOptions) -> str:
    """A digest of all that the choice depends on."""
    device = str(initial.device)
    if initial.is_cuda:
        device = torch.cuda.get_device_name(initial.device)
    facts: list[Any] = [
        platform.node(),
        platform.processor() or platform.machine(),
        device,
        str(initial.dtype),
        torch.__version__,
        numba.__version__,
        task.signature,
        task.stacked() is not None,
        sorted(task.layout.shapes.items()),
        task.tokens_per_step,
        task.flops_per_token,
        options.precision,
        options.compile,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _path() -> Path:
    folder = os.environ.get(CACHE) or Path.home() / ".cache" / "archipelago"
    return Path(folder) / "engines.json"


def _read() -> dict[str, Any]:
    """What is kept; nothing if the file is not one of ours."""
    path = _path()
    try:
        if path.stat().st_size > _MAX_BYTES:
            return {}
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries = kept.items() if isinstance(kept, dict) else []
    return {k: v for k, v in entries if isinstance(v, dict) and v.get("name") in _PREFERENCE}


def _keep(key: str, made: dict[str, Any]) -> dict[str, Any]:
    """Keep a choice by rename; that of a process that was faster stays. Returns what is kept."""
    path, kept = _path(), _read()
    if key in kept:
        return kept[key]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(kept | {key: made}, file, indent=1)
        os.replace(file.name, path)
    except OSError as error:  # a home that cannot be written: it is measured again next time
        warnings.warn(f"{path}: the choice of an engine cannot be kept ({error})", stacklevel=2)
    return made
