"""Run folders read back: keys as columns, runs that were cut off, files that are not ours."""

import shutil

import pandas as pd
import pytest

from experiments import cells, grid, manifest, report, results
from experiments.run import run

LINE = ["task=quadratic", "topology=ring", "topology.n=3", "budget.steps=3", "evaluations=3"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A sweep of two strategies and two seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    line = [*LINE, "strategy=all_reduce,single", "seed=0,1", f"hydra.sweep.dir={folder}"]
    for cell in cells.read(line, multirun=True).cells:
        grid._save_hydra(cell)
        run(cell.cfg, cell.folder, cell.overrides, cell.choices)
    return folder


@pytest.fixture
def sweep(ran, tmp_path):
    """A copy of it."""
    return shutil.copytree(ran, tmp_path / "copy")


def test_overridden_keys_are_columns(sweep):
    df = results.load(sweep)
    assert results.axes(df) == ["strategy", "seed"]
    assert df.groupby(["strategy", "seed"]).ngroups == 4
    assert df["loss"].notna().all()


def test_a_summary_has_one_row_per_run(sweep):
    table = results.summary(sweep)
    assert table["run"].tolist() == ["0", "1", "2", "3"]
    assert set(table["status"]) == {"ok"}
    last = results.load(sweep).groupby("run")["loss"].last()
    assert table["loss"].tolist() == last.tolist()


def test_keys_come_from_the_overrides_not_from_the_names_of_folders(sweep):
    (sweep / "0").rename(sweep / "strategy=diloco")
    assert set(results.load(sweep)["strategy"]) == {"all_reduce", "single"}


def test_a_key_that_only_some_runs_override_has_the_others_defaults(sweep):
    more = cells.read([*LINE, "strategy=single", "local.lr=0.5"]).cells[0]
    run(more.cfg, sweep / "9", more.overrides, more.choices)
    table = results.summary(sweep)
    assert table["local.lr"].tolist() == [0.01] * 4 + [0.5]
    assert table["seed"].tolist() == [0, 1, 0, 1, 0]


def test_a_run_that_was_cut_off_is_there_as_far_as_it_came(sweep):
    for path in [*(sweep / "1").glob("*.parquet"), sweep / "1" / manifest.NAME]:
        path.unlink()
    events = sweep / "1" / "events.jsonl"
    lines = events.read_text().splitlines(keepends=True)
    events.write_text("".join(lines[:-1]) + lines[-1][:10])
    table = results.summary(sweep)
    assert table["status"].tolist() == ["ok", "unfinished", "ok", "ok"]
    assert table["strategy"].tolist() == ["all_reduce", "all_reduce", "single", "single"]
    assert table["seed"].tolist() == [0, 1, 0, 1]


@pytest.fixture
def failed(sweep):
    """A run of the sweep that failed before its first evaluation."""
    found = manifest.read(sweep / "1")
    for path in (sweep / "1").glob("*.parquet"):
        path.unlink()
    del found["totals"]
    manifest.write(sweep / "1", found | {"status": "failed"})
    (sweep / "1" / "events.jsonl").write_text("")
    return sweep / "1"


def test_a_run_without_an_evaluation_has_a_row_without_numbers(sweep, failed):
    table = results.summary(sweep)
    assert table["status"].tolist() == ["ok", "failed", "ok", "ok"]
    assert table["loss"].isna().tolist() == [False, True, False, False]
    assert results.axes(table) == ["strategy", "seed"]
    assert set(results.load(sweep)["run"]) == {"0", "2", "3"}
    assert report.final_table(table).count("failed") == 1


def test_runs_without_any_evaluation_are_shown_and_not_loaded(failed):
    assert "failed" in report.final_table(results.summary(failed))
    with pytest.raises(ValueError, match="first evaluation"):
        results.load(failed)


def test_of_runs_of_one_configuration_the_last_good_one_is_there(sweep):
    shutil.copytree(sweep / "1", sweep / "7")
    found = manifest.read(sweep / "7")
    manifest.write(sweep / "7", found | {"started": "2999-01-01T00:00:00+00:00"})
    manifest.write(sweep / "8", found | {"status": "failed", "started": "3000-01-01"})
    assert results.summary(sweep)["run"].tolist() == ["0", "2", "3", "7"]


def test_only_the_wanted_runs_are_read(sweep):
    only = [sweep / "0", sweep / "2"]
    assert results.summary(sweep, only)["run"].tolist() == ["0", "2"]
    assert set(results.load(sweep, only)["run"]) == {"0", "2"}


def test_a_csv_holds_what_was_loaded(sweep, tmp_path):
    df = results.load(sweep)
    results.save_csv(df, tmp_path / "out.csv")
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "out.csv", dtype={"run": str}), df, check_dtype=False
    )


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        results.load(tmp_path)


def test_yaml_that_constructs_objects_is_refused(sweep):
    (sweep / "1" / manifest.NAME).unlink()
    evil = "!!python/object/apply:os.system ['echo']"
    (sweep / "1" / ".hydra" / "overrides.yaml").write_text(evil)
    with pytest.raises(Exception, match="could not determine a constructor"):
        results.load(sweep)


def test_a_manifest_of_unreasonable_size_is_refused(sweep):
    with (sweep / "1" / manifest.NAME).open("ab") as file:
        file.truncate(manifest.MAX_BYTES + 1)
    with pytest.raises(ValueError, match="at most"):
        results.summary(sweep)
