"""The slow solver that the property tests trust, against SimGrid's finish times and by hand."""

import numpy as np
import pytest
from oracle import Oracle

from experiments.validate.columns import DATA

GOLDEN = DATA / "network"


def replay(name, flows=None):
    """Start and finish of the first flows of a golden file."""
    data = np.load(GOLDEN / f"{name}.npz")
    n = len(data["flow_bytes"]) if flows is None else flows
    oracle, begin, finish = Oracle(data["link_bw"]), *np.full((2, n), np.nan)
    after = {flow: [] for flow in range(n)}
    missing = np.zeros(n)

    def issue(flow):
        route = data["route_idx"][data["route_ptr"][flow] : data["route_ptr"][flow + 1]]
        begin[flow] = oracle.now
        latency = data["link_lat"][route].sum()
        oracle.activity(route, data["flow_bytes"][flow], latency, on_end=ended, tag=flow)

    def ended(row, ok):
        finish[row.tag] = oracle.now if ok else np.nan
        for flow in after[row.tag]:
            missing[flow] -= 1
            if missing[flow] == 0:
                issue(flow)

    if "dep_ptr" in data:
        missing += np.diff(data["dep_ptr"])
        for flow in range(n):
            for needed in data["dep_idx"][data["dep_ptr"][flow] : data["dep_ptr"][flow + 1]]:
                after[needed].append(flow)
    else:
        for kind, time, link, value in zip(*(data[f"ev_{k}"] for k in EVENT)):
            act = (oracle.set_capacity, oracle.down, oracle.up)[kind]
            oracle.at(time, act, *((link, value) if kind == 0 else (link,)))
    for flow in np.flatnonzero(missing == 0):
        oracle.at(data["flow_start"][flow] if "flow_start" in data else 0.0, issue, flow)
    oracle.run()
    return data, begin, finish


EVENT = ("kind", "time", "link", "value")


@pytest.mark.parametrize("name", ["access_100", "ps_40_het", "ring_16_het"])
def test_finish_times_equal_those_of_simgrid(name):
    data, begin, finish = replay(name)
    expected = data["finish"] - data["start" if "start" in data else "flow_start"]
    assert finish - begin == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["departures_600", "bwchange_600"])
def test_changes_end_and_fail_flows_as_in_simgrid(name):
    data, begin, finish = replay(name)
    expected = data["finish"] - data["flow_start"]
    assert finish - begin == pytest.approx(expected, rel=1e-9, nan_ok=True)
