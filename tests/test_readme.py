"""What README, guides and notebooks tell a reader to type works."""

import re
import shlex
from pathlib import Path

import nbformat
import pytest
from hydra._internal.utils import get_args_parser

from experiments import cells
from experiments.assemble import assemble, check
from experiments.launch import FLAGS
from experiments.listing import listing

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = ROOT / "tests" / "plugins" / "ternary_lab"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def fenced(text: str, language: str = "") -> list[str]:
    """The contents of fenced blocks of a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [content for name, content in found if name == language]


def command_lines() -> list[str]:
    """Every line of a fenced block, in README, guides and notebooks, that runs something."""
    texts = [README, *(p.read_text(encoding="utf-8") for p in (ROOT / "docs").rglob("*.md"))]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells_of = nbformat.read(path, as_version=4).cells
        texts += [cell.source for cell in cells_of if cell.cell_type == "markdown"]
    blocks = "\n".join(block for text in texts for block in fenced(text))
    joined = re.sub(r"\\\n\s*", "", blocks)
    return list(dict.fromkeys(line.split("#")[0].strip() for line in joined.splitlines()))


RUNS = [line for line in command_lines() if line.startswith("archipelago run ")]
MAKES = [line for line in command_lines() if line.startswith("make ")]
BEFORE_RUN = len("archipelago run ")


def test_the_python_example_runs_and_learns():
    (code,) = fenced(README, "python")
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    metric = names["trace"]["metric"]
    assert metric["step"].max() == 100
    assert metric["excess"].iloc[-1] < metric["excess"].iloc[0] / 2


def test_there_are_commands_to_check():
    assert len(RUNS) >= 5


@pytest.mark.parametrize("line", RUNS)
def test_a_command_composes_and_builds(line, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(PLUGIN)
    words = [FLAGS.get(word, word) for word in shlex.split(line[BEFORE_RUN:])]
    options = get_args_parser().parse_args(words)
    choices = PLUGIN / "ternary_lab" / "conf"  # where installing the plug-in would point
    sweep = cells.read(options.overrides, options.multirun, str(choices))
    assert sweep.multirun == options.multirun or "experiment=" in line
    for cell in {cell.name: cell for cell in (sweep.cells[0], sweep.cells[-1])}.values():
        check(assemble(cell.cfg))


@pytest.mark.parametrize("line", MAKES)
def test_a_make_command_has_its_target(line):
    target = shlex.split(line)[1]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}\b[^=\n]*:", makefile, re.MULTILINE)


def test_every_strategy_is_in_the_table_of_algorithms():
    section = README.partition("\n## Algorithms\n")[2].partition("\n## ")[0]
    table = "\n".join(line for line in section.splitlines() if line.startswith("| "))
    named = set(re.findall(r"`(\w+)`", table))
    assert named == {path.stem for path in (ROOT / "conf" / "strategy").glob("*.yaml")}


def test_verbs_of_the_readme_list_what_is_there():
    assert "dct_top_k" in listing(["compressor"])


def test_local_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
