"""Run the cells of a sweep on this machine: one per core, each in a process of its own.

A cell that fails does not stop the others, nor does one whose process dies. The parent draws one
progress line from what the cells write, or prints plain lines if nobody is looking.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from omegaconf import OmegaConf

from experiments import manifest
from experiments.cells import Cell
from experiments.progress import Progress
from experiments.run import run
from sim.compute.joint import Joint
from sim.compute.options import CORES, available_cores

_REFRESH = 0.5
"""Seconds between two looks at the cells."""
_DIED = "its process died (out of memory?)"


def run_cells(cells: Sequence[Cell], workers: int | None = None) -> dict[int, str]:
    """Run all cells of a sweep that have no results yet.

    If a process dies, all that ran beside it end: those cells run again one by one, so that only
    the cell whose process dies alone has failed, and had the whole memory.

    Args:
        workers: processes; one per core if None. Each of them has its part of the cores.

    Returns:
        Number of each failed cell -> what happened, in one line.
    """
    todo = unfinished(cells)
    progress = Progress(cells, skipped=len(cells) - len(todo))
    progress.show()
    n = workers or available_cores()
    failed: dict[int, str] = {}
    while todo:
        cut = _in_pool(todo, n, progress, failed)
        suspects, todo = cut[:n], cut[n:]  # started in order, so one of the first n died
        for cell in suspects:
            if _in_pool([cell], 1, progress, failed):
                failed[cell.number] = _DIED
                progress.failed += 1
    progress.close()
    return failed


def run_here(cell: Cell) -> None:
    """Run one cell in this process, with a progress line; errors are raised as they are."""
    with shown(Progress([cell], skipped=0)) as progress:
        run_cell(cell)
        progress.done = 1


def unfinished(cells: Sequence[Cell]) -> list[Cell]:
    """The cells of a sweep that have no results yet, or are to be repeated."""
    before = manifest.finished_in(cells[0].folder.parent)
    return [c for c in cells if c.cfg.fresh or c.config_sha256 not in before]


@contextmanager
def shown(progress: Progress) -> Iterator[Progress]:
    """Show the progress of what this process runs meanwhile."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_REFRESH):
            progress.show()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield progress
    finally:
        over.set()
        watcher.join()
        progress.close()


def run_cell(cell: Cell, joint: Joint | None = None) -> None:
    """Write what Hydra writes of a job, then run it."""
    _save_hydra(cell)
    run(cell.cfg, cell.folder, cell.overrides, cell.choices, joint)


def in_one_line(error: BaseException) -> str:
    """What happened, for a list of failures."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _in_pool(
    cells: Sequence[Cell], n: int, progress: Progress, failed: dict[int, str]
) -> list[Cell]:
    """Run cells in at most `n` processes; failures are added to `failed`.

    Returns:
        The cells that did not come to an end, because some process died.
    """
    context = multiprocessing.get_context("spawn")  # fork would copy torch's threads
    n, own = min(n, len(cells)), (os.getpid(),)
    pools = ProcessPoolExecutor(n, context, _live_with_parent, own)
    with _part_of_the_cores(n), pools as pool:
        jobs = {pool.submit(run_cell, cell): cell for cell in cells}
        try:
            _watch(jobs, progress)
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    errors = {cell.number: job.exception() for job, cell in jobs.items()}
    failed |= {i: in_one_line(e) for i, e in errors.items() if e and not _is_cut(e)}
    return [cell for cell in cells if _is_cut(errors[cell.number])]


def _live_with_parent(parent: int) -> None:
    """Begin a worker: it leaves interrupts to the parent, and ends if that does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_REFRESH)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
        errors = [job.exception() for job in done]
        progress.done += errors.count(None)
        progress.failed += sum(error is not None and not _is_cut(error) for error in errors)
        progress.show()


def _is_cut(error: BaseException | None) -> bool:
    return isinstance(error, BrokenProcessPool)


@contextmanager
def _part_of_the_cores(n: int) -> Iterator[None]:
    """What `n` processes inherit: one thread of torch's for each of their equal parts of cores."""
    mine = {"OMP_NUM_THREADS": "1", CORES: str(max(1, available_cores() // n))}
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
