"""Churn: availability, laws of sessions, independence of the fleet's size, traces."""

import math

import numpy as np
import pytest
from scipy import stats

from sim.churn import AlwaysOn, Exponential, LogNormal, TraceChurn, Weibull
from sim.streams import Streams

HOUR = 3600.0
MODELS = {
    "exponential": Exponential(up="3h", down="1h"),
    "weibull": Weibull(0.55, "35.3h", 0.60, "9.34h"),
    "log-normal": LogNormal("0.796h", 1.465, "0.671h", 1.281),
}


def _sessions(churn, n, horizon, seed=0):
    return churn.sessions(n, horizon, Streams(seed).rng("churn"))


def _online(table, time):
    return int(((table["start"] <= time) & (table["end"] > time)).sum())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("time", [0.0, 1.0, 40.0])
def test_availability_is_stationary_from_the_start(name, time):
    churn, n = MODELS[name], 4000
    share = _online(_sessions(churn, n, 50 * HOUR), time * HOUR) / n
    error = math.sqrt(churn.availability * (1 - churn.availability) / n)
    assert share == pytest.approx(churn.availability, abs=4 * error)


@pytest.mark.parametrize("name", MODELS)
def test_sessions_of_a_node_are_ordered_and_apart(name):
    table = _sessions(MODELS[name], 50, 200 * HOUR)
    assert table["start"].is_monotonic_increasing
    assert (table["start"] < table["end"]).all()
    assert table["start"].max() < 200 * HOUR
    for _, own in table.groupby("node"):
        assert (own["start"].to_numpy()[1:] > own["end"].to_numpy()[:-1]).all()


@pytest.mark.parametrize(
    ("churn", "law"),
    [
        (Exponential("3h", "1h", 1.0), stats.expon(scale=3 * HOUR)),
        (Weibull(0.5, "2h", 1, "1h", 1.0), stats.weibull_min(0.5, scale=2 * HOUR)),
        (LogNormal("2h", 1.2, "1h", 1, 1.0), stats.lognorm(1.2, scale=2 * HOUR)),
    ],
)
def test_fresh_sessions_follow_their_law(churn, law):
    first = _sessions(churn, 2000, 1.0).groupby("node").first()
    assert stats.kstest(first["end"], law.cdf).pvalue > 0.001


@pytest.mark.parametrize("up", [0.5, 1.5])
def test_the_rest_of_a_session_follows_the_renewal_theorem(up):
    """Its density is P(length > t) / mean: integrated here, sampled there by length bias."""
    law = stats.weibull_min(up, scale=HOUR)
    grid = np.linspace(0, 200, 400_001)[1:] ** 2 / 200 * HOUR  # finer where most of the mass is
    survival = np.concatenate([[1.0], law.sf(grid)])
    pieces = np.diff(grid, prepend=0) * (survival[1:] + survival[:-1]) / 2
    table = _sessions(Weibull(up, "1h", 1, "1h"), 4000, 1.0)
    rest = table[table["start"] == 0]["end"]
    cdf = lambda time: np.interp(time, grid, np.cumsum(pieces) / law.mean())  # noqa: E731
    assert stats.kstest(rest, cdf).pvalue > 0.001


def test_the_rest_of_a_log_normal_session_has_the_renewal_mean():
    churn, sigma = LogNormal("1h", 0.5, "1h", 0.5), 0.5
    table = _sessions(churn, 8000, 1.0)
    rest = table[table["start"] == 0]["end"]
    expected = HOUR * math.exp(3 * sigma**2 / 2) / 2  # E[X^2] / (2 E[X])
    assert rest.mean() == pytest.approx(expected, abs=4 * rest.std() / math.sqrt(len(rest)))


@pytest.mark.parametrize("name", MODELS)
def test_sessions_of_a_node_do_not_depend_on_the_number_of_nodes(name):
    few, many = (_sessions(MODELS[name], n, 100 * HOUR) for n in (3, 30))
    assert few.equals(many[many["node"] < 3].reset_index(drop=True))


def test_the_same_seed_gives_the_same_sessions_and_another_seed_others():
    churn = MODELS["weibull"]
    one, same, other = (_sessions(churn, 5, 1e6, seed) for seed in (0, 0, 1))
    assert one.equals(same)
    assert not one.equals(other)


def test_all_nodes_may_arrive_together():
    table = _sessions(Exponential("1h", "1h", initial_online=1.0), 20, 1.0)
    assert table["start"].tolist() == [0.0] * 20


def test_all_nodes_may_start_offline():
    table = _sessions(Exponential("1h", "1h", initial_online=0.0), 20, 100 * HOUR)
    assert table["start"].min() > 0


def test_nobody_leaves_an_always_on_fleet():
    table = _sessions(AlwaysOn(), 3, 1e9)
    assert table.to_numpy().tolist() == [[i, 0.0, math.inf] for i in range(3)]


def test_the_fit_of_spot_capacity_has_the_measured_availability():
    """0.644 over 9,827 zone-hours; the fit was made to the lengths, not to the share."""
    assert MODELS["log-normal"].availability == pytest.approx(0.644, abs=0.04)


def test_a_slip_of_units_is_refused():
    with pytest.raises(ValueError, match="choose a shorter horizon or longer sessions"):
        _sessions(Exponential(up="1ms", down="1ms"), 100, 30 * 24 * HOUR)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Exponential(0, 1), "up=0"),
        (lambda: Exponential("2 parsecs", 1), "unknown unit"),
        (lambda: Exponential("inf", 1), "use AlwaysOn"),
        (lambda: Exponential(1, 1, initial_online=2), "initial_online=2"),
        (lambda: Weibull(0, 1, 1, 1), "shape=0"),
        (lambda: LogNormal(1, -1, 1, 1), "sigma=-1"),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def _trace(tmp_path, text, **options):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return TraceChurn(str(path), **options)


def test_a_trace_is_read_sorted_and_cut_at_the_horizon(tmp_path):
    trace = _trace(tmp_path, "node,start,end,zone\n1,5,9,a\n0,0,,b\n1,1,5,a\n")
    table = _sessions(trace, 2, 5.0)
    assert table.to_numpy().tolist() == [[0, 0, math.inf], [1, 1, 5]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node,start\n0,1\n", r"lacks the columns \['end'\]"),
        ("", "lacks the columns"),
        ("node,start,end\n0,0,1\nzero,0,1\n", "line 3: invalid literal"),
        ("node,start,end\n0\n", "line 2: could not convert"),
        ("node,start,end\n-1,0,1\n", "line 2: node=-1"),
        ("node,start,end\n0,nan,1\n", "line 2: start=nan"),
        ("node,start,end\n0,2,1\n", "line 2: end=1: must exceed start=2"),
        ("node,start,end\n0,2,nan\n", "line 2: end=nan"),
        ("node,start,end\n7,0,1\n", "line 2: node=7: this run has nodes 0..3"),
        ("node,start,end\n0,4,6\n0,0,5\n", "line 2: start=4: node 0 is busy until 5"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        _sessions(_trace(tmp_path, text), 4, 10.0)


def test_a_trace_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "trace.csv").write_bytes(b"node,start,end\n\xff\xfe\x00,0,1\n")
    with pytest.raises(ValueError, match="line 2"):
        _sessions(TraceChurn(str(tmp_path / "trace.csv")), 4, 10.0)


def test_a_large_trace_is_refused(tmp_path):
    trace = _trace(tmp_path, "node,start,end\n" + "0,0,1\n" * 100, max_bytes="100B")
    with pytest.raises(ValueError, match="max_bytes=100"):
        _sessions(trace, 4, 10.0)
