"""Run the cells of a sweep in this process, side by side, so that they compute together.

Each cell has its folder and its records as when it runs alone, bit for bit. One that fails does
not stop the others. Cells that need more memory together than there is run in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from experiments.cells import Cell
from experiments.grid import in_one_line, run_cell, shown, unfinished
from experiments.progress import Progress
from experiments.table import size
from sim.compute.joint import Joint

_MOST = 256
"""Runs of a batch, at most: each has a thread and an open file."""


def run_together(
    cells: Sequence[Cell], needs: Mapping[int, float], room: float, workers: int
) -> dict[int, str]:
    """Run all cells of a sweep that have no results yet.

    Args:
        needs: number of a cell -> bytes that it takes.
        room: bytes that all of those that run at the same time may take.
        workers: threads that compute, for all of them.

    Returns:
        Number of each failed cell -> what happened, in one line.
    """
    todo = unfinished(cells)
    parts = list(batches([needs[cell.number] for cell in todo], room))
    if len(parts) > 1:
        total = sum(needs[cell.number] for cell in todo)
        most = max(len(part) for part in parts)
        print(
            f"{len(todo)} runs together need {size(total)} of {size(room)}: "
            f"{len(parts)} batches of at most {most}",
            flush=True,
        )
    failed: dict[int, str] = {}
    with _one_thread(), shown(Progress(cells, len(cells) - len(todo))) as progress:
        for part in parts:
            failed |= _run_batch([todo[k] for k in part], Joint(workers), progress)
    return failed


def batches(needs: Iterable[float], room: float, most: int = _MOST) -> Iterator[list[int]]:
    """Places of runs that go together, in order; one that is too large by itself goes alone.

    >>> list(batches([2, 2, 3, 1, 9], room=5))
    [[0, 1], [2, 3], [4]]
    """
    batch: list[int] = []
    left = room
    for place, need in enumerate(needs):
        if batch and (need > left or len(batch) == most):
            yield batch
            batch, left = [], room
        batch.append(place)
        left -= need
    if batch:
        yield batch


def _run_batch(cells: Sequence[Cell], joint: Joint, progress: Progress) -> dict[int, str]:
    results = joint.run([_program(cell, joint, progress) for cell in cells])
    errors = {c.number: r for c, r in zip(cells, results) if isinstance(r, BaseException)}
    return {number: in_one_line(error) for number, error in errors.items()}


def _program(cell: Cell, joint: Joint, progress: Progress) -> Callable[[], None]:
    def program() -> None:
        try:
            run_cell(cell, joint)
        except BaseException:  # counted, and passed on
            progress.failed += 1
            raise
        progress.done += 1

    return program


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread of torch's in all of this process.

    A run sets that for itself and takes it back in the end, when others still go on: their bits
    would then depend on the number of cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():  # runs say so in their threads; this one computes for them
            yield
    finally:
        torch.set_num_threads(before)
