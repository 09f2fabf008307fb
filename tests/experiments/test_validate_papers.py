"""Published tables: judged by their columns, on the shipped data and on corrupted copies."""

import csv

import pytest

from experiments.validate import averaging, papers, systems, topology, utilisation, wallclock
from experiments.validate.__main__ import main
from experiments.validate.columns import DATA

AVERAGING = "averaging_moshpit_iterations_512_900"
INTELLECT = "measured_cu_intellect1_table2"
ARCHETYPES = "wallclock_network_archetypes"
GAPS = "topology_spectral_gaps_computed"


@pytest.fixture
def copy(tmp_path):
    """copy(name, change) -> path of a copy, under another name, of the rows that are left."""

    def make(name, change=lambda rows: rows):
        with (DATA / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            rows = change(list(csv.DictReader(file)))
        path = tmp_path / "some table.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path

    return make


def only(method, nodes):
    return lambda rows: [r for r in rows if r["method"] == method and r["nodes"] == nodes]


def changed(index, **cells):
    def change(rows):
        rows[index] |= cells
        return rows

    return change


@pytest.mark.parametrize("method", ["all_reduce", "random_groups"])
@pytest.mark.parametrize("nodes", ["512", "900"])
def test_published_iterations_are_met_exactly(copy, method, nodes):
    rows = papers.judge(copy(AVERAGING, only(method, nodes)))
    assert len(rows) == 8
    assert all(abs(row.difference) < 1e-9 for row in rows)


def test_moshpit_is_met_within_what_its_placement_moves(copy):
    rows = papers.judge(copy(AVERAGING, only("moshpit", "900")))
    assert all(row.holds and row.judged for row in rows)


@pytest.mark.parametrize("method", ["gossip_ring", "push_sum"])
def test_weak_variants_are_printed_not_judged(copy, method):
    rows = papers.judge(copy(AVERAGING, only(method, "512")))
    assert not any(row.judged for row in rows)
    assert all("not modelled" in row.note for row in rows)


@pytest.mark.parametrize("method", ["all_reduce", "random_groups", "moshpit"])
def test_a_changed_number_of_iterations_fails(copy, method):
    def change(rows):
        return changed(2, **{"iterations_to_mse_1e-9": "15.5"})(only(method, "512")(rows))

    failing = [row for row in papers.judge(copy(AVERAGING, change)) if not row.holds]
    assert [row.reference for row in failing] == [15.5]


def test_the_law_of_all_reduce_holds():
    assert all(row.holds for row in averaging.rows() if row.kind == "formula")


def test_the_published_utilisation_is_met_within_its_printing(copy):
    assert all(row.holds for row in papers.judge(copy(INTELLECT)))


def test_another_utilisation_fails(copy):
    rows = papers.judge(copy(INTELLECT, changed(1, published_cu_percent="95.4")))
    assert [row.holds for row in rows] == [True, False, True, True]


def test_volumes_and_latencies_of_distro_are_counted():
    rows = systems.rows()[4:]
    assert len(rows) == 5
    assert all(row.holds for row in rows)


def test_archetypes_agree_with_the_formula(copy):
    rows = papers.judge(copy(ARCHETYPES))
    assert len(rows) == 9
    assert all(row.holds for row in rows)


def test_the_formula_is_the_papers():
    low = wallclock.Archetype("low", 10e9 / 8, 0.01)
    assert low.seconds(16) == pytest.approx(2 * 16e9 / 10e9 * (1 - 1 / 16) + 0.01)


def test_spectral_gaps_are_met(copy):
    rows = papers.judge(copy(GAPS, lambda rows: [r for r in rows if int(r["nodes"]) <= 64]))
    assert len(rows) == 17
    assert all(row.holds for row in rows)


def test_another_spectral_gap_fails(copy):
    rows = topology.judge(copy(GAPS, lambda rows: changed(0, value="0.6667")(rows[:3])))
    assert [row.holds for row in rows] == [False, True, True]


@pytest.mark.parametrize(
    "name",
    [
        "cu_streaming_diloco_table4_1b_10b",
        "cu_scaling_laws_table6_chinchilla_deepseek",
        "time_volume_streaming_diloco_table1",
        "time_volume_eager_table1",
    ],
)
def test_tables_of_utilisation_are_told_by_their_columns(copy, monkeypatch, name):
    monkeypatch.setattr(utilisation, "judge", lambda path: [path.name])
    assert papers.judge(copy(name)) == ["some table.csv"]


def test_unknown_columns_list_what_is_known(copy, capsys):
    path = copy(INTELLECT, lambda rows: [{"a": "1", "b": "2"}])
    assert main(["papers", str(path)]) == 2
    said = capsys.readouterr().err
    assert "['a', 'b']" in said
    assert all(name in said for name in ("cu_*", "time_volume_*", "measured_cu_*", "averaging_*"))


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"median_allreduce_s": "fast"}, "row 3: median_allreduce_s='fast': expected a number"),
        ({"inner_phase_minutes": ""}, "row 3: inner_phase_minutes is empty"),
        (
            {"inner_phase_minutes": "0"},
            "row 3: inner_phase_minutes=0: expected a finite number > 0",
        ),
        ({"published_cu_percent": "nan"}, "row 3: published_cu_percent=nan"),
        ({"published_cu_percent": "101"}, "<= 100"),
    ],
)
def test_a_bad_cell_is_one_error_that_names_it(copy, cells, said):
    with pytest.raises(ValueError, match=r"some table\.csv") as error:
        papers.judge(copy(INTELLECT, changed(1, **cells)))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"nodes": "2000"}, "row 2: n=2000: a grid of 32^2 cells has room for 1024"),
        ({"nodes": "10.5"}, "row 2: nodes=10.5: expected a whole number"),
        ({"failure_probability_per_iteration": "2"}, "expected a finite number >= 0 and <= 1"),
    ],
)
def test_an_impossible_experiment_is_named(copy, cells, said):
    with pytest.raises(ValueError, match=r"some table\.csv") as error:
        papers.judge(
            copy(AVERAGING, lambda rows: changed(0, **cells)(only("moshpit", "512")(rows)))
        )
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no rows"),
        (b"a,b\n", "no rows"),
        (b"a,b\n1\n", "row 2 has 1 cells: expected 2"),
        (b"a,a\n1,2\n", "column 'a' occurs twice"),
        (b"\xff\xfe\x00,b\n1,2\n", "not a CSV in UTF-8"),
        (b'a,b\n"1,2\n', "not a CSV"),
    ],
)
def test_what_is_no_table_is_one_error(tmp_path, content, said):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        papers.judge(path)


def test_a_missing_file_is_one_error(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        papers.judge(tmp_path / "nothing.csv")
