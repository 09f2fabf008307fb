"""Random platforms, traffic and changes: `Links` against the slow solver of `oracle.py`."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pytest
import simpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from oracle import Oracle

from sim.network.fluid import Links

EVERYTHING_BY = 1e5
"""Seconds; a flow that has not ended by then waits for ever, or as good as."""


def search(examples):
    """The same examples in every run, however slow the machine."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=slow
    )


@dataclass(frozen=True)
class Flow:
    """`leader` is the number of a flow that starts no later, or with it, with the same weight.

    Nobody leads two others.
    """

    start: float
    links: tuple[int, ...]
    loads: tuple[float, ...]
    nbytes: float
    latency: float
    cap: float
    weight: float
    leader: int | None = None
    slack: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """Capacities, flows in order of their start, and (time, what, flow or link, value)."""

    capacity: tuple[float, ...]
    flows: tuple[Flow, ...]
    acts: tuple[tuple[float, str, int, float], ...] = ()


CAPACITY = st.sampled_from([1.0, 2.0, 5.0, 20.0]) | st.floats(0.5, 50.0)
NBYTES = st.sampled_from([1.0, 10.0, 60.0]) | st.floats(0.01, 300.0)
CAP = st.just(np.inf) | st.floats(0.05, 8.0)
WEIGHT = st.sampled_from([1.0, 1.0, 2.0, 0.25]) | st.floats(0.01, 10.0)
SLACK = st.sampled_from([0.0, 5.0]) | st.floats(0.1, 100.0)
WHAT = ("capacity", "stop", "down", "cancel", "extend")


@st.composite
def scenarios(draw, loads=True, weights=False, followers=False, what=(), max_flows=14):
    n_links = draw(st.integers(1, 6))
    capacity = tuple(draw(CAPACITY) for _ in range(n_links))
    n_flows = draw(st.integers(1, max_flows))
    starts = sorted(draw(st.integers(0, 12)) for _ in range(n_flows))
    flows = []
    for start in starts:
        links = draw(st.lists(st.integers(0, n_links - 1), min_size=1, max_size=4, unique=True))
        flow = Flow(
            start=start / 2,
            links=tuple(links),
            loads=tuple(float(draw(st.integers(1, 3))) if loads else 1.0 for _ in links),
            nbytes=draw(NBYTES),
            latency=draw(st.just(0.0) | st.floats(0.001, 3.0)),
            cap=draw(CAP),
            weight=draw(WEIGHT) if weights else 1.0,
        )
        flows.append(flow)
    flows = _led(flows, draw) if followers else flows
    n_acts = draw(st.integers(0, 8)) if what else 0
    acts = [act for i in range(n_acts) for act in draw(changes(i, n_links, len(flows), what))]
    return Scenario(capacity, tuple(flows), tuple(sorted(acts)))


def _led(flows, draw):
    """Some of the flows follow another one; chains of any length, and circles, come up."""
    free, led = set(range(len(flows))), []
    for number, flow in enumerate(flows):
        may = sorted(i for i in free - {number} if flows[i].start <= flow.start)
        leader = draw(st.none() | st.sampled_from(may)) if may else None
        free.discard(leader)
        led.append(replace(flow, leader=leader, slack=draw(SLACK)))
    return led


@st.composite
def changes(draw, i, n_links, n_flows, what):
    """A change, and what ends it. Its time is odd, so that it never meets the end of a flow."""
    kind = draw(st.sampled_from(what))
    time = draw(st.integers(0, 40)) / 2 + 0.0123456789 + i * 0.0271828182846
    link, flow = draw(st.integers(0, n_links - 1)), draw(st.integers(0, n_flows - 1))
    later = time + draw(st.integers(1, 10)) + 0.00314159
    if kind == "capacity":
        return [(time, "capacity", link, draw(CAPACITY))]
    if kind == "stop":
        return [(time, "capacity", link, 0.0), (later, "capacity", link, draw(CAPACITY))]
    if kind == "down":
        return [(time, "down", link, 0.0), (later, "up", link, 0.0)]
    return [(time, kind, flow, draw(NBYTES) if kind == "extend" else 0.0)]


def crowd(seed, flows=150, capacity_changes=60):
    """Many flows at once on a few shared links and many private ones; some start together."""
    rng = np.random.default_rng(seed)
    hosts, shared = 12, 3
    capacity = [*rng.choice([1.0, 2.0, 10.0], 2 * hosts), *rng.uniform(1.0, 20.0, shared)]
    made = []
    for start in np.sort(rng.integers(0, 8, flows)):
        src, dst = rng.choice(hosts, 2, replace=False)
        links = [src, *(2 * hosts + np.flatnonzero(rng.random(shared) < 0.4)), hosts + dst]
        latency, nbytes = rng.choice([0.0, 0.5]), 10 ** rng.uniform(0.0, 2.0)
        flow = (float(start), tuple(map(int, links)), (1.0,) * len(links), nbytes, latency)
        made.append(Flow(*flow, cap=np.inf, weight=1.0))
    times = np.sort(rng.uniform(0.0, 60.0, capacity_changes))
    links = rng.integers(0, len(capacity), capacity_changes)
    values = rng.uniform(0.2, 20.0, capacity_changes)
    acts = [(t, "capacity", int(i), v) for t, i, v in zip(times, links, values)]
    return Scenario(tuple(capacity), tuple(made), tuple(acts))


@dataclass
class Played:
    """What became of each flow, by its number."""

    rows: dict = field(default_factory=dict)
    finish: dict = field(default_factory=dict)
    failed: dict = field(default_factory=dict)
    cancelled: dict = field(default_factory=dict)
    moved: dict = field(default_factory=dict)
    following: set = field(default_factory=set)

    @property
    def over(self):
        return {*self.finish, *self.failed, *self.cancelled}


class Plain:
    """A flow that is started the cheap way."""

    def __init__(self, links, number, flow, ended):
        self.row, self.moved, self.tag, self.ended = -1, None, number, ended
        first = len(links.core)
        links.core = np.append(links.core, flow.links)
        route = (-1, first, len(flow.links), -1)
        links.flow(self, route, flow.nbytes, flow.latency, flow.cap, flow.weight)

    def conclude(self, moved, ok):
        self.row, self.moved = -1, moved
        self.ended(self, ok)


def activity(links, number, flow, ended):
    where = np.array(flow.links), flow.nbytes, flow.latency, np.array(flow.loads)
    return links.activity(*where, flow.cap, ended, number, flow.weight)


def play(scenario, links, at, now, start=activity):
    """Set a scenario up on an engine: `Links`, or the oracle."""
    played = Played()

    def ended(row, ok):
        (played.finish if ok else played.failed)[row.tag] = now()

    def begin(number):
        played.rows[number] = start(links, number, scenario.flows[number], ended)
        for one, other in enumerate(scenario.flows):  # it follows one, and leads one
            pair = {one, other.leader}
            if number in pair and pair <= played.rows.keys() - played.over:
                links.follow(played.rows[one], played.rows[other.leader], other.slack)
                played.following.add(one)

    def act(what, target, value):
        if what == "capacity":
            links.set_capacity(target, value)
        elif what in ("down", "up"):
            (links.down if what == "down" else links.up)(target)
        elif target in played.rows and target not in played.over:
            if what == "extend":
                links.extend(played.rows[target], value)
            else:
                played.cancelled[target] = links.cancel(played.rows[target])

    for number, flow in enumerate(scenario.flows):
        at(flow.start, begin, number)
    for time, *change in scenario.acts:
        at(time, act, *change)
    return played


def by_oracle(scenario):
    oracle = Oracle(scenario.capacity)
    played = play(scenario, oracle, oracle.at, lambda: oracle.now)
    oracle.run(EVERYTHING_BY)
    played.moved = {number: oracle.moved(row) for number, row in played.rows.items()}
    return played, oracle.instants


def by_links(scenario, probes=(), start=activity, **options):
    """Play on `Links`; `probe(links, played)` is called at its time, for each of `probes`."""
    env = simpy.Environment()
    links = Links(env, scenario.capacity, **options)

    def at(time, act, *args):
        env.timeout(time - env.now).callbacks.append(lambda _: act(*args))

    played = play(scenario, links, at, lambda: env.now, start)
    for time, probe in probes:
        at(time, probe, links, played)
    env.run(EVERYTHING_BY)
    played.moved = {
        number: row.moved if number in played.over else links.moved(row)
        for number, row in played.rows.items()
    }
    return played


def check_same(scenario, ours, oracle, rel=1e-6):
    assert ours.finish.keys() == oracle.finish.keys()
    for number, finish in oracle.finish.items():
        start = scenario.flows[number].start
        assert ours.finish[number] - start == pytest.approx(finish - start, rel=rel, abs=1e-9)
    assert ours.failed == pytest.approx(oracle.failed, rel=1e-12)
    assert ours.cancelled == pytest.approx(oracle.cancelled, rel=rel, abs=1e-9)
    assert ours.moved == pytest.approx(oracle.moved, rel=rel, abs=1e-9)


CAUGHT_UP_AT_THE_END = Scenario(
    capacity=(1.0, 1.0, 0.5),
    flows=(
        Flow(0.0, (0,), (1.0,), 1.0, 0.0, np.inf, 1.0),
        Flow(0.5, (0, 2), (1.0, 1.0), 10.0, 0.0, np.inf, 1.0, leader=0),
        Flow(1.0, (0, 2), (1.0, 1.0), 1.0, 0.0, np.inf, 1.0, leader=1),
        Flow(3.0, (0,), (1.0,), 10.0, 0.0, np.inf, 1.0, leader=2),
    ),
)
"""A row catches up with its leader at the instant at which that one ends."""


@search(150)
@given(scenarios(what=WHAT[:4]))
def test_flows_end_as_in_the_slow_solver_through_changes_outages_and_cancels(scenario):
    check_same(scenario, by_links(scenario), by_oracle(scenario)[0])


@search(100)
@given(scenarios(weights=True, loads=False, what=("capacity", "stop", "down")))
def test_plain_flows_end_as_activities_do(scenario):
    check_same(scenario, by_links(scenario, start=Plain), by_links(scenario), rel=1e-9)


@search(100)
@given(scenarios(weights=True, what=("capacity", "stop", "cancel")))
def test_weighted_flows_end_as_in_the_slow_solver(scenario):
    check_same(scenario, by_links(scenario), by_oracle(scenario)[0])


@search(60)
@given(scenarios(what=("extend", "extend", "capacity", "cancel")))
def test_extended_flows_end_as_in_the_slow_solver(scenario):
    check_same(scenario, by_links(scenario), by_oracle(scenario)[0])


@search(150)
@given(scenarios(followers=True, what=WHAT))
@example(CAUGHT_UP_AT_THE_END)
def test_rows_that_follow_end_as_in_the_slow_solver(scenario):
    check_same(scenario, by_links(scenario), by_oracle(scenario)[0])


@pytest.mark.parametrize("seed", range(8))
def test_crowds_end_as_in_the_slow_solver(seed):
    scenario = crowd(seed)
    check_same(scenario, by_links(scenario), by_oracle(scenario)[0])


@pytest.mark.parametrize("seed", range(8))
def test_approximate_ends_are_within_a_thousandth(seed):
    scenario = crowd(seed)
    check_same(scenario, by_links(scenario, approximate=2e-4), by_oracle(scenario)[0], rel=1e-3)


def test_an_approximate_end_is_early_by_at_most_its_fraction_of_the_time_in_sharing():
    second = 10.0 * (1.0 + np.array([5e-4, 9e-4, 1.1e-3]))
    for nbytes in second:  # two links; what ends on one is an instant for the other
        flows = [
            Flow(2.0, (i,), (1.0,), size, 3.0, np.inf, 1.0) for i, size in enumerate((10.0, nbytes))
        ]
        ours = by_links(Scenario((1.0, 1.0), tuple(flows)), approximate=1e-3)
        assert ours.finish[0] == 15.0
        assert ours.finish[1] == pytest.approx(15.0 if nbytes <= 10.01 else 5.0 + nbytes)


@search(40)
@given(scenarios(weights=True, what=("capacity", "stop", "down")))
def test_rates_are_max_min_fair_at_any_instant(scenario):
    for rates, capacity in observed(scenario):
        assert_fair(scenario, rates, capacity)


@search(40)
@given(scenarios(followers=True, what=("capacity", "extend")))
def test_nobody_is_further_ahead_of_its_leader_than_it_may(scenario):
    ahead = []

    def probe(links, played):
        for number, flow in enumerate(scenario.flows):
            if number in played.following and flow.leader not in played.over:
                moved, led = (links.moved(played.rows[i]) for i in (number, flow.leader))
                ahead.append(moved - led - flow.slack)

    by_links(scenario, [(0.1 + 0.37 * i, probe) for i in range(60)])
    assert max(ahead, default=0.0) <= 1e-6


@search(25)
@given(scenarios(weights=True, what=WHAT))
def test_the_same_run_gives_the_same_bits(scenario):
    first, second = by_links(scenario), by_links(scenario)
    assert first.finish == second.finish
    assert first.failed == second.failed
    assert first.cancelled == second.cancelled
    assert first.moved == second.moved


@search(25)
@given(scenarios(what=("capacity", "stop")))
def test_looking_does_not_change_the_run(scenario):
    probes = [(0.05 + 0.31 * i, lambda links, _: list(links.running())) for i in range(60)]
    check_same(scenario, by_links(scenario, probes), by_links(scenario), rel=1e-9)


def observed(scenario):
    """Rates by flow, and capacities, between some events: bytes moved over a span of time."""
    instants = [0.0, *by_oracle(scenario)[1]]
    gaps = [(a, b) for a, b in pairwise(instants) if b - a > 1e-3][:12]
    seen = []

    def probe(links, played):
        moved = {activity.tag: moved for activity, moved in links.running()}
        seen.append((links.env.now, moved, links.capacity[: len(scenario.capacity)].copy()))

    by_links(scenario, [(a + (b - a) * x, probe) for a, b in gaps for x in (0.3, 0.7)])
    for (time, first, _), (later, second, capacity) in zip(seen[::2], seen[1::2]):
        assert first.keys() == second.keys()
        yield {n: (second[n] - first[n]) / (later - time) for n in first}, capacity


def assert_fair(scenario, rates, capacity):
    """No link over its capacity; each flow at its cap, or nobody faster on a full link of its."""
    flows = {number: scenario.flows[number] for number in rates}
    load, fastest = np.zeros((2, len(capacity)))
    for number, flow in flows.items():
        for link, a in zip(flow.links, flow.loads):
            load[link] += a * rates[number]
            fastest[link] = max(fastest[link], rates[number] / flow.weight)
    assert (load <= capacity * (1 + 1e-6) + 1e-9).all()
    for number, flow in flows.items():
        level = rates[number] / flow.weight
        bottleneck = any(
            load[link] >= capacity[link] * (1 - 1e-6) - 1e-9
            and level >= fastest[link] * (1 - 1e-6) - 1e-9
            for link in flow.links
        )
        assert bottleneck or rates[number] == pytest.approx(flow.cap, rel=1e-6)
