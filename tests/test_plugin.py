"""A package from outside adds a compressor: installed, checked, and swept from the command line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import results

pytest.importorskip("setuptools", reason="builds the package without the network")

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tests" / "plugins" / "ternary_lab"
VALUES, ROUNDS = 64, 2
RUN = ["strategy=diloco", "strategy.inner_steps=5", "task=quadratic", f"task.dimension={VALUES}"]
SMALL = ["topology=ring", "topology.n=2", f"budget.steps={5 * ROUNDS}", "evaluations=2"]


def python(folder: Path, *args: str, path: Path) -> str:
    """Run Python in `folder` with `path` on its import path; what it prints."""
    env = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *args], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that holds the built and installed package; its sources stay clean."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    shutil.copytree(PACKAGE, source / "ternary_lab")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    install = ["-m", "pip", "install", "-q", *options, "--target", str(target), "./ternary_lab"]
    python(source, *install, path=source)
    return target


@pytest.fixture(scope="module")
def sweep(installed, tmp_path_factory):
    """One row per run of a sweep over the new codec and ours; the table that was printed."""
    folder = tmp_path_factory.mktemp("work")
    args = ["-m", "compressor=ternary,dense", *RUN, *SMALL, "hydra.sweep.dir=swept"]
    printed = python(folder, "-m", "experiments.run", *args, path=installed)
    return results.summary(folder / "swept").set_index("compressor"), printed


def test_an_installed_codec_runs_in_a_sweep_beside_ours(sweep):
    runs, _ = sweep
    assert set(runs.index) == {"ternary", "dense"}
    assert runs["status"].tolist() == ["ok", "ok"]


def test_bytes_in_a_sweep_differ_by_the_exact_ratio_of_the_codecs(sweep):
    runs, _ = sweep
    trits_and_scale, floats = -(-VALUES // 5) + 4, 4 * VALUES
    # Between two nodes an all-gather and a ring all-reduce both move one payload per node.
    assert runs["nbytes_per_node"]["ternary"] == ROUNDS * trits_and_scale
    assert runs["nbytes_per_node"]["dense"] == ROUNDS * floats


def test_the_printed_table_names_the_new_codec(sweep):
    _, printed = sweep
    assert "ternary" in printed


def test_the_new_codec_conforms(installed, tmp_path):
    check = "import ternary_lab, sim.testing as t; t.check_compressor(ternary_lab.Ternary())"
    python(tmp_path, "-c", check, path=installed)


def test_list_shows_the_choice_of_an_installed_package(installed, tmp_path):
    list_them = "from experiments.cli import main; main(['list', 'compressor'])"
    assert "ternary" in python(tmp_path, "-c", list_them, path=installed)
