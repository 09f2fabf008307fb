"""Runs of a sweep side by side: each is what it is alone, and fails or is cut alone."""

import sys

import pandas as pd
import pytest
import torch

from experiments import cells, launch, manifest, report, together
from experiments.bench.fleets import tune
from experiments.cli import main
from experiments.run import run
from sim.compute.joint import Joint
from sim.compute.options import available_cores
from sim.profile import CAUSES
from sim.trace import Trace

LINE = ["task=digits", "task.width=4", "task.examples=3", "topology=ring", "topology.n=4"]
LINE += ["strategy.inner_steps=2", "budget.steps=6", "budget.seconds=null", "evaluations=3"]
SWEEP = [*LINE, "local.lr=0.01,0.1", "seed=0,1", "hydra.sweep.dir=runs/one", "together=true"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(report, "save_figures", lambda *_: [])


def statuses():
    found = [manifest.read(cells.Path(f"runs/one/{i}")) for i in range(4)]
    return [m and m["status"] for m in found]


def test_each_cell_has_the_records_that_it_has_alone(tmp_path):
    assert main(["run", "-m", *SWEEP]) == 0
    for cell in cells.read(SWEEP, multirun=True).cells:
        alone = tmp_path / "alone" / str(cell.number)
        run(cell.cfg, alone, cell.overrides, cell.choices)
        assert (alone / "events.jsonl").read_bytes() == (cell.folder / "events.jsonl").read_bytes()
        theirs, own = Trace.load(cell.folder), Trace.load(alone)
        for kind in ("metric", "collective", "compute", "round"):
            pd.testing.assert_frame_equal(theirs[kind], own[kind], check_exact=True)
        found, expected = manifest.read(cell.folder), manifest.read(alone)
        for key in ("config", "config_sha256", "overrides", "choices", "totals", "task", "status"):
            assert found[key] == expected[key]
        assert (cell.folder / ".hydra" / "config.yaml").exists()


def test_all_cells_compute_in_the_same_flushes(monkeypatch):
    seen = []
    flush = Joint._flush
    monkeypatch.setattr(
        Joint, "_flush", lambda joint: seen.append(len(joint._waiting)) or flush(joint)
    )
    assert main(["run", "-m", *SWEEP]) == 0
    assert seen == [4, 4, 4, 0]  # three rounds of all four, then all have ended


def test_a_cell_that_fails_does_not_stop_the_others(capsys, monkeypatch):
    save = Trace.save

    def broken(trace, folder):
        if folder.name == "2":
            raise RuntimeError("as it was told")
        save(trace, folder)

    monkeypatch.setattr(Trace, "save", broken)
    assert main(["run", "-m", *SWEEP]) == 1
    told = capsys.readouterr()
    assert "3 of 4 cells done, 1 failed" in told.out
    assert told.err.endswith("RuntimeError: as it was told (runs/one/2/manifest.json)\n")
    assert statuses() == ["ok", "ok", "failed", "ok"]


def test_an_interrupted_sweep_keeps_what_has_ended_and_goes_on(capsys, monkeypatch):
    line = [word for word in SWEEP if not word.startswith(("budget.steps", "seed"))]
    line += ["budget.steps=2,6"]
    flush = Joint._flush

    def cut(joint):
        if joint.flushes == 2:
            raise KeyboardInterrupt
        flush(joint)

    with monkeypatch.context() as patch:
        patch.setattr(Joint, "_flush", cut)
        assert main(["run", "-m", *line]) == 130
    assert statuses() == ["ok", None, "ok", None]
    capsys.readouterr()
    assert main(["run", "-m", *line]) == 0
    assert "4 of 4 cells done, 2 of them before" in capsys.readouterr().out


def test_an_interrupt_in_a_part_of_a_run_reaches_the_sweep(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.tasks.digits.Digits.batch", interrupted)
    monkeypatch.setattr(launch, "check", lambda experiment: experiment)
    assert main(["run", "-m", *SWEEP]) == 130


def test_runs_that_need_too_much_memory_together_go_in_batches(capsys, monkeypatch):
    need = launch._checked(cells.read(LINE).cells[0]).memory.total
    joints = []
    monkeypatch.setattr(together, "Joint", lambda n: joints.append(Joint(n)) or joints[-1])
    assert main(["run", "-m", *SWEEP, f"compute.memory_limit={2.5 * need:.0f}"]) == 0
    assert "2 batches of at most 2" in capsys.readouterr().out
    assert len(joints) == 2
    assert statuses() == ["ok"] * 4


def test_how_many_threads_torch_has_is_the_same_for_all_and_afterwards(monkeypatch):
    seen, before = set(), torch.get_num_threads()
    save = Trace.save
    monkeypatch.setattr(
        Trace, "save", lambda *args: seen.add(torch.get_num_threads()) or save(*args)
    )
    torch.set_num_threads(2)
    try:
        main(["run", "-m", *SWEEP])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


def test_a_profile_does_not_split_time_that_is_waiting(capsys):
    assert main(["run", "-m", *SWEEP, "--profile"]) == 0
    out = capsys.readouterr().out
    assert "everything but gradients" not in out
    found = [manifest.read(cells.Path(f"runs/one/{i}")) for i in range(4)]
    assert [m["together"] for m in found] == [True] * 4
    assert {tuple(m["profile"]) for m in found} == {tuple(c for c in CAUSES if c != "gradients")}
    (line,) = [text for text in out.splitlines() if text.startswith("4 runs together")]
    told = [float(word) for word in line.split()[3:]]
    sums = [sum(m["profile"][cause] for m in found) for cause in found[0]["profile"]]
    assert told == pytest.approx(sums, rel=0.01)


def test_another_launcher_cannot_run_them_together(capsys):
    assert main(["run", "-m", *SWEEP, "hydra/launcher=joblib"]) == 2
    assert capsys.readouterr().err.startswith("together=true: ")


@pytest.mark.slow
def test_the_tuning_benchmark_compares_with_one_by_one_and_one_per_core():
    made = tune.rows(quick=True)
    assert [row.baseline_name.split()[0] for row in made] == ["one", str(available_cores())] * 2
    assert all(row.ours > 0 and row.baseline > 0 for row in made)


@pytest.mark.slow
def test_tune_small_runs_through(capsys, tmp_path, monkeypatch):
    monkeypatch.undo()
    line = [
        "experiment=tune_small",
        "topology.n=4",
        "budget.steps=20",
        f"hydra.sweep.dir={tmp_path}",
    ]
    assert main(["run", *line, "seed=0"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert sum(text.startswith("task.width  best local.lr") for text in out) == 1
    assert [cells.Path(path).exists() for path in out[-6:]] == [True] * 6
