"""`archipelago run`: compose all cells, check all cells, then run them and report.

One run happens in this process; a sweep on this machine in processes of its own; what only Hydra
can do (its other launchers and sweepers, its help) goes through `hydra.main`.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from experiments import cells as composition
from experiments import grid, manifest, plugins, report, results
from experiments.assemble import assemble, check
from experiments.cells import Cell, Sweep
from experiments.errors import ConfigError, from_hydra
from experiments.experiment import Experiment
from experiments.run import main as hydra_main
from experiments.run import run
from experiments.together import run_together
from sim.compute.memory import at_once
from sim.compute.options import available_cores
from sim.compute.processes import Processes, joined
from sim.compute.room import free_nbytes

FLAGS = {"--fresh": "fresh=true", "--profile": "profile=true"}
"""Short for keys that say how to run, not what."""


def launch(args: list[str]) -> int:
    """Run what a command line asks for; the exit code.

    Under torchrun all processes compute the one run together, and the first one speaks.
    """
    try:
        with joined() as group, _quiet_unless(group.is_first):
            code = _launch(args, group)
            return code if group.is_first else 0  # torchrun ends all when one reports an error
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command to go on", file=sys.stderr)
        return 130


def _launch(args: list[str], group: Processes) -> int:
    plugins.register()
    args = [FLAGS.get(arg, arg) for arg in args]
    options = get_args_parser().parse_args(args)
    if options.help or options.hydra_help or options.cfg or options.info:
        return _through_hydra(args)
    try:
        sweep = composition.read(options.overrides, options.multirun, options.config_dir)
        _check_one(sweep, group)
        _are_together(sweep)
        if sweep.multirun:
            print(f"{len(sweep.cells)} cells, results in {sweep.folder}\n", flush=True)
        experiments = [_checked(cell) for cell in sweep.cells]
    except ConfigError as error:
        return _refuse(error)
    except (HydraException, OmegaConfBaseException) as error:
        told = from_hydra(error, composition.known_keys(options.overrides))
        if told is None:
            raise
        return _refuse(told)
    try:
        sweep = _placed(sweep) if group.is_first else sweep
    except OSError as error:
        return _refuse(ConfigError(f"results cannot be written there: {error}"))
    if not sweep.multirun:
        return _single(sweep.cells[0], group)
    _announce(sweep, experiments)
    failed = _here(sweep, experiments) if sweep.local else _elsewhere(sweep, args)
    return _report(sweep, failed)


def _checked(cell: Cell) -> Experiment:
    try:
        experiment = assemble(cell.cfg)
        check(experiment)
    except ConfigError as error:
        raise ConfigError(f"{cell.name}: {error}" if cell.name else str(error)) from error
    return experiment


def _check_one(sweep: Sweep, group: Processes) -> None:
    """Refuse a sweep by several processes, which share one run."""
    if sweep.multirun and group.size > 1:
        raise ConfigError(
            f"torchrun: {group.size} processes compute one run, and this is a sweep of "
            f"{len(sweep.cells)}; start its cells one by one, or the sweep without torchrun, one "
            "process per cell"
        )


@contextmanager
def _quiet_unless(speaks: bool) -> Iterator[None]:
    """Drop what is printed, unless this process is the one that speaks."""
    if speaks:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _placed(sweep: Sweep) -> Sweep:
    """The sweep, with a folder that can be written."""
    if not sweep.multirun:
        sweep = replace(sweep, cells=[composition.claimed(sweep.cells[0])])
    folder = sweep.folder if sweep.multirun else sweep.cells[0].folder
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return sweep


def _refuse(error: ConfigError) -> int:
    print(error, file=sys.stderr)
    return 2


def _announce(sweep: Sweep, experiments: list[Experiment]) -> None:
    names = [cell.name for cell in sweep.cells]
    forms = report.closed_forms(list(zip(names, experiments)))
    if forms:
        print(forms)


def _here(sweep: Sweep, experiments: list[Experiment]) -> dict[int, str]:
    """Run on this machine; number of each failed cell -> what happened."""
    if not _are_together(sweep):
        return grid.run_cells(sweep.cells, _processes(experiments))
    needs = {
        c.number: e.memory.total if e.memory else 0.0 for c, e in zip(sweep.cells, experiments)
    }
    options = [experiment.compute for experiment in experiments]
    room = min(o.memory_limit or free_nbytes(o.device) for o in options)
    workers = max(o.n_workers(o.device.type) for o in options)
    experiments.clear()  # what was built for the check makes room
    return run_together(sweep.cells, needs, float(room), workers)


def _are_together(sweep: Sweep) -> bool:
    """Whether all cells are to run side by side.

    Raises:
        ConfigError: they are, and so they are another launcher's.
    """
    together = sweep.multirun and all(cell.cfg.together for cell in sweep.cells)
    if together and not sweep.local:
        raise ConfigError(
            "together=true: runs compute side by side in this process, where no other launcher or "
            "sweeper of Hydra's can put them; leave out one of the two"
        )
    return together


def _processes(experiments: list[Experiment]) -> int:
    """One per core, but no more than there is memory for."""
    needs = [e.memory.total for e in experiments if e.memory is not None]
    room = min(free_nbytes(e.compute.device) for e in experiments)
    return min(available_cores(), at_once(needs, room)) if needs else available_cores()


def _single(cell: Cell, group: Processes) -> int:
    if not group.is_first:
        run(cell.cfg, cell.folder, cell.overrides, cell.choices)
        return 0
    grid.run_here(cell)
    print(report.final_table(results.summary(cell.folder)))
    if cell.cfg.profile:
        print(f"\n{report.profile_table({'this run': cell.folder})}\n")
    print(cell.folder)
    return 0


def _report(sweep: Sweep, failed: dict[int, str]) -> int:
    """Table, errors, figures: the paths are the last lines."""
    if len(failed) < len(sweep.cells):
        print(f"\n{report.sweep_table(results.summary(sweep.folder, _runs(sweep, failed)))}\n")
    if any(cell.cfg.profile for cell in sweep.cells):
        print(f"{report.profile_table(_named_runs(sweep, failed))}\n")
    for cell in sweep.cells:
        if cell.number in failed:
            path = cell.folder / manifest.NAME
            where = f" ({path})" if path.exists() and _is_own(cell) else ""
            print(f"{cell.name}: {failed[cell.number]}{where}", file=sys.stderr)
    if len(failed) < len(sweep.cells):
        for path in report.save_figures(sweep.folder, _runs(sweep, failed)):
            print(path)
    return 1 if failed else 0


def _runs(sweep: Sweep, failed: Container[int]) -> list[Path]:
    """The folders that hold the sweep's runs; others in its folder are of other commands."""
    finished = manifest.finished_in(sweep.folder)
    return [
        cell.folder if cell.number in failed else finished[cell.config_sha256]
        for cell in sweep.cells
        if cell.number not in failed or _is_own(cell)
    ]


def _named_runs(sweep: Sweep, failed: Container[int]) -> dict[str, Path]:
    """Name of each cell that ended well -> where its results are."""
    finished = manifest.finished_in(sweep.folder)
    good = [cell for cell in sweep.cells if cell.number not in failed]
    return {cell.name: finished[cell.config_sha256] for cell in good}


def _is_own(cell: Cell) -> bool:
    """Whether the cell's folder holds nothing of another configuration's."""
    found = manifest.read(cell.folder)
    return found is None or found["config_sha256"] == cell.config_sha256


def _elsewhere(sweep: Sweep, args: list[str]) -> dict[int, str]:
    """A launcher or sweeper that is not ours: cells that have no good manifest then have failed."""
    given = any(arg.startswith("hydra.sweep.dir=") for arg in args)
    _through_hydra(args if given else [*args, f"hydra.sweep.dir={sweep.folder}"])
    finished = manifest.finished_in(sweep.folder)
    failed = {}
    for cell in sweep.cells:
        if cell.config_sha256 not in finished:
            found = manifest.read(cell.folder) or {}
            failed[cell.number] = found.get("traceback", "no manifest").strip().splitlines()[-1]
    return failed


def _through_hydra(args: list[str]) -> int:
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions reach the caller as they are
    before, sys.argv = sys.argv, ["archipelago", *args]
    try:
        hydra_main()
    finally:
        sys.argv = before
    return 0
