"""Reductions that follow the backward pass: their times, gates, and that values stay the same.

Legend of times: a model of 4 equal layers whose step has 11 pieces of 1 s. Forward passes take
0-4; the gradients of layers 3, 2, 1, 0 are released at 6, 8, 10, 11.
"""

import pytest
import torch

from optimizers import (
    SGD,
    AdamW,
    AllReduce,
    DeMo,
    DiLoCo,
    StreamingDiLoCo,
)
from optimizers.compression import ErrorFeedback, PerTensor, Quantize, Threshold, TopK
from sim.budget import Budget
from sim.compute.device import Device
from sim.compute.layout import Fragment
from sim.coordinators import Elastic, Psyche
from sim.payload import Dense
from sim.workload import uniform_layers
from topologies import complete

FOUR = uniform_layers("four", 4, 1000, step_seconds=11.0)
TIMELESS = Device(speed="1PFLOPS", mfu=1, jitter=0, memory_bandwidth=1e30)
HALF = Dense("bfloat16")


def link(seconds_per_layer):
    """Two hosts between which a layer of FOUR is reduced in this time."""
    return complete(2, bandwidth=500 / seconds_per_layer, latency=0.0)


def run(tiny, strategy, *, seconds_per_layer=1.0, **parts):
    experiment = tiny(
        strategy,
        n=2,
        topology=link(seconds_per_layer),
        workload=FOUR,
        **{"budget": Budget(steps=1), "device": TIMELESS} | parts,
    )
    return experiment.run(), experiment.sim


# -- times ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overlap", "seconds_per_layer", "end"),
    [
        ("none", 1, 11 + 4),
        ("none", 4, 11 + 16),
        ("layerwise", 1, 12),  # 6-7, 8-9, 10-11, 11-12
        ("layerwise", 4, 22),  # 6-10-14-18-22: one after the other
        ("bucketed", 1, 13),  # two layers at 8, two at 11
        ("bucketed", 4, 24),
    ],
)
def test_a_reduction_starts_when_its_gradient_is_released(tiny, overlap, seconds_per_layer, end):
    strategy = AllReduce(SGD(lr=0.1), HALF, overlap=overlap, bucket=1000)
    _, sim = run(tiny, strategy, seconds_per_layer=seconds_per_layer)
    assert sim.now == pytest.approx(end, rel=1e-12)


def test_reductions_go_one_at_a_time_in_order_of_release(tiny):
    trace, _ = run(tiny, AllReduce(SGD(lr=0.1), HALF, overlap="layerwise"), seconds_per_layer=4)
    ends = trace["collective"]["end"].tolist()
    assert ends == pytest.approx([10, 14, 18, 22])
    assert trace["collective"]["link_seconds"].tolist() == pytest.approx([4] * 4)


def test_two_streams_share_the_link(tiny):
    strategy = AllReduce(SGD(lr=0.1), HALF, overlap="layerwise", streams=2)
    trace, _ = run(tiny, strategy, seconds_per_layer=4)
    # From 8 on two share: the first has 2 of 4 s left and ends at 12, and so on.
    assert trace["collective"]["end"].tolist() == pytest.approx([12, 16, 20, 22])


def test_diloco_overlaps_with_its_last_step_only(tiny):
    strategy = DiLoCo(3, SGD(lr=0.7), HALF, overlap="layerwise")
    _, sim = run(tiny, strategy, seconds_per_layer=4, budget=Budget(steps=3))
    assert sim.now == pytest.approx(22 + 22)


def test_gathers_overlap_as_well(tiny):
    codec = PerTensor(TopK(ratio=0.5))
    times = []
    for overlap in ("none", "layerwise"):
        strategy = DeMo(compressor=codec, overlap=overlap)
        _, sim = run(tiny, strategy, seconds_per_layer=1)
        times.append(sim.now)
    per_layer = FOUR.nbytes(codec, FOUR.layout.select(["layers.0"])) / 500
    assert times[0] == pytest.approx(11 + 4 * per_layer)
    end = 0.0
    for released in (6, 8, 10, 11):
        end = max(end, released) + per_layer
    assert times[1] == pytest.approx(end)


def test_members_that_are_slower_release_later(tiny):
    """The ring starts a layer when its slowest member has released it."""
    device = Device(speed="1PFLOPS", mfu=1, jitter=0.3, memory_bandwidth=1e30)
    strategy = AllReduce(SGD(lr=0.1), HALF, overlap="layerwise")
    trace, sim = run(tiny, strategy, seconds_per_layer=1e-3, device=device)
    slowest = max(sim.devices.seconds(FOUR.flops_per_step, [0, 1], 0))
    ends = trace["collective"]["end"] - 1e-3
    assert ends.tolist() == pytest.approx([slowest * at / 11 for at in (6, 8, 10, 11)])


def count_events(tiny, strategy, workload, steps):
    experiment = tiny(strategy, workload=workload, device=TIMELESS, budget=Budget(steps=steps))
    sim, count = experiment.build(), 0
    with torch.no_grad():
        sim.start()
        while not sim.done.processed:
            sim.step()
            count += 1
    return count


def test_local_steps_without_gates_are_one_request_however_many(tiny):
    few, many = (count_events(tiny, DiLoCo(h, overlap="layerwise"), FOUR, h) for h in (10, 500))
    assert few == many


def test_events_grow_with_the_layers_only_if_they_are_told_apart(tiny):
    few, many = (uniform_layers("m", n, 1000, step_seconds=1.0) for n in (4, 40))
    whole = [count_events(tiny, AllReduce(SGD(lr=0.1)), m, 3) for m in (few, many)]
    cut = [
        count_events(tiny, AllReduce(SGD(lr=0.1), overlap="layerwise"), m, 3) for m in (few, many)
    ]
    assert whole[0] == whole[1]
    assert cut[1] < 10 * cut[0]


# -- gates ------------------------------------------------------------------------------------


def fragment(sim, *layers):
    whole = sim.fleet.layout
    charged = FOUR.layout.select([f"layers.{i}" for i in layers])
    return Fragment(whole, tuple(whole.shapes)[:1], charged)


def gated(idle, opens, layers, steps=1):
    """Two nodes train; the forward pass through some layers waits until `opens`."""
    sim = idle(n=2, topology=link(1.0), device=TIMELESS, workload=FOUR)
    gates = {fragment(sim, layer): sim.timeout(at) for layer, at in zip(layers, opens)}
    return sim, sim.group().train(steps, gates)


@pytest.mark.parametrize(
    ("opens", "layers", "end"),
    [
        ((3.0,), (2,), 12),  # the forward pass was there at 2
        ((1.5,), (2,), 11),  # open before it was needed
        ((30.0,), (0,), 41),
        ((3.0, 4.5), (2, 3), 12.5),  # at layer 3 at 4, and half a second more there
        ((4.5, 3.0), (3, 2), 12.5),  # in any order
        ((5.0, 5.5), (0, 3), 16),  # at layer 3 at 8: the second gate cost nothing
    ],
)
def test_a_forward_pass_waits_at_its_gates(idle, opens, layers, end):
    sim, work = gated(idle, opens, layers)
    with torch.no_grad():
        sim.run(until=work)
    assert sim.now == pytest.approx(end)


def test_only_the_first_step_waits(idle):
    sim, work = gated(idle, (3.0,), (2,), steps=3)
    with torch.no_grad():
        sim.run(until=work)
    assert sim.now == pytest.approx(3 * 11 + 1)


def test_a_release_after_a_gate_is_late_by_the_wait(idle):
    sim, work = gated(idle, (3.0,), (2,))
    with torch.no_grad():
        last, both = work.released(fragment(sim, 3)), work.released(fragment(sim, 1, 3))
        sim.run(until=last)
        assert sim.now == pytest.approx(7)
        sim.run(until=both)
    assert sim.now == pytest.approx(11)


def test_gated_steps_see_what_was_written_while_they_waited(idle):
    sim, work = gated(idle, (3.0,), (2,))
    with torch.no_grad():
        sim.run(until=3.5)
        group = sim.group()
        group.params = torch.zeros(8)
        sim.run(until=work)
        found = group.params.tensor()
        group.params = torch.zeros(8)
        again = idle(n=2, topology=link(1.0), device=TIMELESS, workload=FOUR)
        other = again.group()
        other.params = torch.zeros(8)
        again.run(until=other.train(1))
    assert torch.equal(found, other.params.tensor())


def test_a_gated_computation_ends_when_all_its_members_have_left(idle):
    sim = idle(
        n=2, topology=link(1.0), device=TIMELESS, workload=FOUR, away={0: (1, 99), 1: (2, 99)}
    )
    work = sim.group().train(1, {fragment(sim, 2): sim.event()})
    sim.run(until=work)
    assert sim.now == 2
    assert work.members == []


# -- values -----------------------------------------------------------------------------------

STRATEGIES = {
    "all_reduce": lambda **o: AllReduce(AdamW(lr=0.05), **o),
    "all_reduce_gathered": lambda **o: AllReduce(
        SGD(lr=0.1), ErrorFeedback(PerTensor(TopK(ratio=0.5))), **o
    ),
    "diloco": lambda **o: DiLoCo(3, **o),
    "demo": lambda **o: DeMo(lr=0.05, **o),
    "streaming": lambda **o: _streaming(0, **o),
    "streaming_overlap": lambda **o: _streaming(1, **o),
    "streaming_long_overlap": lambda **o: _streaming(3, **o),
}


def _streaming(tau, overlap="none", **options):
    return StreamingDiLoCo(4, 2, overlap=tau, reductions=overlap, **options)


def finals(tiny, strategy):
    """Parameters and the strategy's knowledge at the end, on a slow and uneven network."""
    experiment = tiny(
        strategy,
        device=Device(speed=48, mfu=1, jitter=0.3),
        topology=complete(4, bandwidth=20, latency=0.0),
        budget=Budget(steps=12),
    )
    experiment.run()
    sim = experiment.sim
    return sim, [sim.fleet.get("params", sim.group().index), strategy.consensus(sim)]


@pytest.mark.parametrize("overlap", ["bucketed", "layerwise"])
@pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES)
def test_what_is_learned_does_not_depend_on_the_overlap(tiny, make, overlap):
    plain, expected = finals(tiny, make())
    other, found = finals(tiny, make(overlap=overlap, bucket=12))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert other.now <= plain.now
    assert plain.completed.tolist() == other.completed.tolist()


def test_a_lost_members_share_is_in_no_mean(tiny):
    """It leaves when its last layer has been reduced and its first has not."""
    away = {3: (0.9, 1e9)}
    results = []
    for strategy in (
        AllReduce(SGD(lr=0.1), overlap="layerwise"),
        AllReduce(SGD(lr=0.1), overlap="none"),
    ):
        experiment = tiny(strategy, away=away, topology=complete(4, bandwidth=1e6, latency=0.0))
        sim = experiment.build()
        with torch.no_grad():
            sim.start()
            start = sim.shared["params"]
            while torch.equal(sim.shared["params"], start):
                sim.step()
        results.append(sim.shared["params"])
        if strategy.overlap == "layerwise":
            assert sim.trace["collective"]["contributors"].tolist() == [4, 3]
    assert torch.equal(*results)


@pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize(
    "coordinator",
    [
        lambda: Elastic(),
        lambda: Psyche(
            n_witnesses=1, warmup_time=2, max_round_train_time=9, round_witness_time=0.2,
            cooldown_time=1, rounds_per_epoch=5,
        ),
    ],
    ids=["elastic", "psyche"],
)  # fmt: skip
def test_an_overlapped_run_survives_churn(tiny, make, coordinator):
    away = {0: (3.3, 9.1), 1: (1.4, 6.0), 2: [(1.7, 2.2), (12.6, 80.0)], 3: (20.4, 21.0)}
    experiment = tiny(
        make(overlap="layerwise"), away=away, coordinator=coordinator(), budget=Budget(seconds=60)
    )
    trace = experiment.run()
    sim = experiment.sim
    totals = sim.network.totals()
    assert sim.now == 60
    assert sim.completed.max() > 5
    assert totals.wasted.sum() <= totals.sent.sum() * (1 + 1e-9)
    assert trace["metric"]["loss"].iloc[-1] < trace["metric"]["loss"].iloc[0]


@pytest.mark.parametrize(
    ("codec", "overlap"), [(Dense(), "none"), (Dense(), "layerwise"), (Threshold(0.0), "none")]
)
def test_a_round_that_all_have_left_teaches_nothing(tiny, codec, overlap):
    strategy = DiLoCo(4, compressor=codec, overlap=overlap)
    away = {i: (1.5 + i / 10, 20) for i in range(4)}
    experiment = tiny(strategy, away=away, budget=Budget(seconds=19))
    experiment.run()
    start = experiment.sim.initial_params()
    assert torch.equal(experiment.sim.shared["theta"], start)


# -- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "match"),
    [
        (Quantize(8), "strategy.overlap=layerwise: .* needs the whole row.*PerTensor"),
        (PerTensor(Threshold(0.1)), "decides its size when all is computed"),
    ],
)
def test_a_codec_that_cannot_be_sent_in_parts_is_refused(codec, match):
    with pytest.raises(ValueError, match=match):
        AllReduce(SGD(lr=0.1), codec, overlap="layerwise")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: AllReduce(overlap="layers"), "must be one of none, bucketed, layerwise; try 'lay"),
        (lambda: DiLoCo(bucket=0), "strategy.bucket"),
        (lambda: DeMo(streams=0), "strategy.streams=0: must be >= 1"),
        (lambda: StreamingDiLoCo(reductions="x"), "strategy.reductions='x'"),
    ],
)
def test_impossible_options_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
