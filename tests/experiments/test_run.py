"""A run folder: what is in it, when a run is repeated, and what a failure leaves."""

import json

import pytest

from experiments import cells, manifest
from experiments.experiment import Experiment
from experiments.run import run
from sim.trace import Trace

LINE = ["task=quadratic", "topology=ring", "topology.n=4", "budget.steps=4", "strategy=all_reduce"]


def composed(*more):
    return cells.read([*LINE, *more]).cells[0]


def run_in(folder, *more):
    cell = composed(*more)
    return run(cell.cfg, folder, cell.overrides, cell.choices)


def test_a_run_leaves_events_tables_and_a_manifest(tmp_path):
    loss = run_in(tmp_path)
    found = manifest.read(tmp_path)
    assert found["status"] == "ok"
    assert found["totals"]["loss"] == loss
    assert {"versions", "device", "seed", "wall_seconds", "profile", "task", "git"} <= set(found)
    assert (tmp_path / "metric.parquet").exists()
    assert Trace.load(tmp_path)["metric"]["loss"].iloc[-1] == loss


def test_events_and_tables_tell_the_same(tmp_path):
    run_in(tmp_path)
    tables = Trace.load(tmp_path)["collective"]
    for path in tmp_path.glob("*.parquet"):
        path.unlink()
    events = Trace.load(tmp_path)["collective"]
    assert events.equals(tables[events.columns])


def test_a_finished_run_is_not_repeated(tmp_path, monkeypatch):
    first = run_in(tmp_path)
    monkeypatch.setattr(Experiment, "run", lambda *_: pytest.fail("ran again"))
    assert run_in(tmp_path) == first


def test_fresh_repeats_a_finished_run(tmp_path):
    run_in(tmp_path)
    (tmp_path / "metric.parquet").unlink()
    run_in(tmp_path, "fresh=true")
    assert (tmp_path / "metric.parquet").exists()


def test_another_configuration_sets_the_former_results_aside(tmp_path):
    run_in(tmp_path / "0")
    digest = manifest.read(tmp_path / "0")["config_sha256"]
    run_in(tmp_path / "0", "seed=1")
    assert manifest.read(tmp_path / f"0-{digest[:8]}")["seed"] == 0
    assert manifest.read(tmp_path / "0")["seed"] == 1


def test_results_that_were_set_aside_are_not_computed_again(tmp_path, monkeypatch):
    first = run_in(tmp_path / "0")
    run_in(tmp_path / "0", "seed=1")
    monkeypatch.setattr(Experiment, "run", lambda *_: pytest.fail("ran again"))
    assert run_in(tmp_path / "0") == first


def test_a_failure_is_recorded_and_raised(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr("sim.group.Group.average", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run_in(tmp_path)
    found = manifest.read(tmp_path)
    assert found["status"] == "failed"
    assert "RuntimeError: a bug" in found["traceback"]


def test_a_failed_run_is_repeated(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trace, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_in(tmp_path)
    run_in(tmp_path)
    assert manifest.read(tmp_path)["status"] == "ok"


def test_the_manifest_of_a_failure_is_gone_while_the_run_is_repeated(tmp_path, monkeypatch):
    manifest.write(tmp_path, {"status": "failed", "config_sha256": ""})
    monkeypatch.setattr(manifest, "write", lambda *_: None)  # as if it was killed
    run_in(tmp_path)
    assert manifest.read(tmp_path) is None


def test_the_hash_depends_on_what_is_run_not_on_how():
    digests = [
        manifest.config_hash(manifest.resolved(composed(*more).cfg)) for more in [*SAME, *OTHER]
    ]
    assert set(digests[: len(SAME)]) == {digests[0]}
    assert len(set(digests)) == 1 + len(OTHER)


HOW = ["compute.workers=3", "compute.memory_limit=1TB", "fresh=true", "profile=true"]
HOW += ["together=true"]
SAME = ([], HOW, ["topology.n=4", "budget.steps=4"])
OTHER = (
    ["topology.n=5"],
    ["compute=meta"],
    ["compute.engine=loop"],
    ["compute.state_dtype=bfloat16"],
    ["compute.accelerator=auto"],
)


def test_a_manifest_that_is_no_manifest_is_named(tmp_path):
    (tmp_path / manifest.NAME).write_text("[1, 2")
    with pytest.raises(ValueError, match="delete it to run again"):
        manifest.read(tmp_path)


def test_numbers_that_json_lacks_become_null(tmp_path):
    manifest.write(tmp_path, {"status": "ok", "config_sha256": "", "x": float("nan")})
    assert json.loads((tmp_path / manifest.NAME).read_text())["x"] is None


def test_timing_only_has_the_same_clock_and_no_loss(tmp_path):
    more = ["workload=1b", "compressor=bf16"]
    run_in(tmp_path / "full", *more)
    assert run_in(tmp_path / "meta", *more, "compute=meta") is None
    full, meta = (manifest.read(tmp_path / name)["totals"] for name in ("full", "meta"))
    assert meta["time"] == full["time"]
    assert meta["nbytes"] == full["nbytes"]
