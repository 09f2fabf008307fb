"""Activities on raw links in time: SimGrid's finish times, and cases done by hand."""

import numpy as np
import pytest
import simpy

from experiments.validate.columns import DATA
from sim.network.fluid import Links

GOLDEN = DATA / "network"


class Replay:
    """One golden file on `Links`; `begin` and `finish` of each flow."""

    def __init__(self, name):
        self.data = np.load(GOLDEN / f"{name}.npz")
        self.env = simpy.Environment()
        self.links = Links(self.env, self.data["link_bw"])
        self.begin, self.finish = np.full((2, len(self.data["flow_bytes"])), np.nan)

    def issue(self, flow):
        start, stop = self.data["route_ptr"][flow : flow + 2]
        route = self.data["route_idx"][start:stop]
        self.begin[flow] = self.env.now
        nbytes, latency = self.data["flow_bytes"][flow], self.data["link_lat"][route].sum()
        self.links.activity(route, nbytes, latency, on_end=self.ended, tag=flow)

    def ended(self, activity, ok):
        if ok:
            self.finish[activity.tag] = self.env.now

    def at(self, time, act, *args):
        self.env.timeout(time).callbacks.append(lambda _: act(*args))

    def timed(self):
        columns = (self.data[f"ev_{name}"] for name in ("kind", "time", "link", "value"))
        for kind, time, link, value in zip(*columns):
            if kind == 0:
                self.at(time, self.links.set_capacity, link, value)
            else:
                self.at(time, self.links.down if kind == 1 else self.links.up, link)
        for flow, start in enumerate(self.data["flow_start"]):
            self.at(start, self.issue, flow)
        self.env.run()
        return self

    def dag(self):
        pointer, needs = self.data["dep_ptr"], self.data["dep_idx"]
        self.missing = np.diff(pointer)
        self.after = [[] for _ in self.missing]
        for flow in range(len(self.missing)):
            for needed in needs[pointer[flow] : pointer[flow + 1]]:
                self.after[needed].append(flow)
        self.ended = self.released
        for flow in np.flatnonzero(self.missing == 0):
            self.issue(flow)
        self.env.run()
        return self

    def released(self, activity, ok):
        self.finish[activity.tag] = self.env.now
        for flow in self.after[activity.tag]:
            self.missing[flow] -= 1
            if self.missing[flow] == 0:
                self.issue(flow)


@pytest.mark.parametrize(
    "name", ["access_100", "bwchange_600", "random_routes_1k", "poisson_regional_lat_2k"]
)
def test_finish_times_equal_those_of_simgrid(name):
    replay = Replay(name).timed()
    expected = replay.data["finish"] - replay.data["flow_start"]
    assert replay.finish - replay.data["flow_start"] == pytest.approx(expected, rel=1e-6)


def test_departures_fail_the_flows_that_fail_in_simgrid():
    replay = Replay("departures_600").timed()
    assert (np.isnan(replay.finish) == np.isnan(replay.data["finish"])).all()
    done = replay.data["status"] == 0
    expected = (replay.data["finish"] - replay.data["flow_start"])[done]
    assert (replay.finish - replay.data["flow_start"])[done] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["ring_16_het", "ps_40_het"])
def test_chains_of_flows_equal_those_of_simgrid(name):
    replay = Replay(name).dag()
    expected = replay.data["finish"] - replay.data["start"]
    assert replay.finish - replay.begin == pytest.approx(expected, rel=1e-6)


@pytest.fixture
def env():
    return simpy.Environment()


@pytest.fixture
def ends():
    return {}


def start(links, ends, name, *args, **kwargs):
    def ended(activity, ok):
        ends[name] = (links.env.now, ok)

    return links.activity(*args, on_end=ended, **kwargs)


def test_latency_uses_no_capacity(env, ends):
    links = Links(env, [10.0])
    start(links, ends, "late", [0], 10.0, latency=5.0)
    start(links, ends, "early", [0], 50.0)
    env.run()
    assert ends == {"early": (5.0, True), "late": (6.0, True)}


def test_without_links_only_the_latency_is_paid(env, ends):
    links = Links(env, [10.0])
    start(links, ends, "local", [], 1e9, latency=2.0)
    env.run()
    assert ends == {"local": (2.0, True)}


def test_a_higher_capacity_brings_the_end_forward(env, ends):
    links = Links(env, [1.0])
    start(links, ends, "flow", [0], 10.0)
    env.timeout(4.0).callbacks.append(lambda _: links.set_capacity(0, 3.0))
    env.run()
    assert ends == {"flow": (6.0, True)}


def test_at_capacity_zero_bytes_wait_until_it_rises(env, ends):
    links = Links(env, [0.0])
    start(links, ends, "flow", [0], 10.0)
    env.timeout(7.0).callbacks.append(lambda _: links.set_capacity(0, 10.0))
    env.run()
    assert ends == {"flow": (8.0, True)}


def test_an_outage_within_the_latency_harms_nobody(env, ends):
    links = Links(env, [10.0])
    start(links, ends, "flow", [0], 10.0, latency=5.0)
    env.timeout(1.0).callbacks.append(lambda _: links.down(0))
    env.timeout(4.0).callbacks.append(lambda _: links.up(0))
    env.run()
    assert ends == {"flow": (6.0, True)}


def test_what_begins_on_a_link_that_is_down_fails(env, ends):
    links = Links(env, [10.0])
    links.down(0)
    start(links, ends, "flow", [0], 10.0, latency=5.0)
    env.run()
    assert ends == {"flow": (5.0, False)}


def test_cancel_tells_the_bytes_moved_and_frees_the_link(env, ends):
    links = Links(env, [10.0])
    first = start(links, ends, "first", [0], 100.0)
    start(links, ends, "second", [0], 100.0)
    moved = []
    env.timeout(4.0).callbacks.append(lambda _: moved.append(links.cancel(first)))
    env.run()
    assert moved == [20.0]
    assert ends == {"second": (12.0, True)}


def test_all_that_happens_in_one_instant_is_solved_once(env, ends):
    links = Links(env, [10.0, 10.0])
    for flow in range(50):
        start(links, ends, flow, [flow % 2], 1.0)
    env.run()
    assert links.solves == 1  # the arrivals; at the end nobody is left to share
    assert {time for time, _ in ends.values()} == {2.5}


def test_what_a_process_starts_later_in_an_instant_is_solved_with_the_rest(env, ends):
    links = Links(env, [10.0])
    start(links, ends, "first", [0], 10.0)

    def later():
        yield env.timeout(0.0)
        yield env.timeout(0.0)
        start(links, ends, "second", [0], 10.0)

    env.process(later())
    env.run(until=1.0)
    assert links.solves == 1


def test_bytes_in_motion_are_counted_up_to_now(env, ends):
    links = Links(env, [10.0])
    flow = start(links, ends, "flow", [0], 100.0, latency=1.0)
    env.run(until=4.0)
    assert links.moved(flow) == pytest.approx(30.0)


def test_of_two_that_end_together_the_first_may_cancel_the_second(env):
    links, told, moved = Links(env, [10.0, 10.0]), [], []

    def cancel_the_other(activity, ok):
        told.append(activity.tag)
        other = second if activity is first else first
        moved.append(links.cancel(other))
        links.activity([0], 10.0, on_end=lambda a, ok: told.append((env.now, a.tag)), tag="new")

    first = links.activity([0], 50.0, on_end=cancel_the_other, tag="first")
    second = links.activity([1], 50.0, on_end=cancel_the_other, tag="second")
    env.run()
    assert len(told) == 2
    assert told[1] == (6.0, "new")
    assert moved == [50.0]


def test_more_flows_than_an_instant_holds_at_once_share_alike(env):
    class Plain:
        row = -1

        def conclude(self, moved, ok):
            ends.append((env.now, moved, ok))

    ends, links = [], Links(env, [5000.0, 5000.0])
    links.core = np.array([1])
    for _ in range(5000):
        links.flow(Plain(), (0, 0, 1, -1), 3.0, 0.0, np.inf, 1.0)
    env.run()
    assert ends == [(3.0, 3.0, True)] * 5000


def test_shares_are_proportional_to_weights(env, ends):
    links = Links(env, [30.0])
    start(links, ends, "light", [0], 100.0)
    start(links, ends, "heavy", [0], 100.0, weight=2.0)
    env.run()
    assert ends == {"heavy": (5.0, True), "light": (pytest.approx(20 / 3), True)}


def test_an_extended_activity_moves_the_rest_too(env, ends):
    links = Links(env, [10.0])
    flow = start(links, ends, "flow", [0], 100.0)
    env.timeout(4.0).callbacks.append(lambda _: links.extend(flow, 50.0))
    env.run()
    assert ends == {"flow": (15.0, True)}


def test_who_follows_waits_for_its_leader_and_is_free_once_that_has_ended(env, ends):
    links = Links(env, [2.0, 10.0])
    leader = start(links, ends, "leader", [0], 20.0)
    follower = start(links, ends, "follower", [1], 40.0)
    links.follow(follower, leader, 5.0)
    env.run(until=5.0)
    assert links.moved(follower) == pytest.approx(15.0)
    assert links.rate(follower) == pytest.approx(2.0)
    env.run()
    assert ends == {"leader": (10.0, True), "follower": (pytest.approx(11.5), True)}


def test_loads_are_told_at_each_change(env, ends):
    links, told = Links(env, [10.0, 20.0]), []
    links.on_load = lambda which, loads: told.append(
        (env.now, dict(zip(which.tolist(), loads.tolist())))
    )
    start(links, ends, "short", [0], 10.0)
    start(links, ends, "long", [0, 1], 30.0)
    env.run()
    assert told == [(0.0, {0: 10.0, 1: 5.0}), (2.0, {1: 10.0}), (4.0, {0: 0.0, 1: 0.0})]


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_a_wrong_tolerance_is_named(env, value):
    with pytest.raises(ValueError, match=r"approximate=.*try 2e-4"):
        Links(env, [10.0], approximate=value)
