"""What a sweep over a number says: the best value, and what a reader sees of many runs."""

import math

import pandas as pd
import pytest

from experiments import report, swept


@pytest.fixture
def summary():
    """Two widths, five rates, three seeds: the losses of a parabola around 0.1 and around 1."""
    rows = [
        {"run": f"{w} {lr} {s}", "status": "ok", "task.width": w, "local.lr": lr, "seed": s}
        | {"time": 1.0, "loss": (math.log10(lr) + best) ** 2 + 0.1 * s * s}
        for w, best in ((8, 1), (32, 0))
        for lr in (1e-3, 1e-2, 1e-1, 1.0, 10.0)
        for s in (0, 1, 2)
    ]
    return pd.DataFrame(rows)


def test_the_key_with_the_most_numbers_was_swept(summary):
    assert swept.swept_number(summary) == "local.lr"
    assert swept.swept_number(summary[summary["local.lr"] < 1]) is None  # three values
    texts = summary.assign(**{"local.lr": summary["local.lr"].map("{}Mbps".format)})
    assert swept.swept_number(texts) is None


def test_the_best_has_the_lowest_median_of_its_seeds(summary):
    found = swept.best(summary, "local.lr").set_index("task.width")
    assert found["local.lr"].to_dict() == {8: 0.1, 32: 1.0}
    assert found.loc[8, ["median", "min", "max", "count"]].tolist() == pytest.approx(
        [0.1, 0, 0.4, 3]
    )


def test_a_run_that_did_not_end_well_is_never_the_best(summary):
    lost = (summary["local.lr"] == 0.1) & (summary["seed"] > 0)
    summary.loc[lost & (summary["seed"] == 1), "loss"] = float("nan")
    summary.loc[lost & (summary["seed"] == 2), "status"] = "failed"
    found = swept.best(summary[summary["task.width"] == 8], "local.lr")
    assert found["local.lr"].tolist() in ([0.01], [1.0])


def test_a_best_value_at_the_edge_of_what_was_tried_is_said_to_be_there(summary):
    inside = summary[summary["local.lr"] < 10]
    assert swept.best(inside, "local.lr")["at_edge"].tolist() == [False, True]
    told = swept.best_table(inside, "local.lr").splitlines()
    assert told[2].split()[:3] == ["32", "1", "(edge)"]


def test_many_runs_are_a_line_per_combination_and_few_a_line_each(summary):
    many = pd.concat([summary, summary.assign(seed=summary["seed"] + 3)], ignore_index=True)
    assert "best local.lr" in report.sweep_table(many)
    assert len(report.sweep_table(summary).splitlines()) > len(summary)
    assert "best local.lr" not in report.sweep_table(summary)


def test_link_times_that_are_alike_are_said_once():
    rows = [{"run": f"lr={lr} seed={s}", "seconds": str(s)} for lr in range(9) for s in (1, 2)]
    assert report._alike_once(rows) == [
        {"run": "seed=1 (9 runs)", "seconds": "1"},
        {"run": "seed=2 (9 runs)", "seconds": "2"},
    ]
