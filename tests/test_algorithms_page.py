"""The page of algorithms names options and golden files that exist."""

import dataclasses
import re
from pathlib import Path

import pytest

import optimizers
from experiments.algorithms import FACTS, NODES, choices, rows, sent
from experiments.table import size

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "algorithms.md").read_text()
FIELDS = {
    field.name
    for name in optimizers.__all__
    if dataclasses.is_dataclass(getattr(optimizers, name))
    for field in dataclasses.fields(getattr(optimizers, name))
}


def test_every_option_is_an_argument_of_a_strategy():
    options = {key for key in re.findall(r"`(\w+)=", PAGE) if key != "strategy"}
    assert len(options) >= 6
    assert options <= FIELDS


def test_every_golden_file_is_named_where_it_was_used():
    there = {path.stem for path in (ROOT / "tests" / "golden").glob("*.npz")}
    used = {name for facts in FACTS.values() for name in re.findall(r"`(\w+)`", facts.checked)}
    assert used == there - {"compressors_reference"}
    assert there - {"compressors_reference"} <= set(re.findall(r"`(\w+)`", PAGE))


def test_every_notebook_that_is_named_is_there():
    there = {path.name[:2] for path in (ROOT / "notebooks").glob("*.ipynb")}
    named = {number for facts in FACTS.values() for number in facts.notebook.split()}
    assert named <= there | {"-"}


def test_the_table_is_that_of_the_code():
    lines = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]
    shown = {cells[0].strip("| `"): cells for cells in lines if len(cells) == 9}
    known = rows(measured=False)
    assert set(shown) == set(known) == set(FACTS) == set(choices())
    for name, facts in known.items():
        text = " | ".join(shown[name]).replace("`", "")
        for column, value in facts.items():
            assert value.removeprefix("arXiv ") in text, (name, column)


@pytest.mark.parametrize("strategy", ["all_reduce", "diloco", "demo", "sgp", "noloco", "signsgd"])
def test_bytes_of_the_example_follow_the_formula(strategy):
    P, w, n, H, lines = 1_056_000_000, 2, NODES, 50, PAGE.splitlines()
    b = {"demo": 49_660_000}.get(strategy, w * P)  # 6 bytes for 32 of each 4,096
    formula = {
        "all_reduce": 2 * (n - 1) / n * b,
        "diloco": 2 * (n - 1) / n * b / H,
        "demo": (n - 1) * b,
        "sgp": w * P + 4,
        "noloco": (4 * P + w * P) / H,
        "signsgd": 2 * (n - 1) / n * P / 8,
    }[strategy]
    assert sent(strategy) == pytest.approx(formula, rel=0.01)
    (line,) = [x for x in lines if x.startswith(f"| `{strategy}` |") and x.count(" | ") == 8]
    assert size(sent(strategy)) in line
