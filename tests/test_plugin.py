"""Packages from outside: one that adds a codec, and one that is made of the pages of the guides.

Both are built, installed beside the simulator, and used from the command line.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import results

pytest.importorskip("setuptools", reason="builds the package without the network")

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tests" / "plugins" / "ternary_lab"
GUIDES = ROOT / "docs" / "extending"
VALUES, ROUNDS = 64, 2
RUN = ["strategy=diloco", "strategy.inner_steps=5", "task=quadratic", f"task.dimension={VALUES}"]
SMALL = ["topology=ring", "topology.n=2", f"budget.steps={5 * ROUNDS}", "evaluations=2"]
CHOICES = {
    "strategy": ["strategy=majority_vote"],
    "compressor": ["strategy=diloco", "compressor=ternary"],
    "aggregation": ["strategy=all_reduce", "aggregation=median_norm"],
}
"""Of a page, the words that choose what it adds."""


def python(folder: Path, *args: str, path: Path) -> str:
    """Run Python in `folder` with `path` on its import path; what it prints."""
    env = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *args], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(source: Path, target: Path) -> None:
    """Build and install the package in a folder, without the network."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    args = ["-m", "pip", "install", "-q", *options, "--target", str(target), f"./{source.name}"]
    python(source.parent, *args, path=source.parent)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that holds the built and installed package; its sources stay clean."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    shutil.copytree(PACKAGE, source / "ternary_lab")
    install(source / "ternary_lab", target)
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
    assert python(tmp_path, "-c", check, path=installed) == ""


def test_list_shows_the_choice_of_an_installed_package(installed, tmp_path):
    list_them = "from experiments.cli import main; main(['list', 'compressor'])"
    line = next(
        line
        for line in python(tmp_path, "-c", list_them, path=installed).splitlines()
        if line.startswith("ternary ")
    )
    assert "Values in {-1, 0, 1}, five to a byte" in line


# -- the guides ---------------------------------------------------------------------------------


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language of a guide."""
    text = (GUIDES / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def halves(page: str) -> tuple[str, str]:
    """The code of a guide: what a package would hold, and what is done with it."""
    statements = ast.parse("\n".join(blocks(page, "python"))).body
    held = ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef
    parts = (
        [s for s in statements if isinstance(s, held)],
        [s for s in statements if not isinstance(s, held)],
    )
    made, done = ("\n".join(ast.unparse(s) for s in part) for part in parts)
    return made, done


@pytest.fixture(scope="module")
def mylab(tmp_path_factory) -> Path:
    """The package `mylab` of the guides, installed."""
    source, target = tmp_path_factory.mktemp("guides") / "mylab", tmp_path_factory.mktemp("site")
    code, conf = source / "mylab", source / "mylab" / "conf"
    conf.mkdir(parents=True)
    (conf / "__init__.py").touch()
    (code / "__init__.py").write_text("".join(f"from mylab.{page} import *\n" for page in CHOICES))
    for page in CHOICES:
        (code / f"{page}.py").write_text(halves(page)[0])
        for text in blocks(page, "yaml"):
            path = source / text.splitlines()[0].removeprefix("# ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    (entry_points,) = blocks("compressor", "toml")
    project = (PACKAGE / "pyproject.toml").read_text().replace("ternary_lab", "mylab")
    before, _, after = project.partition("[project.entry-points")
    after = after[after.index("[tool") :]
    (source / "pyproject.toml").write_text(f"{before}{entry_points}\n{after}")
    install(source, target)
    return target


@pytest.mark.parametrize("page", CHOICES)
def test_what_a_guide_adds_is_used_from_an_outside_package(page, mylab, tmp_path):
    args = ["run", *CHOICES[page], "task=quadratic", *SMALL, "hydra.run.dir=one"]
    command = f"import sys; from experiments.cli import main; sys.exit(main({args}))"
    used = f"from mylab.{page} import *\n{halves(page)[1]}\n{command}\n"
    (tmp_path / "used.py").write_text(used)
    python(tmp_path, "used.py", path=mylab)
    metric = results.load(tmp_path / "one")
    assert metric["loss"].iloc[-1] < metric["loss"].iloc[0]
