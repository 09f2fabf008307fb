"""Flows known beforehand: the times of the slow solver, and those of `Links`."""

from dataclasses import replace

import numpy as np
import pytest
from test_properties import by_links, by_oracle, crowd

from experiments.validate.columns import DATA
from sim.network.batch import finish_times

GOLDEN = DATA / "network"


def batch(scenario, approximate=0.0):
    flows = scenario.flows
    lengths = np.array([len(flow.links) for flow in flows])
    links = np.concatenate([flow.links for flow in flows])
    nbytes = np.array([flow.nbytes for flow in flows])
    begins = np.array([flow.start + flow.latency for flow in flows])
    return finish_times(scenario.capacity, lengths, links, nbytes, begins, approximate)


def in_order(finish):
    return np.array([finish[number] for number in sorted(finish)])


@pytest.mark.parametrize("seed", range(4))
def test_times_are_those_of_the_slow_solver(seed):
    scenario = crowd(seed, capacity_changes=0)
    expected = in_order(by_oracle(scenario)[0].finish)
    assert batch(scenario) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("approximate", [0.0, 2e-4])
def test_times_are_those_of_links(approximate):
    scenario = crowd(11, capacity_changes=0)
    flows = tuple(replace(flow, start=0.0) for flow in scenario.flows)
    scenario = replace(scenario, flows=flows)
    ours = in_order(by_links(scenario, approximate=approximate).finish)
    assert batch(scenario, approximate) == pytest.approx(ours, rel=1e-12)


def test_times_are_those_of_simgrid():
    data = np.load(GOLDEN / "random_routes_1k.npz")
    lengths = np.diff(data["route_ptr"]).astype(int)
    routes, nbytes = data["route_idx"].astype(int), data["flow_bytes"].astype(float)
    latency = np.add.reduceat(data["link_lat"][routes], data["route_ptr"][:-1])
    ours = finish_times(data["link_bw"], lengths, routes, nbytes, data["flow_start"] + latency)
    assert ours == pytest.approx(data["finish"], rel=1e-9)


def test_nothing_to_move_is_there_at_once_and_without_capacity_never():
    one = np.ones(2, int)
    ours = finish_times([0.0], one, 0 * one, np.array([0.0, 5.0]), np.array([2.0, 0.0]))
    assert ours.tolist() == [2.0, np.inf]


@pytest.mark.parametrize(
    ("lengths", "links", "nbytes", "message"),
    [
        ([1], [3], [1.0], "links 3 .. 3: expected numbers from 0 to 1"),
        ([1], [-1], [1.0], "links -1 .. -1"),
        ([2], [0], [1.0], "1 links: expected 2"),
        ([1], [0], [1.0, 2.0], "2 sizes: expected 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(lengths, links, nbytes, message):
    with pytest.raises(ValueError, match=message):
        finish_times([1.0, 1.0], np.array(lengths), np.array(links), np.array(nbytes))
