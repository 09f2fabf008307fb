"""A run as a Gantt chart and as a heat map of its links."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import gantt, heat, loads
from experiments.records import Window
from sim.trace import Trace

# -- loads ----------------------------------------------------------------------------------------


def test_bins_hold_the_exact_mean_of_a_load(two_rounds):
    found = loads.heat(two_rounds, bins=4)  # 0 .. 20 s; half the capacity from 4 to 9 s
    assert found.links == ["0 → 1"]
    assert found.utilisation[0] == pytest.approx([0.1, 0.4, 0.0, 0.0])


def test_a_load_from_before_a_window_holds_in_it(two_rounds):
    window = Window(start=6.0, end=8.0)
    assert [tuple(load) for load in loads.loads(two_rounds, window)] == [("0 → 1", 6.0, 0.5)]
    assert loads.heat(two_rounds, window, bins=2).utilisation[0] == pytest.approx([0.5, 0.5])


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 1)), min_size=1, max_size=12),
    st.integers(1, 9),
    st.floats(0, 4),
)
def test_bins_agree_with_sampling(steps, bins, start):
    trace, times, values = Trace(), [0.0], [0.0]
    for wait, value in steps:
        times.append(times[-1] + wait)
        values.append(value)
        trace.record("link", time=times[-1], u="a", v="b", load=value, capacity=1.0)
    end = start + 10.0
    trace.record("metric", time=end)
    at = start + (np.arange(90_000) + 0.5) * 10.0 / 90_000
    sampled = np.array(values)[np.searchsorted(times, at, "right") - 1]
    wanted = [part.mean() for part in np.array_split(sampled, bins)]
    found = loads.heat(trace, Window(start=start, end=end), bins=bins)
    assert found.utilisation[0] == pytest.approx(wanted, abs=0.005)


def test_the_busiest_links_come_first_and_others_are_counted():
    trace = Trace()
    for link, load in enumerate([1.0, 3.0, 2.0, 0.5]):
        trace.record("link", time=0.0, u=str(link), v="r", load=load, capacity=4.0)
    trace.record("metric", time=1.0)
    found = loads.heat(trace, links=2, bins=1)
    assert (found.links, found.total) == (["1 → r", "2 → r"], 4)


def test_a_link_without_a_limit_is_never_busy():
    trace = Trace()
    trace.record("link", time=0.0, u="a", v="b", load=1e9, capacity=math.inf)
    trace.record("link", time=1.0, u="a", v="b", load=1e9, capacity=1e30)
    assert [load.utilisation for load in loads.loads(trace)] == [0.0, 0.0]


def test_a_run_without_loads_says_how_to_record_them():
    trace = Trace()
    trace.record("metric", time=1.0)
    with pytest.raises(ValueError, match="timeline=true"):
        heat.heat_map(trace)


def test_the_time_of_a_link_does_not_go_backwards():
    trace = Trace()
    for time in (2.0, 1.0):
        trace.record("link", time=time, u="a", v="b", load=1.0, capacity=1.0)
    with pytest.raises(ValueError, match="1 s after 2 s"):
        list(loads.loads(trace))


# -- pictures -------------------------------------------------------------------------------------


def test_a_chart_has_a_row_per_node_and_its_bars(two_rounds):
    fig = gantt.gantt(two_rounds)
    (ax,) = fig.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["node 0", "node 1", "node 2"]
    assert ax.get_xlabel() == "simulated time (s)"
    told = [text.get_text() for text in fig.legends[0].texts]
    assert told == ["compute", "collectives", "sends", "receives", "offline"]
    plt.close(fig)


def test_a_group_has_a_row_of_its_own():
    trace = Trace()
    trace.record("compute", start=0.0, end=9e4, node=-1, n=8, steps=1)
    fig = gantt.gantt(trace)
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["group"]
    assert fig.axes[0].get_xlabel() == "simulated time (h)"
    plt.close(fig)


def test_more_than_fits_a_page_is_refused(two_rounds, monkeypatch):
    monkeypatch.setattr(gantt, "MAX_BARS", 3)
    with pytest.raises(ValueError, match="choose fewer nodes"):
        gantt.gantt(two_rounds)


def test_a_chart_of_nothing_is_refused(two_rounds):
    with pytest.raises(ValueError, match="nothing to draw"):
        gantt.gantt(two_rounds, Window(nodes=(77,)))


def test_a_heat_map_says_what_it_leaves_out(two_rounds):
    two_rounds.record("link", time=15.0, u="1", v="2", load=9.0, capacity=10.0)
    fig = heat.heat_map(two_rounds, links=1)
    assert fig.axes[0].get_title() == "the 1 busiest of 2 links"
    assert fig.axes[1].get_ylabel() == "utilisation (%)"
    plt.close(fig)
