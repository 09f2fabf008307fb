"""Run the cells of a sweep on this machine: one per core, each in a process of its own.

A cell that fails does not stop the others. The parent draws one progress line from what the cells
write, or prints plain lines if nobody is looking.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from omegaconf import OmegaConf

from experiments import manifest
from experiments.cells import Cell
from experiments.progress import Progress
from experiments.run import finished, run

_REFRESH = 0.5
"""Seconds between two looks at the cells."""


def run_cells(cells: Sequence[Cell], workers: int | None = None) -> dict[int, str]:
    """Run all cells that have no results yet.

    Args:
        workers: processes; one per core of this machine if None.

    Returns:
        Number of each failed cell -> what happened, in one line.
    """
    todo = [c for c in cells if c.cfg.fresh or not _is_finished(c)]
    progress = Progress(cells, skipped=len(cells) - len(todo))
    progress.show()
    if not todo:
        progress.close()
        return {}
    n = min(len(todo), workers or os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")  # fork would copy torch's threads
    with _one_thread_each(), ProcessPoolExecutor(n, mp_context=context) as pool:
        jobs = {pool.submit(_run_cell, cell): cell for cell in todo}
        _watch(jobs, progress)
    return {jobs[job].number: _failure(job) for job in jobs if job.exception() is not None}


def run_here(cell: Cell) -> None:
    """Run one cell in this process, with a progress line; errors are raised as they are."""
    progress, over = Progress([cell], skipped=0), threading.Event()

    def watch() -> None:
        while not over.wait(_REFRESH):
            progress.show()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        _run_cell(cell)
        progress.done = 1
    finally:
        over.set()
        watcher.join()
        progress.close()


def _is_finished(cell: Cell) -> bool:
    digest = manifest.config_hash(manifest.resolved(cell.cfg))
    return finished(cell.folder, digest) is not None


def _run_cell(cell: Cell) -> None:
    """Write what Hydra writes of a job, then run it."""
    _save_hydra(cell)
    run(cell.cfg, cell.folder, cell.overrides, cell.choices)


def _save_hydra(cell: Cell) -> None:
    folder = Path(cell.folder) / ".hydra"
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cell.cfg, folder / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": cell.hydra}), folder / "hydra.yaml")
    OmegaConf.save(OmegaConf.create(cell.overrides), folder / "overrides.yaml")


def _watch(jobs: dict[Future, Cell], progress: Progress) -> None:
    open_jobs = set(jobs)
    while open_jobs:
        done, open_jobs = wait(open_jobs, timeout=_REFRESH)
        progress.done += len(done)
        progress.show()
    progress.close()


def _failure(job: Future) -> str:
    error = job.exception()
    if isinstance(error, BrokenProcessPool):
        return "its process died (out of memory?); run the same command to go on"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Workers inherit the environment: one thread of torch's in each of them."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
