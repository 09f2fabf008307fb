"""Figures about networks: published points, laws, units, and what stands beyond a tolerance."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from experiments import consensus, network_figures
from experiments.validate.row import Row
from topologies import complete, ring
from topologies.weights import metropolis_weights


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def points(ax):
    """The published points of a panel: x and y in order."""
    return [
        line.get_xydata().tolist()
        for line in ax.lines
        if line.get_marker() == "o" and line.get_ls() == "None"
    ]


def test_bandwidth_is_in_gigabits_and_published_points_stand_beside_the_lines():
    ours = pd.DataFrame(
        {"model": "1B", "method": "diloco", "bandwidth": [1.25e8, 1.25e9], "utilisation": [0.5, 1]}
    )
    published = ours.assign(utilisation=[0.4, 0.9])
    both = pd.concat([ours, ours.assign(model="100B")])
    fig = network_figures.bandwidth_needed(both, published)
    first, second = fig.axes
    assert first.lines[0].get_xydata().tolist() == [[1, 50], [10, 100]]
    assert points(first) == [[[1, 40], [10, 90]]]
    assert first.get_xlabel() == "bandwidth (Gbit/s)"
    assert first.get_ylabel() == "compute utilisation (%)"
    assert [ax.get_title() for ax in (first, second)] == ["1B", "100B (no published numbers)"]


def test_iterations_stand_over_expected_failures_beside_the_law():
    rows = [
        {"method": "all_reduce", "n": n, "p": p, "iterations": 1 + 100 * p + seed}
        for n in (10, 20)
        for p in (0.0, 0.1)
        for seed in (0, 2)
    ]
    published = pd.DataFrame([{"method": "all_reduce", "n": 20, "p": 0.1, "iterations": 7.0}])
    fig = network_figures.iterations_needed(
        pd.DataFrame(rows), published, law=lambda x: 1 + x, cap=50
    )
    (ax,) = fig.axes
    assert ax.lines[0].get_xydata().tolist() == [[0, 2], [1, 12]]
    assert ax.lines[1].get_linestyle() == "--"
    assert points(ax) == [[[2.0, 7.0]]]
    assert ax.lines[3].get_xydata()[-1].tolist() == [2.0, 3.0]
    assert "published" in [text.get_text() for text in fig.legends[0].texts]


def test_consensus_has_a_panel_of_rounds_and_one_per_network():
    mixings = {"ring": [metropolis_weights(ring(6))], "complete": [metropolis_weights(complete(6))]}
    networks = {"a": complete(6), "b": ring(6)}
    table = consensus.compare(mixings, networks, 1e6, rounds=5, seeds=[0])
    decades = {name: consensus.decades(mixing) for name, mixing in mixings.items()}
    fig = network_figures.consensus(table, decades, {"a": 3.0, "b": 4.0})
    assert [ax.get_title() for ax in fig.axes[1:]] == ["a", "b"]
    assert fig.axes[1].lines[-1].get_xdata() == [3.0, 3.0]
    predicted = fig.axes[0].lines[1].get_xydata()
    slope = np.log10(predicted[1, 1] / predicted[0, 1]) / 5
    assert slope == pytest.approx(np.log10(2 / 3))  # (1 + 2 cos 60°) / 3


def test_rows_are_drawn_by_kind_and_those_that_do_not_hold_in_another_colour():
    rows = [
        Row("exact", 1.0, 1.0, 0.0, "a formula", "formula"),
        Row("near", 1.0 + 1e-9, 1.0, 1e-6, "a formula", "formula"),
        Row("off", 5.0, 3.0, 1.0, "a table", "published", relative=False),
        Row("deviation", 1e-7, 0.0, 1e-6, "another", "simulator", relative=False),
        Row("shown", 5.0, 3.0, 1.0, "a table", "measurement", judged=False),
    ]
    left, right = network_figures.validation(rows).axes
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels == ["formula (2)", "simulator (1)", "published (1)"]
    least = left.lines[0].get_xdata()
    assert least[0] < least[1] == pytest.approx(1e-9)
    assert left.lines[2].get_xdata().tolist() == [1e-7]
    off = [line for line in right.lines if line.get_color() == "#D55E00" and len(line.get_xdata())]
    assert [line.get_xdata().tolist() for line in off] == [[2.0]]


def test_a_row_that_no_tolerance_allows_for_stays_on_the_page():
    rows = [Row("off", 1.0, 0.0, 0.0, "x", "property"), Row("nan", 1.0, 0.0, 1e-9, "x", "property")]
    (_, right) = network_figures.validation(rows).axes
    assert right.lines[1].get_xdata().tolist() == [1e3, 1e3]
