"""Choice: which engine computes a task's gradients; verified first, then measured, then kept.

`auto` compares every engine that can batch the task with the plain loop on a few rows, and takes
the fastest of those that agree. Of `vmap` it is also found how many rows its calls must have: some
kernels round the last values of a tensor otherwise than those before, so that a node's bits depend
on who else is there, unless the number of rows is a multiple of 2, 4, ... 32.

What was chosen is kept on disk for this machine, model and these versions, so that another run
takes the same path and gives the same bits.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from sim.compute.engines import LEAST_ROWS, Engine, LoopEngine, StackedEngine, VmapEngine
from sim.compute.options import ComputeOptions
from sim.compute.task import Task
from sim.compute.workers import Workers
from sim.streams import Streams, hashes

TOLERANCE = 1e-5
"""Largest distance of a gradient from the loop's, relative to its norm."""
CACHE = "ARCHIPELAGO_CACHE"
"""Environment variable: the folder where choices are kept; `~/.cache/archipelago` without."""
_COARSE = 0.1
"""The same where matrix products were asked for in fewer bits."""
_MAX_BYTES = 1 << 20
_VERIFIED, _MEASURED, _REPEATS = 4, 8, 3
_MULTIPLES = (LEAST_ROWS, 4, 8, 16, 32)
_PROBED, _PROBES = 64, (1, 2, 3, 6, 8, 16, 24, 48)
"""Rows that are computed at once; then so many of them at a time, which must give the same bits."""
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
        multiple: of rows, that calls of `vmap` are filled up to.
    """

    name: str
    rates: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    multiple: int = LEAST_ROWS


def build(name: str, task: Task, options: ComputeOptions, multiple: int = LEAST_ROWS) -> Engine:
    """A new engine, for one worker.

    Raises:
        ValueError: the task has no code of its own for the model.
    """
    if name == "loop":
        return LoopEngine(task)
    if name == "vmap":
        kind = options.device.type
        return VmapEngine(task, kind, options.compile, options.precision, multiple)
    stacked = task.stacked()
    if stacked is None:
        raise ValueError(
            f"compute.engine='stacked': {type(task).__name__} has no hand-batched code for its "
            "model; choose 'vmap', or 'auto'"
        )
    return StackedEngine(stacked, task.layout.numel, task.flops_per_step)


def choose(task: Task, initial: Tensor, options: ComputeOptions) -> Choice:
    """The engine for a task that is bound, with parameters like `initial` [P].

    Raises:
        ValueError: the engine that the options name cannot compute the task.
    """
    if options.engine in ("loop", "stacked"):
        build(options.engine, task, options)
        return Choice(options.engine)
    key = _key(task, initial, options)
    kept = _read().get(key)
    if kept is None:
        case = _Case(task, initial)
        made = Choice("vmap", multiple=_multiple(case, task, options))
        if options.engine == "auto":
            made = _measured(case, task, initial, options)
        kept = _keep(key, asdict(made))
    return Choice(kept["name"], kept["rates"], kept["refused"], kept["multiple"])


def _measured(case: _Case, task: Task, initial: Tensor, options: ComputeOptions) -> Choice:
    wanted = case.gradients(LoopEngine(task), _VERIFIED)
    rates, refused = {}, {}
    for name in _PREFERENCE:
        try:
            if not _is_made_for(name, task, initial):
                continue
            engine = build(name, task, options)
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
    multiple = _multiple(case, task, options) if name == "vmap" else LEAST_ROWS
    return Choice(name, rates, refused, multiple)


def _is_made_for(name: str, task: Task, initial: Tensor) -> bool:
    """Whether an engine can be tried."""
    if name != "stacked":
        return True
    return initial.is_cpu and initial.dtype == torch.float32 and task.stacked() is not None


def _multiple(case: _Case, task: Task, options: ComputeOptions) -> int:
    """How many rows make a node's bits its own under `vmap`; GPUs promise no bits."""
    if options.device.type != "cpu" or options.compile:
        return LEAST_ROWS
    for multiple in _MULTIPLES:
        if case.is_stable(build("vmap", task, options, multiple)):
            return multiple
    warnings.warn(
        "compute.engine=vmap: the last bits of this model's gradients depend on how nodes are "
        "batched, and so on compute.workers; compute.engine=loop has no such freedom",
        stacklevel=2,
    )
    return multiple


class _Case:
    """A few nodes at the start of a task."""

    def __init__(self, task: Task, initial: Tensor) -> None:
        self._task, self._initial = task, initial
        self._workers = Workers(1)  # with one thread in the BLAS, as in a run

    def gradients(self, engine: Engine, n: int) -> Tensor:
        """Gradients [n, P] of n nodes, each at slightly different parameters."""
        return self._results(engine, np.arange(n), shared=False)[0]

    def is_stable(self, engine: Engine) -> bool:
        """Whether nodes get the same bits whoever is beside them."""
        order = Streams(0).rng("probe").permutation(_PROBED)
        for shared in (False, True):
            whole = self._results(engine, np.arange(_PROBED), shared)
            for size in _PROBES:
                for i in range(0, _PROBED, size):
                    rows = order[i : i + size]
                    some = self._results(engine, rows, shared)
                    if not all(map(torch.equal, some, (x[torch.from_numpy(rows)] for x in whole))):
                        return False
        return True

    def _results(
        self, engine: Engine, places: np.ndarray, shared: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients [n, P], losses [n] and buffers [n, Pb] of n nodes.

        Args:
            places: int64 [n], what nodes differ in: slightly, in their parameters.
            shared: all at the same parameters.
        """
        task, device = self._task, self._initial.device
        nodes = steps = np.zeros_like(places)  # these are there in every run
        scale = 1 + 1e-2 * torch.from_numpy(places).to(device)[:, None]
        params = self._initial if shared else self._initial * scale.to(self._initial.dtype)
        batch = torch.utils._pytree.tree_map(lambda x: x.to(device), task.batch(nodes, steps))
        words = None
        if task.draws:
            words = torch.from_numpy(hashes(0, "draws", nodes, steps, 1).view(np.int64)).to(device)
        buffers = task.init_buffers().to(device).repeat(len(places), 1)
        some = buffers if task.buffers.numel else None
        grads = params.new_empty(len(places), params.shape[-1])
        with torch.no_grad():
            (losses,) = self._workers.map(
                lambda _, e: e.gradients(params, some, batch, words, grads), [engine]
            )
        return grads, losses, buffers

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
        os.environ.get("MKL_CBWR"),
        (_PROBED, _PROBES),
        options.engine,
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
