"""Figures: what is on the axes, and where the files are."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from experiments import figures


@pytest.fixture
def df():
    """Two strategies in two places, one run each, above a floor of 1."""
    rows = [
        {"run": f"{s}{p}", "strategy": s, "place": p, "time": float(t), "nbytes_per_node": 2.0 * t}
        | {"loss": 1 + 1 / (t + 1), "excess": 1 / (t + 1)}
        for s in ("diloco", "demo")
        for p in ("homes", "regions")
        for t in range(4)
    ]
    return pd.DataFrame(rows)


def test_one_line_per_hue_and_the_floor(df):
    _, ax = plt.subplots()
    figures.loss_against_time(df[df["place"] == "homes"], ax, hue="strategy")
    assert [line.get_label() for line in ax.lines] == ["diloco", "demo", "floor"]
    assert ax.lines[0].get_xdata().tolist() == [1, 2, 3]  # a logarithmic axis has no zero
    assert ax.lines[2].get_ydata()[0] == pytest.approx(1.0)
    plt.close()


def test_axes_say_their_units(df):
    _, ax = plt.subplots()
    figures.loss_against_bytes(df, ax, hue="strategy")
    assert ax.get_xlabel() == "sent per node (bytes)"
    assert ax.get_xscale() == "log"
    assert ax.lines[0].get_xdata().tolist() == [2, 4, 6]
    plt.close()


def test_one_panel_per_column_value(df):
    fig = figures.panels(df, figures.loss_against_time, "strategy", "place", "a title")
    assert [ax.get_title() for ax in fig.axes] == ["homes", "regions"]
    assert fig.get_suptitle() == "a title"
    plt.close(fig)


def test_a_figure_is_saved_twice(df, tmp_path):
    fig = figures.panels(df, figures.loss_against_time, None)
    paths = figures.save(fig, tmp_path / "new" / "loss")
    assert [path.name for path in paths] == ["loss.png", "loss.svg"]
    assert all(path.stat().st_size > 1000 for path in paths)
    assert "<svg" in paths[1].read_text()


def test_the_same_data_gives_the_same_svg(df, tmp_path):
    for name in ("a", "b"):
        figures.save(figures.panels(df, figures.loss_against_time, "strategy"), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
