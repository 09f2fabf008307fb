"""Measured runs: predicted without fitting, on the shipped data and on corrupted copies."""

import csv
import math

import pytest

from experiments.validate import gloo, measured
from experiments.validate.__main__ import main
from experiments.validate.columns import DATA
from experiments.validate.tcp import Shaper

RUNS, GLOO = DATA / "diloco_shaped_runs.csv", DATA / "gloo_tbf_seed3.csv"


@pytest.fixture
def copy(tmp_path):
    """copy(source, change): a CSV whose rows went through `change`."""

    def make(source, change):
        with source.open(newline="", encoding="utf-8") as file:
            rows = change(list(csv.DictReader(file)))
        path = tmp_path / "mine.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path

    return make


@pytest.fixture(scope="module")
def shipped():
    return measured.judge(RUNS)


def judged(rows):
    return [row for row in rows if row.judged]


def test_the_median_errors_hold_and_are_what_is_judged(shipped):
    assert [row.what.split(" of ")[0] for row in judged(shipped)] == ["sync", "utilisation"]
    assert all(row.holds for row in judged(shipped))


def test_a_slow_link_is_reported_as_it_is(shipped):
    slow = next(
        r
        for r in shipped
        if r.what.startswith("sync of") and "rates" not in r.what and " 50 Mbit/s" in r.what
    )
    assert 0.15 < slow.ours < 0.3
    assert not slow.judged


def test_ddp_is_printed_by_its_whole_steps_only(shipped):
    ddp = [row for row in shipped if row.what.startswith("ddp")]
    assert len(ddp) == 3
    assert all("syncstep_wall_median_s" in row.what and not row.judged for row in ddp)


def test_a_sync_is_its_bytes_over_the_rate_and_the_latency_of_each_tensor():
    rate, sizes = 1e6, [4e6, 8e6]
    sync, utilisation = measured.simulate(4, 10, 0.5, sizes, [rate, rate], latency=0.01)
    assert sync == pytest.approx(1.5 * 12e6 / rate + 2 * 6 * 0.01)
    assert utilisation == pytest.approx(5.0 / (5.0 + sync))


def test_the_tensors_of_the_measured_model_are_all_of_its_parameters():
    sizes = measured.tensors(30_846_720, 4 * 30_846_720)
    assert len(sizes) == 57
    assert sum(sizes) == pytest.approx(4 * 30_846_720)


def test_another_model_is_one_vector():
    assert measured.tensors(1000, 4000.0) == [4000.0]


def test_times_of_another_network_fail(copy):
    path = copy(RUNS, lambda rows: [r | {"sync_median_s": stretched(r)} for r in rows])
    failing = [row.what for row in judged(measured.judge(path)) if not row.holds]
    assert len(failing) == 1
    assert failing[0].startswith("sync")


def stretched(row):
    return str(1.3 * float(row["sync_median_s"])) if row["sync_median_s"] else ""


def test_rates_that_were_not_shaped_are_not_judged(copy):
    path = copy(RUNS, lambda rows: [r for r in rows if not r["shaped_rate_bps"]])
    with pytest.raises(ValueError, match="no dependable run"):
        measured.judge(path)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"measured_rate_bps": "-1"}, "row 2: measured_rate_bps=-1"),
        ({"replicas": "1"}, "row 2: replicas=1"),
        ({"inner_step_median_s": "x"}, "row 2: inner_step_median_s='x': expected a number"),
    ],
)
def test_a_bad_cell_is_named(copy, cells, said):
    with pytest.raises(ValueError, match=r"mine\.csv") as error:
        measured.judge(copy(RUNS, lambda rows: [rows[13] | cells, *rows[14:]]))
    assert said in str(error.value)


def test_the_command_takes_both_kinds_of_file(capsys):
    assert main(["measured", str(RUNS)]) == 0
    assert main(["measured", "--tcp", str(RUNS), str(GLOO)]) == 0
    assert "TCP model" in capsys.readouterr().out


def test_other_columns_are_refused_with_those_known(copy, capsys):
    assert main(["measured", str(copy(RUNS, lambda _: [{"a": 1}]))]) == 2
    assert "measured_rate_bps" in capsys.readouterr().err


def test_tcp_leaves_fast_links_alone_and_slow_ones_less():
    rates = [1e6, 50e6 / 8, 25e6, 125e6, 625e6]
    shares = [Shaper().utilisation(rate) for rate in rates]
    assert shares == sorted(shares)
    assert shares[-2:] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert 0.5 < shares[0] <= shares[1] < 0.9


def test_tcp_is_padhyes_formula_for_one_connection():
    window = 25e6 * 0.05 / 9001
    p = 8 / (3 * 2 * window**2)
    moving = 0.05 * math.sqrt(2 * 2 * p / 3)
    stopped = 0.25 * min(1, 3 * math.sqrt(3 * 2 * p / 8)) * p * (1 + 32 * p**2)
    share = Shaper(connections=1).utilisation(25e6)
    assert share == pytest.approx(moving / (moving + stopped))


def test_dependable_transfers_of_gloo_hold():
    rows = judged(gloo.judge(GLOO))
    assert len(rows) == 13
    assert all(row.holds for row in rows)


def test_small_tensors_and_unequal_rings_of_gloo_are_not_judged():
    shown = [row for row in gloo.judge(GLOO) if not row.judged]
    assert all(
        "0." in row.what or "1.25 MB" in row.what or "all_reduce" in row.what for row in shown
    )


def test_a_transfer_that_took_a_tenth_longer_fails(copy):
    def longer(rows):
        return [r | {"measured_s": str(1.1 * float(r["measured_s"]))} for r in rows]

    assert not any(row.holds for row in judged(gloo.judge(copy(GLOO, longer))))


def test_rates_that_do_not_match_are_named(copy):
    path = copy(GLOO, lambda rows: [rows[0] | {"up_Bps": "5;6"}, *rows[1:]])
    with pytest.raises(ValueError, match="row 2: 2 rates up and 4 down"):
        gloo.judge(path)
