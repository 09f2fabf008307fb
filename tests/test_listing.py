"""`archipelago list` prints the tables of the docs, and a line for every choice."""

import re
from pathlib import Path

import pytest

from experiments.cells import CONF
from experiments.listing import listing

DOCS = Path(__file__).parents[1] / "docs"
WIDTHS = {"strategies": ("algorithms", 9), "compressors": ("compressors", 11)}


def plain(cell):
    """A cell of Markdown as text."""
    return re.sub(r"\[([\d.]+)\]\(.*?\)", r"arXiv \1", cell).replace("`", "").strip()


@pytest.mark.parametrize("slot", WIDTHS)
def test_the_command_prints_the_table_of_the_docs(slot):
    page, width = WIDTHS[slot]
    lines = (DOCS / f"{page}.md").read_text().splitlines()
    shown = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    wanted = [[plain(cell) for cell in cells] for cells in shown if len(cells) == width]
    printed = listing([slot]).splitlines()
    assert len(printed) == len(wanted) - 1  # there is a line below the head
    for cells, line in zip([wanted[0], *wanted[2:]], printed):
        assert re.split(r"\s{2,}", line.strip()) == cells


def test_every_choice_of_every_slot_is_described():
    for section in listing().split("\n\n"):
        head, *lines = section.splitlines()
        slot = head.split()[0]
        files = sorted(path.stem for path in (Path(CONF) / slot).glob("*.yaml"))
        assert [line.split()[0] for line in lines] == files
        assert all(len(line.split(maxsplit=1)[1]) > 10 for line in lines), slot


def test_rules_say_how_many_liars_they_bear_and_optimizers_what_they_keep():
    rules = {line.split()[0]: line.split() for line in listing(["aggregations"]).splitlines()}
    assert rules["mean"][-4:] == ["0", "all-reduce,", "gather", "yes"]
    assert rules["krum"][-3:] == ["3", "gather", "no"]
    rows = {line.split()[0]: line.split()[-2:] for line in listing(["locals"]).splitlines()}
    assert rows["adamw_wsd"] == ["WSD", "2"]
    assert rows["nesterov"] == ["Constant", "1"]
    outer = {line.split()[0]: line.split()[-1] for line in listing(["outers"]).splitlines()}
    assert (outer["sgd"], outer["nesterov"]) == ("0", "1")
