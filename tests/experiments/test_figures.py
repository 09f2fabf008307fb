"""Figures: what is on the axes, and where the files are."""

import itertools

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from experiments import cells, figures, report, results
from experiments.run import run
from experiments.swept import best


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
    assert ax.get_ylabel() == "loss"
    assert ax.get_xscale() == "log"
    assert ax.lines[0].get_xdata().tolist() == [2, 4, 6]
    figures.loss_against_bytes(df, ax, hue="strategy", unit="nats")
    assert ax.get_ylabel() == "loss (nats)"
    plt.close()


def test_one_panel_per_column_value(df):
    fig = figures.panels(df, figures.loss_against_time, "strategy", "place", "a title")
    assert [ax.get_title() for ax in fig.axes] == ["homes", "regions"]
    assert fig.get_suptitle() == "a title"
    plt.close(fig)


def test_panels_and_legend_agree_on_colours(df):
    kept = df[df["run"] != "dilocoregions"]
    later = df[df["run"] == "dilocoregions"].assign(strategy="dpsgd")
    fig = figures.panels(
        pd.concat([kept, later]), figures.loss_against_time, hue="strategy", col="place"
    )
    (legend,) = fig.legends
    colors = [line.get_color() for line in legend.get_lines()]
    shown = dict(zip([text.get_text() for text in legend.get_texts()], colors))
    assert len(set(colors)) == 4
    for ax, names in zip(fig.axes, [("diloco", "demo", "floor"), ("demo", "dpsgd", "floor")]):
        drawn = {line.get_label(): line.get_color() for line in ax.lines}
        assert drawn == {name: shown[name] for name in names}
    plt.close(fig)


def test_more_lines_than_colours_differ_in_style(df):
    many = pd.concat([df[df["run"] == "demohomes"].assign(run=str(k)) for k in range(20)])
    _, ax = plt.subplots()
    figures.loss_against_time(many, ax, hue="run")
    lines = ax.lines[:20]
    assert len({line.get_color() for line in lines}) < 20
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 20
    plt.close()


def test_a_missing_value_has_its_line(df):
    _, ax = plt.subplots()
    figures.loss_against_time(df.replace({"strategy": {"demo": None}}), ax, hue="strategy")
    assert len([line for line in ax.lines if line.get_label() != "floor"]) == 4
    plt.close()


def test_no_floor_where_runs_differ_in_it(df):
    df.loc[df["place"] == "regions", "loss"] += 1
    fig = figures.panels(df, figures.loss_against_time, "strategy")
    assert "floor" not in [line.get_label() for line in fig.axes[0].lines]
    apart = figures.panels(df, figures.loss_against_time, "strategy", "place")
    floors = [h.get_ydata()[0] for ax in apart.axes for h in ax.lines if h.get_label() == "floor"]
    assert floors == pytest.approx([1.0, 2.0])
    plt.close("all")


@pytest.mark.parametrize(("low", "high"), [(2, 8), (3e9, 5e9), (3.1e7, 3.4e7), (20, 190), (2, 5e3)])
def test_the_time_axis_has_labels_apart_from_each_other_for_any_span(df, low, high):
    part = df[df["run"] == "demohomes"].tail(2).assign(time=[float(low), float(high)])
    fig = figures.panels(part, figures.loss_against_time, None)
    fig.canvas.draw()
    axis, (left, right) = fig.axes[0].xaxis, fig.axes[0].get_xlim()
    ticks = axis.get_major_ticks() + axis.get_minor_ticks()
    inside = [t.label1 for t in ticks if t.label1.get_text() and left <= t.get_loc() <= right]
    boxes = sorted((label.get_window_extent() for label in inside), key=lambda box: box.x0)
    assert boxes
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))
    plt.close(fig)


def test_the_unit_of_a_loss_is_known_only_if_all_runs_share_it():
    def found(name: str) -> dict:
        return {"config": {"task": {"_target_": f"experiments.tasks.{name}"}}}

    markov, quadratic = found("markov.MarkovLanguage"), found("quadratic.Quadratic")
    assert report._unit([markov, markov]) == "nats per token"
    assert report._unit([markov, quadratic]) == report._unit([quadratic]) == report._unit([]) == ""


@pytest.fixture
def ends():
    """Final losses of two sizes over four rates and three seeds; one run diverged."""
    rows = [
        {"run": f"{w}{lr}{s}", "width": w, "lr": lr, "seed": s, "loss": w * abs(lr - best) + s + 1}
        for w, best in ((8, 0.01), (32, 0.1))
        for lr in (0.001, 0.01, 0.1, 1.0)
        for s in (0, 1, 2)
    ]
    rows[-1]["loss"] = float("inf")
    return pd.DataFrame(rows)


def test_a_final_loss_is_the_median_in_a_band_with_a_dot_at_the_best(ends):
    _, ax = plt.subplots()
    figures.final_loss_against(ends, ax, "lr", hue="width", unit="nats")
    small, best_small, _, best_large = ax.lines
    assert small.get_xdata().tolist() == [0.001, 0.01, 0.1, 1.0]
    assert small.get_ydata() == pytest.approx([2.072, 2, 2.72, 9.92])
    assert [line.get_xdata().tolist() for line in (best_small, best_large)] == [[0.01], [0.1]]
    edges = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == pytest.approx((1, 10.92))
    assert (ax.get_xscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "lr", "final loss (nats)")
    plt.close()


def test_a_swept_number_below_a_decade_has_a_linear_axis(ends):
    _, ax = plt.subplots()
    figures.final_loss_against(ends[ends["lr"] > 0.01], ax, "lr", hue="width")
    assert ax.get_xscale() == "linear"
    plt.close()


def test_of_a_numeric_sweep_the_best_values_only_are_drawn_over_time(tmp_path, monkeypatch):
    line = ["task=quadratic", "topology=ring", "topology.n=3", "budget.steps=3", "evaluations=3"]
    axes = ["local.lr=0.01,0.1,1,10", "strategy=diloco,local_sgd"]
    for cell in cells.read([*line, *axes, f"hydra.sweep.dir={tmp_path}"], multirun=True).cells:
        run(cell.cfg, cell.folder, cell.overrides, cell.choices)
    drawn = {}
    monkeypatch.setattr(report, "_LINES", 7)
    monkeypatch.setattr(figures, "save", lambda fig, path: drawn.update({path.name: fig}) or [])
    report.save_figures(tmp_path)
    assert list(drawn) == [
        *("final_loss_against_local_lr", "loss_against_time", "loss_against_bytes")
    ]
    found = best(results.summary(tmp_path), "local.lr")
    names = [f"{s}, local.lr={lr}" for s, lr in zip(found["strategy"], found["local.lr"])]
    (ax,) = drawn["loss_against_time"].axes
    assert [line.get_label() for line in ax.lines] == [*names, "floor"]
    assert "best local.lr of 4" in drawn["loss_against_time"].get_suptitle()
    plt.close("all")


def test_a_sweep_of_three_axes_folds_none(tmp_path, monkeypatch):
    line = ["task=quadratic", "topology=ring", "topology.n=3", "budget.steps=3", "evaluations=3"]
    axes = ["strategy=diloco,local_sgd", "local.lr=0.01,0.1", "compressor=dense,int8"]
    for cell in cells.read([*line, *axes, f"hydra.sweep.dir={tmp_path}"], multirun=True).cells:
        run(cell.cfg, cell.folder, cell.overrides, cell.choices)
    drawn = []
    monkeypatch.setattr(figures, "save", lambda fig, path: drawn.append(fig) or [path])
    assert [p.name for p in report.save_figures(tmp_path)] == [
        "loss_against_time",
        "loss_against_bytes",
    ]
    panels = drawn[0].axes
    assert [ax.get_title() for ax in panels] == ["local.lr=0.01", "local.lr=0.1"]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [
        *("diloco, dense", "diloco, int8", "local_sgd, dense", "local_sgd, int8"),
        "floor",
    ]
    assert panels[0].get_ylabel() == "loss"  # of a quadratic: no unit
    plt.close("all")


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
