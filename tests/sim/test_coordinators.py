"""Coordinators: who is in a round, how a joiner gets the state, when a round ends."""

import math
from dataclasses import dataclass, field

import pytest
import torch

from optimizers import SGD, AllReduce, DiLoCo, StreamingDiLoCo
from optimizers.compression import Quantize, TopK
from optimizers.strategy import GroupStrategy
from sim.budget import Budget
from sim.compute.device import Device
from sim.coordinators import Elastic, Psyche, Static
from topologies import complete

EVER = math.inf
DOWNLOAD = 0.1 + 32 / 32
"""Seconds of a download of 8 float32 over a private link: latency, then bytes / bandwidth."""


@dataclass
class Rounds(GroupStrategy):
    """Rounds of one second, noted as (time, members)."""

    log: list = field(default_factory=list)
    passes = 0.0

    def init(self, sim):
        return {"params": sim.initial_params()}

    def run(self, sim):
        while True:
            group = yield sim.coordinator.round()
            self.log.append((sim.now, group.ids))
            yield sim.timeout(1)

    def consensus(self, sim):
        return sim.shared["params"]


@pytest.fixture
def rounds(tiny):
    """`rounds(coordinator, away, n=..., until=...)`: the log of rounds, and the simulation."""

    def go(coordinator, away, *, n=4, until=12.0, **parts):
        strategy = Rounds()
        options = {"topology": complete(n, bandwidth=32, latency=0.1), "strategy": strategy}
        experiment = tiny(n=n, coordinator=coordinator, away=away, **options | parts)
        experiment.budget = Budget(seconds=until)
        experiment.run()
        return strategy.log, experiment.sim

    return go


def _events(sim, name):
    """(time, node) of the session events of a name."""
    return [(r["time"], r["node"]) for r in sim.trace.rows("session") if r["event"] == name]


def _members(log, time):
    """Members of the round that is under way at a time."""
    return [ids for at, ids in log if at <= time][-1]


@pytest.mark.parametrize("coordinator", [Static, Elastic])
def test_without_churn_everybody_is_in_every_round(rounds, coordinator):
    log, sim = rounds(coordinator(), {}, until=3.5)
    assert log == [(0, [0, 1, 2, 3]), (1, [0, 1, 2, 3]), (2, [0, 1, 2, 3]), (3, [0, 1, 2, 3])]
    assert sim.rounds == 4


@pytest.mark.parametrize("coordinator", [Static, Elastic])
def test_who_leaves_is_dropped_at_the_next_round(rounds, coordinator):
    log, _ = rounds(coordinator(), {2: (1.5, EVER)})
    assert _members(log, 1.9) == [0, 1, 2, 3]
    assert _members(log, 2.0) == [0, 1, 3]


@pytest.mark.parametrize("coordinator", [Static, Elastic])
def test_who_leaves_at_the_instant_of_a_round_is_not_in_it(rounds, coordinator):
    log, _ = rounds(coordinator(), {2: (2.0, EVER)})
    assert _members(log, 2.0) == [0, 1, 3]


@pytest.mark.parametrize("coordinator", [Static, Elastic])
def test_the_last_one_leaving_at_the_instant_of_a_round_opens_no_empty_round(rounds, coordinator):
    away = {node: (2.0, 5.5) for node in range(4)}
    log, _ = rounds(coordinator(), away)
    assert all(ids for _, ids in log)
    assert [time for time, _ in log if 2 <= time < 6.5] == [5.5]


def test_static_admits_a_joiner_at_the_next_round_for_free(rounds):
    log, sim = rounds(Static(), {3: (0, 4.5)})
    assert _members(log, 4.9) == [0, 1, 2]
    assert _members(log, 5.0) == [0, 1, 2, 3]
    assert len(sim.trace["transfer"]) == 0


def test_elastic_admits_a_joiner_at_the_first_round_after_its_download(rounds):
    log, sim = rounds(Elastic(), {3: (0, 4.5)})
    assert _events(sim, "admitted") == [(pytest.approx(4.5 + DOWNLOAD), 3)]
    assert _members(log, 5.9) == [0, 1, 2]
    assert _members(log, 6.0) == [0, 1, 2, 3]
    assert sim.trace["transfer"]["nbytes"].tolist() == [32]


def test_a_joiner_gets_the_parameters_that_its_donor_holds(rounds):
    _, sim = rounds(Elastic(), {1: (0, 4.5)}, n=2, until=4.6)
    sim.node(0).params = torch.full((8,), 3.0)
    sim.run(until=6)
    assert sim.node(1).params.tolist() == [3.0] * 8


def test_when_the_donor_leaves_another_one_gives_the_state(rounds):
    _, before = rounds(Elastic(), {2: (0, 4.5)}, n=3)
    donor = int(before.trace["transfer"]["src"][0])
    log, sim = rounds(Elastic(), {2: (0, 4.5), donor: (5.0, EVER)}, n=3)
    transfers = sim.trace["transfer"]
    assert transfers["src"].tolist() == [donor, 1 - donor]
    assert transfers["status"].tolist() == ["lost", "delivered"]
    assert _events(sim, "admitted") == [(pytest.approx(5.0 + DOWNLOAD), 2)]
    assert _members(log, 11) == sorted([1 - donor, 2])


def test_a_joiner_that_leaves_during_its_download_is_not_admitted(rounds):
    log, sim = rounds(Elastic(), {3: [(0, 4.5), (5.0, EVER)]})
    assert _events(sim, "admitted") == []
    assert _members(log, 11) == [0, 1, 2]


@pytest.mark.parametrize("coordinator", [Static, Elastic])
def test_when_everybody_is_gone_the_state_is_lost_and_training_begins_anew(tiny, coordinator):
    away = {node: (10.0, 20.0) for node in range(3)} | {3: (10.0, 25.0)}
    experiment = tiny(coordinator=coordinator(), away=away, budget=Budget(seconds=20.5))
    experiment.run()
    sim = experiment.sim
    assert _events(sim, "state lost") == [(20.0, -1)]
    assert torch.equal(sim.shared["params"], sim.initial_params())
    sim.run(until=40)
    assert not torch.equal(sim.shared["params"], sim.initial_params())


def test_elastic_waits_for_its_least_number_of_members(rounds):
    log, _ = rounds(Elastic(min_nodes=3), {0: (2.5, 5.0), 1: (2.5, EVER)})
    times = [time for time, _ in log if 2.0 < time < 7]
    assert times == pytest.approx([5.0 + DOWNLOAD])


@pytest.mark.parametrize(
    ("coordinator", "message"),
    [
        (lambda: Elastic(min_nodes=0), "coordinator.min_nodes=0: must be >= 1"),
        (lambda: Psyche(min_clients=0), "coordinator.min_clients=0: must be >= 1"),
        (lambda: Psyche(quorum=5, n_witnesses=4), "coordinator.quorum=5: must be between 1 and"),
        (lambda: Psyche(warmup_time=0), "coordinator.warmup_time=0: must be > 0"),
        (lambda: Psyche(max_round_train_time="0s"), "coordinator.max_round_train_time=0"),
        (lambda: Psyche(cooldown_time="-1s"), "coordinator.cooldown_time=-1: must be >= 0"),
    ],
)
def test_an_impossible_coordinator_is_refused_by_name(coordinator, message):
    with pytest.raises(ValueError, match=message):
        coordinator()


@pytest.mark.parametrize("coordinator", [Elastic(min_nodes=5), Psyche(min_clients=5)])
def test_more_members_than_nodes_are_refused_with_the_nearest_number(tiny, coordinator):
    with pytest.raises(ValueError, match="at most the 4 nodes of the topology; 4 is the nearest"):
        tiny(coordinator=coordinator).run()


# -- members that return ----------------------------------------------------------------------


@pytest.mark.parametrize("compressor", [Quantize(8), TopK(2)], ids=repr)
@pytest.mark.parametrize("overlap", [None, 0, 1])
def test_who_returns_in_the_same_round_contributes_nothing(tiny, compressor, overlap):
    """Its local parameters are gone; the outer step must be that of a round without it."""
    results = []
    for back in (1.7, EVER):
        strategy = DiLoCo(inner_steps=4, compressor=compressor)
        if overlap is not None:
            strategy = StreamingDiLoCo(4, 2, overlap=overlap, compressor=compressor)
        experiment = tiny(strategy, away={2: (1.5, back)}, budget=Budget(seconds=60))
        sim = experiment.build()
        start = torch.empty(0)
        with torch.no_grad():
            sim.start()
            start = sim.shared["theta"]
            while torch.equal(sim.shared["theta"], start):
                sim.step()
        results.append(sim.shared["theta"])
    assert torch.equal(*results)


def test_streaming_gives_a_returned_member_the_outer_parameters(tiny):
    strategy = StreamingDiLoCo(4, 2, overlap=0, mixing=1.0, outer=SGD(lr=0.0))
    sim = tiny(strategy, away={2: (1.5, 2.1)}, local=SGD(lr=0.5)).build()
    with torch.no_grad():
        sim.start()
        sim.run(until=2.2)  # between its steps: Static hands over what the donor holds locally
        assert torch.equal(sim.node(2).params, sim.node(0).params)
        assert not torch.equal(sim.node(2).params, sim.shared["theta"])
        while len(sim.trace.rows("round")) < 2:
            sim.step()
        while not sim.fleet._locked:
            sim.step()
    rows = sim.fleet.table("params").get(sim.group().index)
    assert torch.equal(rows[2], sim.shared["theta"])
    assert not torch.equal(rows[0], sim.shared["theta"])


def test_a_joiner_downloads_the_momentum_of_every_fragment(tiny):
    strategy = StreamingDiLoCo(4, 2, overlap=0, outer=SGD(lr=0.7, momentum=0.9))
    experiment = tiny(strategy, away={3: (0, 0.5)}, coordinator=Elastic(), n=4)
    trace = experiment.run()
    assert trace["transfer"]["nbytes"].tolist() == [2 * 32]


# -- Psyche -----------------------------------------------------------------------------------

QUICK = {"warmup_time": 4, "max_round_train_time": 50, "round_witness_time": 0.5}
GATHER = AllReduce(SGD(lr=0.1), TopK(2))


def _psyche(tiny, strategy=GATHER, *, n=4, **options):
    psyche = {k: options.pop(k) for k in list(options) if hasattr(Psyche(), k)}
    graph = options.pop("topology", complete(n, bandwidth=32, latency=0.1))
    coordinator = Psyche(**QUICK | {"cooldown_time": 1} | psyche)
    experiment = tiny(strategy, n=n, topology=graph, coordinator=coordinator, **options)
    return experiment.run(), experiment.sim


def test_a_round_ends_when_its_witnesses_have_heard_everybody(tiny):
    trace, _ = _psyche(tiny, budget=Budget(seconds=20))
    times = trace["round"]["time"].tolist()
    gathered = trace["collective"]["end"].tolist()
    assert times[0] == 0  # nobody has to download, so warmup ends at once
    assert times[1:5] == pytest.approx([end + 0.5 for end in gathered[:4]])


def test_a_round_ends_at_its_deadline_when_a_member_is_slow_whose_payload_is_left_out(
    tiny, quadratic
):
    quadratic.flops_per_token = 0.5 * 989e12  # 1 s on an H100, 39 s on an RTX 3060
    device = Device(gpus=["h100", "h100", "h100", "rtx3060"], mfu=0.5, jitter=0)
    parts = {"device": device, "budget": Budget(seconds=13.2), "max_round_train_time": 6}
    trace, sim = _psyche(tiny, **parts)
    assert trace["round"]["time"].tolist() == pytest.approx([0, 6.5, 13])
    assert trace["collective"]["contributors"].tolist() == [3, 3]
    params = sim.initial_params()
    for round_ in range(2):
        grads = [
            torch.func.grad(quadratic.loss)(params, tuple(p[0] for p in quadratic.batch(*at)))
            for at in (([i], [round_]) for i in range(3))
        ]
        kept = [torch.where(g.abs() >= g.abs().topk(2).values[-1], g, 0) for g in grads]
        params = params - 0.1 * sum(kept) / 3
    torch.testing.assert_close(sim.shared["params"], params)


def test_a_dense_all_reduce_ends_a_round_too(tiny):
    trace, _ = _psyche(tiny, AllReduce(SGD(lr=0.1)), budget=Budget(seconds=12))
    ends = trace["collective"]["end"].tolist()
    assert trace["round"]["time"].tolist()[1:3] == pytest.approx([end + 0.5 for end in ends[:2]])


def test_a_client_alone_makes_progress(tiny):
    trace, sim = _psyche(tiny, n=1, rounds_per_epoch=4, budget=Budget(seconds=20))
    assert trace["round"]["time"].tolist()[:4] == pytest.approx([0, 1.5, 3, 4.5])
    assert trace["metric"]["step"].iloc[-1] >= 10
    assert not torch.equal(sim.shared["params"], sim.initial_params())


def test_joiners_wait_for_the_next_epoch(tiny):
    options = {"rounds_per_epoch": 3, "away": {3: (0, 2.0)}, "budget": Budget(seconds=30)}
    trace, sim = _psyche(tiny, **options)
    assert trace["round"]["members"].tolist()[:5] == [3, 3, 3, 4, 4]
    third, fourth = trace["round"]["time"][2:4]
    admitted = _events(sim, "admitted")
    round_time = trace["round"]["time"][1]
    assert admitted == [(pytest.approx(third + round_time + 1 + DOWNLOAD), 3)]
    assert fourth == pytest.approx(admitted[0][0])  # warmup ends when all have the state


def test_a_client_that_returns_within_an_epoch_waits_for_the_next(tiny):
    options = {"rounds_per_epoch": 3, "away": {3: (0.5, 0.6)}, "budget": Budget(seconds=60)}
    trace, _ = _psyche(tiny, **options, max_round_train_time=8)
    assert trace["round"]["members"].tolist()[:4] == [4, 3, 3, 4]


def test_warmup_does_not_wait_for_slow_downloads_and_admits_them_once(tiny):
    """A download of 100 s under warmups of 4 s, with epochs of a few seconds between."""
    parts = {"rounds_per_epoch": 2, "max_round_train_time": 2, "away": {2: (0, 1.0)}}
    graph = complete(3, bandwidth=0.32, latency=0.1)
    trace, sim = _psyche(tiny, Rounds(), n=3, topology=graph, budget=Budget(seconds=150), **parts)
    ((admitted, node),) = _events(sim, "admitted")
    assert node == 2
    assert len(trace["transfer"]) == 1
    before = trace["round"][trace["round"]["time"] < admitted]
    assert len(before) > 10
    assert set(before["members"]) == {2}
    assert trace["round"]["members"].iloc[-1] == 3


def test_an_epoch_needs_its_least_number_of_clients(tiny):
    options = {"min_clients": 3, "away": {0: (2.0, 15.0), 1: (2.0, EVER)}}
    trace, _ = _psyche(tiny, **options, max_round_train_time=8, budget=Budget(seconds=40))
    times = trace["round"]["time"]
    assert (times[times > 2.0] >= 15.0 + DOWNLOAD).all()
    assert (trace["round"]["members"] >= 3).all()
    assert times.iloc[-1] > 15.0


@pytest.mark.parametrize(
    ("count", "quorum"), [(1, 1), (2, 2), (3, 2), (4, 2), (5, 3), (6, 4), (9, 6)]
)
def test_two_thirds_of_the_witnesses_rounded_down_are_a_quorum(count, quorum):
    assert Psyche()._quorum(count) == quorum


@pytest.mark.parametrize("coordinator", [Static(), Elastic(), Psyche(**QUICK, cooldown_time=1)])
def test_a_coordinator_can_be_used_for_another_run(tiny, coordinator):
    strategy = DiLoCo(inner_steps=2)
    tables = [
        tiny(strategy, coordinator=coordinator, budget=Budget(seconds=17)).run()["metric"]
        for _ in range(2)
    ]
    assert tables[0].equals(tables[1])
