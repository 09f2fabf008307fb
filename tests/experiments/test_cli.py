"""The command: verbs, exit codes, a run and a sweep from the words of a user."""

import io
import json
import math
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
from omegaconf import OmegaConf

from experiments import cells, grid, launch, manifest, plugins, report, results
from experiments.bench.row import Row
from experiments.cli import main
from experiments.progress import Progress, last_metric
from sim.compute.options import available_cores
from sim.profile import CAUSES

LINE = ["task=quadratic", "topology=ring", "topology.n=3", "budget.steps=3"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_a_run_ends_with_its_folder(capsys):
    assert main(["run", *LINE]) == 0
    folder = capsys.readouterr().out.splitlines()[-1]
    assert folder.startswith("runs/single/")
    assert manifest.read(cells.Path(folder))["status"] == "ok"


def test_results_prints_the_table_and_writes_csv(capsys, tmp_path):
    main(["run", *LINE])
    assert main(["results", "runs", "--csv", "out.csv"]) == 0
    assert "loss" in capsys.readouterr().out
    assert "nbytes_per_node" in (tmp_path / "out.csv").read_text()


def test_results_of_nothing_is_an_error_in_one_line(capsys):
    assert main(["results", "."]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unknown_verb_names_the_nearest(capsys):
    assert main(["reslts"]) == 2
    assert "try 'results'" in capsys.readouterr().err


def test_list_describes_the_choices_of_a_slot(capsys):
    assert main(["list", "strategies"]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("diloco "))
    assert "arXiv 2311.08105" in line
    assert "ring all-reduce" in line
    assert "diloco_torchft_sgd" in line
    assert "topology" not in out


def test_an_unknown_slot_names_the_nearest(capsys):
    assert main(["list", "strateg"]) == 2
    assert "try 'strategy'" in capsys.readouterr().err


def test_the_same_command_has_the_same_folder_another_has_another():
    one, same, other = (cells.read([*LINE, f"seed={s}"], True).folder for s in ("0,1", "0,1", "1"))
    assert one == same != other


def test_the_command_line_narrows_the_grid_of_an_experiment():
    sweep = cells.read(["experiment=first_light", "place=homes"])
    assert [cell.choices["place"] for cell in sweep.cells] == ["homes"] * 3


def test_another_launcher_is_left_to_hydra():
    assert cells.read([*LINE, "seed=0,1"], multirun=True).local
    assert not cells.read([*LINE, "hydra/launcher=joblib", "seed=0,1"], multirun=True).local


@pytest.fixture
def ran(monkeypatch):
    """Cells run in this process; the seeds of those that were run."""
    seeds = []

    def in_pool(todo, *_):
        for cell in todo:
            seeds.append(cell.cfg.seed)
            grid.run_cell(cell)
        return []

    monkeypatch.setattr(grid, "_in_pool", in_pool)
    monkeypatch.setattr(report, "save_figures", lambda *_: [])
    return seeds


def test_results_are_found_wherever_the_sweep_has_them(ran, tmp_path):
    for seeds in ("0,1", "1,2", "0,1,2"):
        assert main(["run", "-m", *LINE, f"seed={seeds}", "hydra.sweep.dir=runs/one"]) == 0
    assert ran == [0, 1, 2]
    assert sorted(results.load(tmp_path / "runs/one")["seed"].unique()) == [0, 1, 2]


def test_a_table_has_the_runs_of_its_command_only(ran, capsys):
    main(["run", "-m", *LINE, "seed=7,8", "hydra.sweep.dir=runs/one"])
    capsys.readouterr()
    main(["run", "-m", *LINE, "seed=8,9", "hydra.sweep.dir=runs/one"])
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("seed "))
    assert [line.split()[0] for line in lines[start + 1 : start + 4] if line] == ["8", "9"]


def shares(line):
    """The shares in a line of the table of wall time."""
    return [float(word.rstrip("%")) for word in line.split() if word.endswith("%")]


def test_a_profile_says_where_the_wall_time_of_each_cell_went(ran, capsys):
    line = ["run", "-m", *LINE, "seed=0,1", "hydra.sweep.dir=runs/one"]
    main([*line, "--profile"])
    out = capsys.readouterr().out.splitlines()
    start = next(i for i, text in enumerate(out) if text.startswith("wall time"))
    assert out[start].split()[2:8] == ["seconds", *CAUSES[:5]]
    assert [text.split()[0] for text in out[start + 1 : start + 3]] == ["seed=0", "seed=1"]
    for text in out[start + 1 : start + 3]:
        *causes, other = shares(text)
        assert sum(causes) == pytest.approx(100, abs=0.4)
        assert other == pytest.approx(100 - causes[0], abs=0.2)


def test_a_profile_repeats_no_run_and_comes_only_if_asked_for(ran, capsys):
    line = ["run", "-m", *LINE, "seed=0,1", "hydra.sweep.dir=runs/one"]
    main(line)
    assert "wall time" not in capsys.readouterr().out
    main([*line, "--profile"])
    assert "wall time" in capsys.readouterr().out
    assert ran == [0, 1]


def test_a_single_run_has_a_profile_too(capsys):
    main(["run", *LINE, "--profile"])
    out = capsys.readouterr().out.splitlines()
    assert sum(shares(next(t for t in out if t.startswith("this run")))[:6]) == pytest.approx(
        100, abs=0.4
    )
    assert out[-1].startswith("runs/single/")


def test_single_runs_of_one_second_have_folders_of_their_own():
    cell = cells.read(LINE).cells[0]
    names = [cells.claimed(cell).folder.name for _ in range(3)]
    assert names == [cell.folder.name + end for end in ("", "-2", "-3")]


def test_a_folder_that_was_asked_for_is_taken_again():
    cell = cells.read([*LINE, "hydra.run.dir=mine"]).cells[0]
    assert cells.claimed(cells.claimed(cell)).folder == cells.Path("mine")


@pytest.mark.parametrize("line", [["hydra.run.dir=file/x"], ["-m", "hydra.sweep.dir=file/x"]])
def test_a_folder_that_cannot_be_written_is_named(line, capsys, tmp_path):
    (tmp_path / "file").touch()
    assert main(["run", *line, *LINE]) == 2
    err = capsys.readouterr().err
    assert "file/x" in err
    assert err.count("\n") == 1


def test_a_csv_that_cannot_be_written_is_named(ran, capsys, tmp_path):
    main(["run", *LINE, "hydra.run.dir=run"])
    assert main(["results", "run", "--csv", "run/manifest.json/x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_interrupt_ends_in_one_line(capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(grid, "run_here", interrupted)
    assert main(["run", *LINE]) == 130
    assert capsys.readouterr().err == "\ninterrupted; run the same command to go on\n"


@pytest.mark.slow
def test_a_worker_ends_when_its_parent_does():
    code = "import time; from experiments import grid; grid._live_with_parent(-1); time.sleep(60)"
    root = cells.Path(cells.CONF).parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=50).returncode == 1


@pytest.mark.slow
def test_a_sweep_reports_and_resumes(capsys, tmp_path):
    line = ["run", "-m", *LINE, "seed=0,1", "hydra.sweep.dir=runs/two"]
    assert main(line) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "runs/two/figures/loss_against_bytes.svg"
    written = (tmp_path / "runs/two/0/manifest.json").stat().st_mtime_ns
    assert main(line) == 0
    assert "2 of 2 cells done, 2 of them before" in capsys.readouterr().out
    assert (tmp_path / "runs/two/0/manifest.json").stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_failing_cell_does_not_stop_the_others(capsys, tmp_path):
    (tmp_path / "mine.py").write_text(BROKEN)
    modes = "+strategy.mode=fatally,well,badly,early"
    line = ["run", "-m", *LINE, "strategy=dpsgd", modes, "strategy._target_=mine.Broken"]
    dpsgd = OmegaConf.load(f"{cells.CONF}/strategy/dpsgd.yaml")
    gone = [f"~strategy.{key}" for key in dpsgd if key != "_target_"]
    assert main([*line, *gone, "hydra.sweep.dir=runs/two"]) == 1
    told = capsys.readouterr()
    assert "1 of 4 cells done, 3 failed" in told.out
    died, badly, early = told.err.splitlines()
    assert died == "+strategy.mode=fatally: its process died (out of memory?)"
    assert badly.endswith("badly: RuntimeError: as it was told (runs/two/2/manifest.json)")
    assert "early: RuntimeError: at once" in early
    found = [manifest.read(tmp_path / f"runs/two/{i}") for i in range(4)]
    assert [m and m["status"] for m in found] == [None, "ok", "failed", "failed"]
    assert main(["results", "runs/two"]) == 0
    assert "early" in capsys.readouterr().out


@pytest.mark.slow
def test_the_joblib_launcher_runs_a_sweep(capfd, tmp_path):
    line = ["run", "-m", *LINE, "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
    assert main([*line, "hydra.sweep.dir=runs/two"]) == 0
    assert manifest.read(tmp_path / "runs/two/1")["seed"] == 1


BROKEN = """
import os
from dataclasses import dataclass
from optimizers import Single
from optimizers.strategy import GroupStrategy

@dataclass(frozen=True)
class Broken(GroupStrategy):
    mode: str
    passes = 0.0

    def init(self, sim):
        return Single().init(sim)

    def run(self, sim):
        if self.mode == "badly":
            raise RuntimeError("as it was told")
        if self.mode == "fatally":
            os._exit(1)
        yield from Single().run(sim)

    def consensus(self, sim):
        if self.mode == "early":
            raise RuntimeError("at once")
        return sim.shared["params"]
"""


def test_progress_shows_where_a_cell_stands(tmp_path):
    cell = cells.read([*LINE, f"hydra.run.dir={tmp_path}/run"]).cells[0]
    out = io.StringIO()
    progress = Progress([cell], skipped=0, out=out)
    cell.folder.mkdir()
    metric = {"kind": "metric", "time": 90.0, "spent": 0.25, "loss": 1.5}
    (cell.folder / "events.jsonl").write_text(json.dumps(metric) + '\n{"kind": "met')
    progress.show()
    assert "0/1 cells done | 25 % at 90 s loss 1.500" in out.getvalue()


def test_progress_shows_some_of_many_cells_and_none_that_are_over(tmp_path):
    seeds = ",".join(map(str, range(12)))
    sweep = cells.read([*LINE, f"seed={seeds}", f"hydra.sweep.dir={tmp_path}"], multirun=True)
    out = io.StringIO()
    progress = Progress(sweep.cells, skipped=0, out=out)
    progress.done = 1
    for cell in sweep.cells:
        cell.folder.mkdir()
        metric = {"kind": "metric", "time": 1.0, "spent": 1.0 if cell.number == 2 else 0.5}
        (cell.folder / "events.jsonl").write_text(json.dumps(metric) + "\n")
    progress.show()
    shown = [part.split(":")[0].strip() for part in out.getvalue().split(" | ")[2:]]
    assert shown == ["seed=0", "seed=1", "seed=3", "seed=4", "and 7 more"]


def test_the_last_metric_is_found_behind_many_records(tmp_path):
    events = tmp_path / "events.jsonl"
    other = '{"kind": "compute", "start": 0.0}\n' * 1000
    events.write_text('{"kind": "metric", "time": 1.0}\n{"kind": "metric", "time": 2.0}\n' + other)
    assert last_metric(events)["time"] == 2.0


def test_a_broken_plug_in_is_named_and_left_out(monkeypatch):
    points = [EntryPoint("lab", "no_such_lab.conf", plugins.GROUP)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    with pytest.warns(RuntimeWarning, match="plug-in 'lab'"):
        assert plugins.config_packages() == []


def test_a_folder_of_choices_on_the_command_line(tmp_path):
    (tmp_path / "conf" / "compressor").mkdir(parents=True)
    half = "_target_: sim.payload.Dense\ndtype: float16\n"
    (tmp_path / "conf" / "compressor" / "half.yaml").write_text(half)
    line = [*LINE, "strategy=all_reduce", "compressor=half"]
    cell = cells.read(line, config_dir=str(tmp_path / "conf")).cells[0]
    assert cell.cfg.strategy.compressor.dtype == "float16"


@pytest.mark.parametrize(("processes", "cores"), [(2, 3), (7, 1), (9, 1)])
def test_processes_share_the_cores_and_the_parent_keeps_its_own(monkeypatch, processes, cores):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("ARCHIPELAGO_CORES", "7")
    with grid._part_of_the_cores(processes):
        assert grid.os.environ["OMP_NUM_THREADS"] == "1"
        assert available_cores() == cores
    assert grid.os.environ["OMP_NUM_THREADS"] == "7"
    assert available_cores() == 7


@pytest.mark.parametrize(("room", "processes"), [(math.inf, 4), (2.5, 2), (0.5, 1)])
def test_a_sweep_has_as_many_processes_as_cores_and_memory_allow(monkeypatch, room, processes):
    monkeypatch.setenv("ARCHIPELAGO_CORES", "4")
    experiment = launch._checked(cells.read([*LINE, "compute.workers=1"]).cells[0])
    monkeypatch.setattr(launch, "free_nbytes", lambda _: room * experiment.memory.total)
    assert launch._processes([experiment] * 9) == processes


def test_a_sweep_without_values_needs_no_memory(monkeypatch):
    monkeypatch.setenv("ARCHIPELAGO_CORES", "4")
    monkeypatch.setattr(launch, "free_nbytes", lambda _: 0.0)
    experiment = launch._checked(cells.read([*LINE, "compute=meta"]).cells[0])
    assert launch._processes([experiment] * 9) == 4


def test_a_benchmark_holds_by_its_ratio_or_by_itself():
    assert Row("speed", "steps/s", 20, 10, target=">= 2").holds
    assert not Row("speed", "steps/s", 20, 10, target=">= 3").holds
    assert Row("share", "", 0.2, target="<= 0.25").holds
    assert Row("share", "", 0.2).holds is None


def test_an_unknown_benchmark_is_refused(capsys):
    assert main(["bench", "no_such_thing"]) == 2
    assert "no such benchmark" in capsys.readouterr().err
