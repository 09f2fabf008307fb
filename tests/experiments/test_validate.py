"""The validation table: its command, its summary, and the judges that need no file."""

import json
import math

import numpy as np
import pytest

from experiments import cli
from experiments.validate import closed_forms, conservation, properties, report
from experiments.validate.__main__ import main
from experiments.validate.columns import DATA
from experiments.validate.properties import Findings, certify
from experiments.validate.row import KINDS, Row
from experiments.validate.sections import SECTIONS


def row(ours=1.0, kind="formula", **options):
    return Row("x", ours, 1.0, 0.1, "by hand", kind, **options)


def test_a_section_is_run_by_name_and_holds(capsys):
    assert cli.main(["validate", "--only", "wall"]) == 0
    captured = capsys.readouterr()
    assert "formula: 9 of 9 hold" in captured.out
    assert "[1/1] wall_clock: 9 rows" in captured.err


def test_a_pattern_may_be_a_glob(capsys):
    assert main(["--only", "*clock"]) == 0
    assert "wall_clock" in capsys.readouterr().err


def test_an_unknown_section_names_the_nearest(capsys):
    assert main(["--only", "wall_clack"]) == 2
    assert "try 'wall_clock'" in capsys.readouterr().err


def test_a_part_of_the_table_is_not_a_file(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "gloo", "papers", "x.csv"])
    assert "--only is for the built-in table" in capsys.readouterr().err


@pytest.mark.parametrize("before", [True, False])
def test_the_json_option_may_stand_on_either_side(tmp_path, before):
    given = ["--json", str(tmp_path / "rows.json")]
    verb = ["papers", str(DATA / "measured_cu_intellect1_table2.csv")]
    assert main([*given, *verb] if before else [*verb, *given]) == 0
    assert len(json.loads((tmp_path / "rows.json").read_text())["rows"]) == 4


def test_a_judged_row_that_fails_is_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(closed_forms, "rows", lambda: [row(), row(2.0)])
    assert main(["--only", "closed_forms"]) == 1
    assert "1 FAIL" in capsys.readouterr().out


def test_a_row_that_is_only_printed_fails_nothing(monkeypatch):
    monkeypatch.setattr(closed_forms, "rows", lambda: [row(), row(2.0, judged=False)])
    assert main(["--only", "closed_forms"]) == 0


def test_the_json_file_has_every_row_and_no_nan(monkeypatch, tmp_path):
    found = [row(1.05), row(math.nan, "published", judged=False, note="not modelled")]
    monkeypatch.setattr(closed_forms, "rows", lambda: found)
    path = tmp_path / "new folder" / "table.json"
    assert main(["--only", "closed_forms", "--json", str(path)]) == 0
    saved = json.loads(path.read_text())
    assert saved["holds"] is True
    assert saved["kinds"]["formula"] == {"hold": 1, "judged": 1, "printed": 0}
    assert [r["ours"] for r in saved["rows"]] == [1.05, None]
    assert saved["rows"][0]["difference"] == pytest.approx(0.05)


def test_the_summary_counts_kinds_of_reference_apart():
    rows = [row(), row(kind="measurement"), row(2.0, "measurement"), row(kind="simulator")]
    text = report.summary(rows)
    assert "formula: 1 of 1 hold" in text
    assert "measurement: 1 of 2 hold" in text
    assert "another simulator: 1 of 1 hold" in text


def test_what_is_not_a_number_does_not_hold():
    assert not row(math.nan).holds


def test_every_section_names_a_module_and_every_kind_is_known():
    assert len(set(SECTIONS.values())) == len(SECTIONS)
    kinds = {"formula", "simulator", "program", "measurement", "published", "property"}
    assert set(KINDS) == kinds


def test_all_closed_forms_hold():
    rows = closed_forms.rows()
    assert [r.what for r in rows if not r.holds] == []
    assert {r.what.rpartition(", ")[2] for r in rows} >= {"flows (s)", "hops (s)", "coupled (s)"}


def test_the_four_numbers_of_homes_are_among_them():
    assert [round(r.reference) for r in closed_forms.equal_homes()] == [1640, 615, 218, 16]


def test_bytes_are_conserved():
    assert all(r.holds for r in conservation.rows())


def test_random_platforms_are_fair_and_within_capacity():
    scenario = properties.Scenario("test", 30, 80, properties._arbitrary(30))
    found = scenario.run()
    assert found.checked > 500
    assert found.unfair == 0
    assert found.excess < 1e-6


FLOWS = {
    0: (np.array([0]), 1.0, np.inf),
    1: (np.array([0, 1]), 1.0, np.inf),
    2: (np.array([1]), 2.0, 3.0),
}
CAPACITY = np.array([10.0, 8.0])


def certified(rates):
    findings = Findings()
    certify(rates, FLOWS, CAPACITY, findings)
    return findings


def test_the_certificate_accepts_max_min_rates():
    assert certified({0: 5.0, 1: 5.0, 2: 3.0}) == Findings(0.0, 0, 3)


@pytest.mark.parametrize(
    ("rates", "unfair"),
    [
        ({0: 6.0, 1: 4.0, 2: 3.0}, 1),  # on the full link the first is faster than the second
        ({0: 4.0, 1: 4.0, 2: 3.0}, 2),  # no link is full
        ({0: 5.0, 1: 5.0, 2: 2.0}, 1),  # the last one is below its cap, and its link not full
    ],
)
def test_the_certificate_finds_rates_that_are_not_max_min(rates, unfair):
    assert certified(rates).unfair == unfair


def test_the_certificate_finds_a_link_above_its_capacity():
    assert certified({0: 6.0, 1: 5.0, 2: 3.0}).excess == pytest.approx(0.1)
