"""Bandwidth and outages over time: closed forms of a transfer, and files that are wrong."""

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import simpy
from hypothesis import assume, given
from hypothesis import strategies as st

from sim.network.traces import AccessTrace, LinkTrace, PacketTrace, packets_to_bandwidth
from sim.network.transfer import TransferLost
from sim.network.transport import Transport


def attached(graph):
    network = Transport(graph)
    network.attach(simpy.Environment())
    return network


def two_hosts():
    """On one undirected link of 100 bytes/s, without latency."""
    graph = nx.Graph()
    graph.add_nodes_from([0, 1], kind="host")
    graph.add_edge(0, 1, bandwidth=100.0, latency=0.0)
    return graph


@pytest.fixture
def pair():
    return attached(two_hosts())


@pytest.fixture
def lines():
    """Three hosts around router 3: up 10, 20, 30 bytes/s, and from it down 100 each."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(3), kind="host")
    graph.add_node(3, kind="router")
    for host in range(3):
        graph.add_edge(host, 3, bandwidth=10.0 * (host + 1), latency=0.0)
        graph.add_edge(3, host, bandwidth=100.0, latency=0.0)
    return attached(graph)


def on_pair(**columns):
    n = len(columns["time"])
    return pd.DataFrame({"u": [0] * n, "v": [1] * n} | columns)


def duration(network, nbytes, src=0, dst=1):
    begun = network.env.now
    network.env.run(network.transfer(src, dst, nbytes))
    return network.env.now - begun


def ended_at(network, nbytes, wait=0.0):
    """When a transfer that is started after `wait` ends; None if it is lost."""
    network.env.run(network.env.timeout(wait))
    try:
        network.env.run(network.transfer(0, 1, nbytes))
    except TransferLost:
        return None
    return network.env.now


def test_before_the_first_row_a_link_is_what_the_topology_says(pair):
    LinkTrace(on_pair(time=[5.0], bandwidth=[10.0])).start(pair)
    assert ended_at(pair, 400) == pytest.approx(4.0)


def test_bytes_are_the_area_under_the_bandwidth(pair):
    LinkTrace(on_pair(time=[1.0, 3.0, 4.0], bandwidth=[50.0, 0.0, 25.0])).start(pair)
    # 100 in [0, 1], 50 a second in [1, 3], nothing in [3, 4], then 25 a second
    assert ended_at(pair, 100 + 100 + 0 + 75) == pytest.approx(7.0)


@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 300)), min_size=1, max_size=8),
    nbytes=st.integers(1, 3000),
    gap=st.integers(1, 5),
)
def test_any_periodic_trace_moves_the_area_under_it(steps, nbytes, gap):
    times = np.cumsum([wait for wait, _ in steps])
    rates, period = [float(rate) for _, rate in steps], int(times[-1]) + gap
    held = [rate for begin, end, rate in zip(times, [*times[1:], period], rates) if end > begin]
    assume(sum(held) > 0)
    network = attached(two_hosts())
    LinkTrace(on_pair(time=times, bandwidth=rates), period=period).start(network)
    rate, left, second = 100.0, float(nbytes), 0
    while True:  # whole seconds, as all times are
        for time, new in zip(times.tolist(), rates):
            rate = new if second % period == time else rate
        if rate >= left:
            break
        left, second = left - rate, second + 1
    assert ended_at(network, nbytes) == pytest.approx(second + left / rate)


def test_a_row_at_time_0_holds_from_the_start(pair):
    LinkTrace(on_pair(time=[0], bandwidth=[20])).start(pair)
    assert ended_at(pair, 100) == pytest.approx(5.0)


def test_after_the_last_row_its_bandwidth_stays(pair):
    LinkTrace(on_pair(time=[0.5], bandwidth=[10.0])).start(pair)
    assert ended_at(pair, 100, wait=1000.0) == pytest.approx(1010.0)


def test_of_rows_at_the_same_time_the_last_one_counts(pair):
    LinkTrace(on_pair(time=[1.0, 1.0], bandwidth=[1.0, 50.0])).start(pair)
    assert ended_at(pair, 200) == pytest.approx(3.0)


def test_times_count_from_the_start_of_the_trace(pair):
    pair.env.run(10.0)
    LinkTrace(on_pair(time=[1.0], bandwidth=[50.0])).start(pair)
    assert ended_at(pair, 200) == pytest.approx(13.0)


def test_a_period_repeats_the_table(pair):
    trace = on_pair(time=[0.0, 1.0], bandwidth=[100.0, 0.0])
    LinkTrace(trace, period="4s").start(pair)
    assert ended_at(pair, 1000) == pytest.approx(9 * 4 + 1)  # 100 bytes in each period


def test_until_the_first_row_of_a_later_period_the_last_row_holds(pair):
    trace = on_pair(time=[1.0, 2.0], bandwidth=[10.0, 50.0])
    LinkTrace(trace, period=3.0).start(pair)
    # [0, 1] 100, [1, 2] 10, [2, 4] 50 a second (into the second period), [4, 5] 10, ...
    assert ended_at(pair, 100 + 10 + 100 + 10 + 25) == pytest.approx(5.5)


def test_periods_do_not_drift(pair):
    LinkTrace(on_pair(time=[0.0, 0.05], bandwidth=[0.0, 100.0]), period=0.1).start(pair)
    assert ended_at(pair, 5.0 * 10_000) == pytest.approx(1000.0, rel=1e-12)


def test_an_outage_loses_what_crosses_the_link(pair):
    LinkTrace(on_pair(time=[2.0, 3.0], bandwidth=[None, None], up=[0, 1])).start(pair)
    assert ended_at(pair, 250) is None
    assert pair.totals().wasted[0] == pytest.approx(200.0)
    assert ended_at(pair, 100) is None  # still down
    assert ended_at(pair, 100, wait=1.0) == pytest.approx(4.0)


def test_an_outage_leaves_the_bandwidth_that_a_row_gives_meanwhile(pair):
    table = on_pair(time=[0.0, 1.0, 2.0], bandwidth=[None, 50, None], up=[0, None, 1])
    LinkTrace(table).start(pair)
    assert ended_at(pair, 100, wait=2.5) == pytest.approx(4.5)


def test_a_link_that_is_up_is_not_repaired_again(pair):
    repaired = pair.repaired
    LinkTrace(on_pair(time=[1.0], bandwidth=[None], up=[1])).start(pair)
    pair.env.run()
    assert not repaired.triggered


def test_a_directed_link_changes_in_its_direction_only(lines):
    table = pd.DataFrame({"time": [0], "u": [3], "v": [1], "bandwidth": [5.0]})
    LinkTrace(table).start(lines)
    assert duration(lines, 100, 0, 1) == pytest.approx(20.0)
    assert duration(lines, 100, 1, 0) == pytest.approx(5.0)


def test_units_are_read_in_cells_and_as_defaults(pair, tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("# ours\ntime,u,v,bandwidth\n1000,0,1,0.4\n\n3s,0,1,8kbps\n")
    LinkTrace(path, time_unit="ms", bandwidth_unit="kbps").start(pair)
    assert ended_at(pair, 100 + 100 + 1000) == pytest.approx(4.0)


def test_a_table_may_be_a_mapping_of_columns(pair):
    columns = {"time": [0, "3s"], "u": [0, 0], "v": [1, 1], "bandwidth": [50.0, "800bps"]}
    LinkTrace(columns).start(pair)
    assert ended_at(pair, 250) == pytest.approx(4.0)


def test_factors_scale_what_each_link_has(lines):
    table = pd.DataFrame({"time": [0.0, 10.0], "factor": [0.5, 2.0]})
    AccessTrace(table, direction="up").start(lines)
    lines.env.run(1.0)
    assert lines.links.capacity[lines.routes.access_up].tolist() == [5, 10, 15]
    assert lines.links.capacity[lines.routes.access_down].tolist() == [100] * 3
    lines.env.run(11.0)
    assert lines.links.capacity[lines.routes.access_up].tolist() == [20, 40, 60]


def test_factors_may_be_of_some_hosts_in_both_directions(lines):
    AccessTrace(pd.DataFrame({"time": [0.0], "factor": [0.1]}), hosts=[1]).start(lines)
    lines.env.run()
    assert lines.links.capacity[lines.routes.access_up].tolist() == [10, 2, 30]
    assert lines.links.capacity[lines.routes.access_down].tolist() == [100, 10, 100]


def test_factor_0_stops_a_link_without_limit_and_1_gives_it_back():
    graph = nx.Graph([(0, 1, {"bandwidth": "inf", "latency": 0.0})])
    nx.set_node_attributes(graph, "host", "kind")
    network = attached(graph)
    AccessTrace(pd.DataFrame({"time": [0, 7], "factor": [0, 1]})).start(network)
    assert ended_at(network, 1e6) == pytest.approx(7.0)


def test_hosts_may_lose_their_lines(lines):
    table = pd.DataFrame({"time": [1.0, 2.0], "factor": [1.0, 1.0], "up": [0, 1]})
    AccessTrace(table, hosts=[0]).start(lines)
    lines.env.run(1.5)
    assert lines.routes.up[lines.routes.access_up].tolist() == [False, True, True]
    assert duration(lines, 100, 1, 2) == pytest.approx(5.0)
    assert lines.routes.up.all()


def test_a_packet_trace_carries_1500_bytes_a_line(lines, tmp_path):
    path = tmp_path / "12mbps.trace"
    path.write_text("".join(f"{ms}\n" for ms in range(1, 2001)))  # one packet a millisecond
    PacketTrace(path, [2], "up").start(lines)
    lines.env.run(0.5)
    assert lines.links.capacity[lines.routes.access_up].tolist() == [10, 20, 1.5e6]


def test_a_packet_trace_repeats_with_its_last_time(pair, tmp_path):
    path = tmp_path / "trace"
    path.write_text("500\n1000\n4000\n")  # 2 packets in the first second, one in the fourth
    PacketTrace(path, interval="1s").start(pair)
    assert ended_at(pair, 3 * 4500 + 1500) == pytest.approx(3 * 4 + 0.5)


@pytest.mark.parametrize("interval", ["1ms", "70ms", "1s", "1h"])
def test_every_interval_conserves_the_packets(interval):
    times = np.sort(np.random.default_rng(0).integers(0, 10_000, 3000)) * 1e-3
    begins, bandwidth, period = packets_to_bandwidth(times, interval)
    assert period == times[-1]
    assert bandwidth @ np.diff(begins, append=period) == pytest.approx(3000 * 1500)


def test_packets_are_counted_in_the_interval_that_ends_with_them():
    times = np.repeat([0.1, 0.2, 0.3], [1, 2, 3])
    assert packets_to_bandwidth(times, 0.1)[1].tolist() == pytest.approx([15e3, 30e3, 45e3])


BAD = [
    ("time,u,v,bandwidth\n2,0,1,5\n1,0,1,5\n", "line 3: time=1 s; expected .* last \\(2 s\\)"),
    ("time,u,v,bandwidth\n-1,0,1,5\n", "line 2, time"),
    ("time,u,v,bandwidth\ninf,0,1,5\n", "line 2: time=inf"),
    ("time,u,v,bandwidth\nnan,0,1,5\n", "line 2, time='nans'"),
    ("time,u,v,bandwidth\n1,0,1,-5\n", "line 2, bandwidth=-5: must be >= 0"),
    ("time,u,v,bandwidth\n1,0,1,nan\n", "line 2, bandwidth='nanBps'"),
    ("time,u,v,bandwidth\n1,0,1,5 Mb\n", "line 2, bandwidth='5 Mb': unknown unit 'Mb'; did you"),
    ("time,u,v,bandwidth\n1,0,1,\n", "line 2: bandwidth is empty"),
    ("time,u,v,bandwidth\n\n1,0,2,5\n", "line 3: no link from 0 to 2"),
    ("time,u,v,bandwidth\n1,0,x,5\n", "line 2: no link from 0 to 'x'"),
    ("time,u,v,bandwidth\n1,0,1\n", "line 2: 3 cells for 4 columns"),
    ("time,u,v,bandwidth,up\n1,0,1,5,2\n", "line 2: up='2'; expected 1, 0"),
    ("time,u,v,rate\n1,0,1,5\n", "columns time,u,v,rate; expected time,u,v,bandwidth"),
    ("time,u,v,bandwidth\n", "no rows after the header"),
    ("", "expected time,u,v,bandwidth"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_a_wrong_row_is_named_before_the_run(pair, tmp_path, text, message):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        LinkTrace(path).start(pair)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"time": [1.0, 0.5], "bandwidth": [1.0, 1.0]}, "row 1: time=0.5 s"),
        ({"time": [1.0], "bandwidth": [float("nan")]}, "row 0: bandwidth is empty or not a number"),
        ({"time": [1.0], "bandwidth": [True]}, "row 0, bandwidth=True"),
        ({"time": [None], "bandwidth": [5.0]}, "row 0, time=None"),
        ({"time": [1.0], "bandwidth": [5.0], "up": [0.5]}, "row 0: up=0.5"),
    ],
)
def test_a_wrong_row_of_a_data_frame_is_named(pair, columns, message):
    with pytest.raises(ValueError, match=message):
        LinkTrace(on_pair(**columns)).start(pair)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: AccessTrace(t(time=[0], factor=[-1])), "row 0: factor=-1; expected a finite"),
        (lambda t: AccessTrace(t(time=[0], factor=["2x"])), "row 0: factor='2x'"),
        (lambda t: AccessTrace(t(time=[0], factor=[1], bandwidth=[1])), "factor or bandwidth"),
        (lambda t: AccessTrace(t(time=[0], factor=[1]), hosts=[2]), r"hosts: 2; expected 0 \.\. 1"),
        (lambda t: AccessTrace(t(time=[0], factor=[1]), direction="up"), "topology is undirected"),
        (lambda t: AccessTrace(t(time=[0], factor=[1]), direction="in"), "did you mean"),
        (lambda t: AccessTrace(t(time=[0, 5], factor=[1, 2]), period=5), "more than the last time"),
        (lambda t: AccessTrace(t(time=[0], factor=[1]), period="inf"), "period='inf'"),
        (lambda t: AccessTrace(t(time=[0], factor=[1]), period=0), "period=0: must be > 0"),
    ],
)
def test_a_wrong_argument_is_named(pair, make, message):
    with pytest.raises(ValueError, match=message):
        make(lambda **columns: pd.DataFrame(columns)).start(pair)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5\n4\n", "line 2: '4'; expected a whole number of milliseconds >= 5"),
        ("1.5\n", "line 1: '1.5'"),
        ("-1\n", "line 1: '-1'"),
        ("", "0 packets, none after 0 ms"),
        ("0\n0\n", "2 packets, none after 0 ms"),
    ],
)
def test_a_wrong_packet_trace_is_refused_with_its_line(pair, tmp_path, text, message):
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        PacketTrace(path).start(pair)


def test_a_large_file_is_refused(pair, tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("time,u,v,bandwidth\n" + "1,0,1,5\n" * 100)
    with pytest.raises(ValueError, match="at most max_bytes=100"):
        LinkTrace(path, max_bytes="100B").start(pair)
