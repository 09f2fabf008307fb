"""All-reduce and its relatives against loops over nodes, closed forms and each other."""

import networkx as nx
import numpy as np
import pytest
import torch

from experiments.experiment import Experiment
from experiments.tasks.quadratic import Quadratic
from experiments.validate.golden.problems import Forced, Listed, Regression
from experiments.validate.golden.recorders import RecordedOptimizer, RecordedRounds
from optimizers import (
    EF21,
    EFSGD,
    SGD,
    AdamW,
    AllReduce,
    DiLoCo,
    OneBitAdam,
    SignSGD,
    Subset,
)
from optimizers.aggregation import CoordinateMedian, Krum
from optimizers.compression import CodeBook, ErrorFeedback, Quantize, RandomK, Sign, TopK
from optimizers.subset import by_speed
from sim.budget import Budget
from sim.compute.device import Device
from sim.compute.layout import Layout
from sim.compute.options import ComputeOptions
from sim.coordinators import Elastic, Static
from sim.network.closed_forms import hierarchical_seconds
from sim.network.options import NetworkOptions
from sim.payload import Context, Dense
from sim.reduction import CodedRing, Hierarchical, Reducers
from topologies import complete, datacenter, regions

EXACT = Dense("native")
RING = CodedRing(CodeBook())
EVER = float("inf")
FAMILY = {
    "accumulate": AllReduce(SGD(0.1), accumulate=2),
    "int8_ring": AllReduce(SGD(0.1), reduction=RING),
    "hierarchical": AllReduce(SGD(0.1), reduction=Hierarchical()),
    "subset": AllReduce(SGD(0.1), nodes=Subset(fastest=3)),
    "diloco_int8_ring": DiLoCo(2, reduction=RING),
    "diloco_hierarchical": DiLoCo(2, reduction=Hierarchical()),
    "diloco_subset": DiLoCo(2, nodes=Subset(fastest=2, absent="without")),
    "signsgd": SignSGD(0.02),
    "signum": SignSGD(0.02, momentum=0.5, exchange="gather"),
    "ef_signsgd": EFSGD(0.1),
    "ef21": EF21(0.1, TopK(ratio=0.5)),
    "one_bit_adam": OneBitAdam(AdamW(lr=0.02), warmup=4),
}


def _rounds(strategy, task, n, **parts):
    """The consensus model at the start and after each round, [rounds + 1, P]."""
    parts = {"local": SGD(0.1), "budget": Budget(steps=6)} | parts
    rounds = RecordedRounds(lambda sim: strategy.consensus(sim))
    run = Experiment(task, complete(n), strategy, coordinator=rounds, **parts)
    run.run()
    return torch.stack(rounds.notes), run.sim


def _forced(n, steps=6, P=10, seed=0):
    """Gradients [steps, n, P] in float64, and the task that has them."""
    rng = np.random.default_rng(seed)
    grads = torch.from_numpy(rng.standard_normal((steps, n, P)))
    start = torch.from_numpy(rng.standard_normal(P))
    return grads, Forced(grads, Layout({"a": (P - 3,), "b": (3,)}), start)


# -- gradients of several batches, and of unequal ones --------------------------------------------


def _batches_joined(task, k):
    """The problem whose every batch is k batches of the other one."""
    x, y = (z.unflatten(0, (-1, k)).transpose(1, 2).flatten(2, 3) for z in (task._x, task._y))
    return Regression(x, y, task.layout, task._start)


@pytest.mark.parametrize("codec", [EXACT, Quantize(bits=16)], ids=["summed", "gathered"])
@pytest.mark.parametrize("engine", ["auto", "loop"])
@pytest.mark.parametrize("k", [2, 4])
def test_accumulated_gradients_are_those_of_a_larger_batch(k, engine, codec):
    task, compute = Regression.drawn(3), ComputeOptions(engine=engine)
    strategy = AllReduce(SGD(0.1), codec, accumulate=k)
    ours, sim = _rounds(strategy, task, 3, budget=Budget(steps=8), compute=compute)
    joined, one = _batches_joined(task, k), AllReduce(SGD(0.1), codec)
    theirs, _ = _rounds(one, joined, 3, budget=Budget(steps=8 // k), compute=compute)
    assert sim.completed.tolist() == [8, 8, 8]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_gradients_of_unequal_numbers_of_batches_are_computed_together(idle):
    """Requests of one flush: each node's mean is over its own batches."""
    sim = idle(n=3)
    few, many = sim.group([0, 2]).grad(), sim.group([1]).grad(3)
    sim.run(until=many)
    assert sim.fleet.flushes == 1
    task, x = sim.fleet.task, sim.initial_params()
    for node, steps, got in ((0, 1, few.value[0]), (2, 1, few.value[1]), (1, 3, many.value[0])):
        each = []
        for step in range(steps):
            batch = task.batch(np.array([node]), np.array([step]))
            mine = torch.utils._pytree.tree_map(lambda b: b[0], batch)
            each.append(torch.func.grad(task.loss)(x, mine))
        torch.testing.assert_close(got, sum(each) / steps)


def test_accumulation_synchronises_once_and_waits_for_the_slowest(tiny):
    """Three steps of 1 s, then a ring of four: 6 (8 / 32 + 0.1) s."""
    trace = tiny(AllReduce(SGD(0.1), accumulate=3), budget=Budget(steps=6)).run()
    assert trace["collective"]["start"].iloc[0] == pytest.approx(3.0)
    assert trace["collective"]["end"].iloc[0] == pytest.approx(3.0 + 2.1)
    assert trace["metric"]["step"].iloc[-1] == 6


def test_a_member_that_leaves_while_it_accumulates_is_in_no_mean(tiny):
    grads, task = _forced(4, P=8)
    mean = RecordedOptimizer(SGD(0.1))
    budget = Budget(steps=2, seconds=60)
    tiny(AllReduce(mean, accumulate=2), task=task, away={2: (1.5, EVER)}, budget=budget).run()
    torch.testing.assert_close(mean.grads[0], grads[:2, [0, 1, 3]].mean((0, 1)))


def test_gradients_weigh_as_the_samples_of_their_batches():
    grads, task = _forced(3)
    samples = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    mean = RecordedOptimizer(SGD(0.1))
    _rounds(AllReduce(mean, EXACT, samples=[1, 2, 5]), task, 3)
    for ours, rows in zip(mean.grads, grads):
        torch.testing.assert_close(ours, samples @ rows / 8)


def test_clipping_comes_after_the_reduction():
    grads, task = _forced(3)
    start = task._start
    after, _ = _rounds(AllReduce(SGD(1.0, clip=0.1), EXACT), task, 3, budget=Budget(steps=1))
    mean = grads[0].mean(0)
    torch.testing.assert_close(after[1], start - 0.1 * mean / (mean.norm() + 1e-6))


# -- the ring that encodes at every hop -----------------------------------------------------------


def _code(chunk, codec):
    ctx = Context(Layout.flat(len(chunk)), 0, np.zeros(1, np.int64), 0)
    return codec.encode(chunk[None], None, ctx)[0].decode()[0]


def _ring_by_hand(rows, codec, k=2):
    """Messages between ranks, one after the other, as in PRIME; returns the sum at each rank."""
    n, P = rows.shape
    padded = torch.cat([rows, rows.new_zeros(n, -P % (k * n))], dim=1)
    have = [list(row.chunk(k * n)) for row in padded]
    for hop in range(1, n):
        for buffer in range(k):
            pairs = [((rank - hop) % n) * k + buffer for rank in range(n)]
            sent = [_code(have[rank][pairs[rank]], codec) for rank in range(n)]
            for rank in range(n):
                to = (rank + 1) % n
                have[to][pairs[rank]] = have[to][pairs[rank]] + sent[rank]
    for rank in range(n):
        for buffer in range(k):
            own = rank * k + buffer
            final = _code(have[rank][own], codec)
            for each in have:
                each[own] = final
    return [torch.cat(chunks)[:P] for chunks in have]


@pytest.mark.parametrize(("n", "P", "k"), [(1, 30, 2), (2, 40, 2), (3, 31, 2), (5, 200, 3)])
@pytest.mark.parametrize("codec", [CodeBook(), Quantize(bits=4)])
def test_the_coded_ring_is_that_of_messages_between_ranks(n, P, k, codec):
    rows = torch.randn(n, P, generator=torch.Generator().manual_seed(n))
    ours = CodedRing(codec, chunks=k, divide="after").around(rows)
    for theirs in _ring_by_hand(rows, codec, k):
        torch.testing.assert_close(ours, theirs / n, rtol=0, atol=1e-6)
    before = CodedRing(codec, chunks=k).around(rows)
    torch.testing.assert_close(before, _ring_by_hand(rows / n, codec, k)[0], rtol=0, atol=1e-6)


def test_the_error_of_the_coded_ring_is_half_a_percent_at_few_ranks():
    rows = torch.randn(4, 4096, generator=torch.Generator().manual_seed(0)) + 2
    off = RING.around(rows) - rows.mean(0)
    assert 0.001 < float(off.norm() / rows.mean(0).norm()) < 0.01


@pytest.mark.parametrize("divide", ["before", "owner", "after"])
def test_a_ring_of_exact_codes_is_the_mean(divide):
    rows = torch.randn(5, 33, generator=torch.Generator().manual_seed(1)).double()
    ring, weights = CodedRing(EXACT, divide=divide), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    torch.testing.assert_close(ring.around(rows), rows.mean(0))
    torch.testing.assert_close(ring.around(rows, weights), weights.double() @ rows / 15)


@pytest.mark.parametrize("collectives", ["coupled", "flows"])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("strategy", ["int8_ring", "diloco_int8_ring"])
def test_a_coded_ring_sends_the_bytes_of_its_formula(strategy, n, collectives):
    """`2 (N - 1) / N P + 4 (N - 1) 1024` of each member, P = 60 here."""
    _, task = _forced(n, P=60)
    run = Experiment(
        task, complete(n), FAMILY[strategy], collectives=collectives, budget=Budget(steps=2)
    )
    trace = run.run()
    syncs = 2 if strategy == "int8_ring" else 1
    wanted = syncs * (2 * (n - 1) / n * 60 + 4 * (n - 1) * 1024)
    assert run.sim.network.totals().sent.tolist() == pytest.approx([wanted] * n)
    assert trace["metric"]["step"].iloc[-1] == 2


@pytest.mark.parametrize("collectives", ["coupled", "flows"])
def test_every_chunk_of_a_coded_ring_has_a_header(collectives):
    _, task = _forced(3, P=60)
    options, budget = NetworkOptions(header_bytes=100), Budget(steps=1)
    parts = {"network": options, "collectives": collectives, "budget": budget}
    run = Experiment(task, complete(3), AllReduce(SGD(0.1), reduction=RING), **parts)
    run.run()
    wanted = 4 / 3 * 60 + 8 * (1024 + 100)
    assert run.sim.network.totals().sent.tolist() == pytest.approx([wanted] * 3)


def test_diloco_sends_its_outer_gradients_around_the_ring():
    grads, task = _forced(3, P=60)
    outer, ring = RecordedOptimizer(SGD(1.0)), CodedRing(Quantize(bits=16))
    _rounds(DiLoCo(1, outer, reduction=ring), task, 3)
    for ours, rows in zip(outer.grads, grads):
        torch.testing.assert_close(ours, ring.around(0.1 * rows), rtol=0, atol=1e-5)
        assert (ours - 0.1 * rows.mean(0)).abs().max() < 1e-4


def test_members_that_were_lost_are_in_no_hop(tiny):
    grads, task = _forced(4, P=8)
    mean, budget = RecordedOptimizer(SGD(0.1)), Budget(steps=1, seconds=9000)  # of 32 bytes
    strategy = AllReduce(mean, reduction=RING)
    tiny(strategy, task=task, away={2: (1.1, EVER)}, budget=budget).run()
    torch.testing.assert_close(mean.grads[0], RING.around(grads[0, [0, 1, 3]]))


@pytest.mark.parametrize(
    ("codec", "said"),
    [
        (RandomK(ratio=0.5), "without state and draws"),
        (ErrorFeedback(Sign()), "without state and draws"),
    ],
)
def test_a_codec_of_hops_depends_on_values_only(codec, said):
    with pytest.raises(ValueError, match=said):
        CodedRing(codec)


def test_what_a_reduction_cannot_carry_is_refused_with_what_it_can():
    with pytest.raises(ValueError, match="give the codec to the ring"):
        AllReduce(compressor=TopK(2), reduction=RING)
    with pytest.raises(ValueError, match="not summable; use Dense"):
        DiLoCo(compressor=TopK(2), reduction=Hierarchical())
    with pytest.raises(ValueError, match="use one of the two"):
        AllReduce(aggregation=CoordinateMedian(), reduction=Hierarchical())
    with pytest.raises(ValueError, match="needs the whole row"):
        AllReduce(reduction=RING, overlap="layerwise")
    with pytest.raises(ValueError, match="try 'butterfly'"):
        Reducers("butterflies")


# -- inside sites, then across --------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [AllReduce, lambda *a, **k: DiLoCo(1, SGD(0.1), *a[1:], **k)])
def test_a_hierarchy_has_the_mean_of_all(strategy):
    task, graph = Regression.drawn(5), regions(5, ["East US", "West Europe"])
    found = []
    for reduction in (None, Hierarchical(), Hierarchical("region")):
        run = Experiment(
            task, graph, strategy(SGD(0.1), EXACT, reduction=reduction), budget=Budget(steps=4)
        )
        run.run()
        found.append(run.strategy.consensus(run.sim))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=0)


def test_a_hierarchy_takes_the_time_of_its_levels():
    """Two switches of 3 and 2 hosts on a spine; a vector of 80 bytes."""
    graph, device = datacenter(5, 100.0, 0.0, hosts_per_leaf=3), Device(speed=1e9, mfu=1, jitter=0)
    nx.set_node_attributes(graph, {i: {"hall": "ab"[i // 3]} for i in range(5)})
    took = {}
    for sites in ("router", "hall"):
        strategy = AllReduce(SGD(0.1), EXACT, reduction=Hierarchical(sites))
        task = Quadratic(dimension=20)
        run = Experiment(task, graph, strategy, device=device, budget=Budget(steps=1))
        took[sites] = run.run()["collective"].iloc[-1]
    assert took["router"]["op"] == took["hall"]["op"] == "all_reduce"
    expected = hierarchical_seconds(80.0, [3, 2], 100.0, 100.0)
    for found in took.values():
        assert found["end"] - found["start"] == pytest.approx(expected, rel=1e-6)


def test_an_attribute_that_no_host_has_is_told_with_those_that_there_are():
    strategy = AllReduce(reduction=Hierarchical("hall"))
    run = Experiment(Quadratic(), regions(3), strategy, budget=Budget(steps=1))
    with pytest.raises(ValueError, match="those it has: router, region"):
        run.run()


# -- a subset of the nodes ------------------------------------------------------------------------

SPEEDS = Device(speed=48, mfu=1, jitter=0, spread=0.3)


def _members(trace):
    return [tuple(ids) for ids in trace["collective"]["members"]]


def _left_out(run, **parts):
    """Who took part in the collectives of a run."""
    experiment = run(link_records=True, device=SPEEDS, **parts)
    trace = experiment.run()
    return _members(trace), experiment.sim


@pytest.mark.parametrize("make", [AllReduce, lambda *a, **k: DiLoCo(2, *a, **k)])
def test_the_fastest_train_and_the_others_stand_by(tiny, make):
    strategy = make(SGD(0.1), nodes=Subset(fastest=2))
    groups, sim = _left_out(tiny, strategy=strategy, n=5, budget=Budget(seconds=20))
    fastest = tuple(sorted(np.argsort(-sim.devices.speed)[:2].tolist()))
    assert set(groups) == {fastest}
    assert np.flatnonzero(sim.completed).tolist() == list(fastest)


def test_nodes_are_ranked_by_speed_and_equal_ones_by_id(tiny):
    experiment = tiny(SignSGD(), n=12, budget=Budget(steps=1))
    experiment.run()
    speed = experiment.sim.devices.speed
    speed[:] = [3.0, 1.0, 3.0, 2.0] * 3
    some = {11, 0, 5, 6, 2, 3, 9}
    assert by_speed(experiment.sim, some) == sorted(some, key=lambda node: (-speed[node], node))
    assert by_speed(experiment.sim, ()) == []


def test_all_reduce_among_given_nodes_is_that_of_a_fleet_of_them():
    grads, task = _forced(5)
    mean = RecordedOptimizer(SGD(0.1))
    _rounds(AllReduce(mean, EXACT, nodes=Subset(ids=[4, 1])), task, 5)
    torch.testing.assert_close(torch.stack(mean.grads), grads[:, [1, 4]].mean(1))


@pytest.mark.parametrize("coordinator", [Static, Elastic])
@pytest.mark.parametrize("absent", ["replace", "wait", "without"])
def test_a_member_of_a_subset_that_is_away(tiny, absent, coordinator):
    strategy = AllReduce(SGD(0.1), nodes=Subset(ids=[0, 3], absent=absent))
    groups, sim = _left_out(
        tiny,
        strategy=strategy,
        n=4,
        away={3: (6.0, 14.0)},
        coordinator=coordinator(),
        budget=Budget(seconds=60),
    )
    assert groups[0] == (0, 3)
    if absent == "replace":
        fastest = max((1, 2), key=lambda i: sim.devices.speed[i])
        assert groups[-1] == (0, fastest)
        assert (0,) in groups  # while it downloaded the state
    else:
        assert groups[-1] == (0, 3)
        assert ((0,) in groups) == (absent == "without")
        assert sim.completed[[1, 2]].tolist() == [0, 0]


def test_when_all_members_are_gone_their_place_is_taken_from_the_start(tiny):
    strategy = AllReduce(SGD(0.1), nodes=Subset(ids=[3], absent="replace"))
    run = tiny(strategy, n=3 + 1, away={3: (5.5, EVER)}, device=SPEEDS, budget=Budget(seconds=20))
    trace = run.run()
    assert "state lost" in trace["session"]["event"].tolist()
    assert np.count_nonzero(run.sim.completed) == 2


@pytest.mark.parametrize("coordinator", [Static, Elastic])
def test_a_subset_that_nobody_is_in_waits_for_who_gets_the_state(tiny, coordinator):
    strategy = AllReduce(SGD(0.1), nodes=Subset(ids=[1, 2], absent="without"))
    away = {1: (3.5, 12.0), 2: (3.6, 30.0)}
    run = tiny(strategy, away=away, coordinator=coordinator(), budget=Budget(seconds=20))
    compute = run.run()["compute"]
    assert not compute["start"].between(4, 12, inclusive="left").any()
    assert run.sim.completed[1] > run.sim.completed[2] > 0
    assert run.sim.completed[[0, 3]].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "give one of them"),
        ({"fastest": 2, "ids": [1]}, "give one of them"),
        ({"fastest": 0}, "must be >= 1"),
        ({"ids": [1, 1]}, "different ids"),
        ({"ids": [1], "absent": "cry"}, "replace, wait, without"),
    ],
)
def test_a_subset_that_is_none_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        Subset(**arguments)


def test_a_subset_of_nodes_that_are_not_there_is_refused():
    run = Experiment(Quadratic(), complete(3), AllReduce(nodes=Subset(ids=[7])))
    with pytest.raises(ValueError, match="between 0 and 2"):
        run.run()


# -- bits that vote -------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", ["server", "gather"])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_majority_of_signs_is_that_of_numpy(n, exchange):
    grads, task = _forced(n)
    strategy = SignSGD(0.1, weight_decay=0.05, exchange=exchange)
    ours, _ = _rounds(strategy, task, n)
    x = task._start.numpy().copy()
    for t, rows in enumerate(grads.numpy()):
        x -= 0.1 * (np.sign(np.where(rows < 0, -1, 1).sum(0)) + 0.05 * x)
        np.testing.assert_allclose(ours[t + 1].numpy(), x, rtol=0, atol=1e-15)


def test_signum_votes_on_momentum():
    grads, task = _forced(3)
    ours, _ = _rounds(SignSGD(0.1, momentum=0.9, schedule=Listed(torch.arange(6.0))), task, 3)
    x, momentum = task._start.numpy().copy(), np.zeros((3, 10))
    for t, rows in enumerate(grads.numpy()):
        momentum = 0.9 * momentum + 0.1 * rows
        x -= 0.1 * t * np.sign(np.sign(momentum).sum(0))
        np.testing.assert_allclose(ours[t + 1].numpy(), x, rtol=0, atol=1e-14)


def test_a_vote_takes_a_bit_up_and_a_bit_down():
    """80 parameters are 10 bytes: the server sends and gets n - 1 times that, the others once."""
    _, task = _forced(4, P=80)
    run = Experiment(task, complete(4), SignSGD(0.1), budget=Budget(steps=1))
    run.run()
    assert sorted(run.sim.network.totals().sent.tolist()) == pytest.approx([10, 10, 10, 30])


# -- errors that are fed back ---------------------------------------------------------------------


def _sgd(task, n, steps=6):
    return _rounds(AllReduce(SGD(0.1), EXACT), task, n)[0]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("strategy", [EFSGD(0.1, EXACT), EF21(0.1, EXACT)])
def test_with_exact_codes_feedback_is_plain_sgd(strategy, n):
    task = Regression.drawn(n)
    torch.testing.assert_close(_rounds(strategy, task, n)[0], _sgd(task, n), rtol=0, atol=1e-14)


def test_ef_sign_sgd_is_that_of_numpy():
    grads, task = _forced(3)
    factors = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.1, 1.0])
    ours, _ = _rounds(EFSGD(0.1, schedule=Listed(factors)), task, 3)
    x, error = task._start.numpy().copy(), np.zeros((3, 10))
    for t, rows in enumerate(grads.numpy()):
        p = 0.1 * float(factors[t]) * rows + error
        scale = np.abs(p).mean(1, keepdims=True).astype(np.float32)  # as it travels
        sent = scale * np.where(p < 0, -1, 1)
        error = p - sent
        x -= sent.mean(0)
        np.testing.assert_allclose(ours[t + 1].numpy(), x, rtol=0, atol=1e-13)


def _largest(rows, k):
    """The k largest of each row, the lowest index first among equals."""
    kept = np.zeros_like(rows)
    for row, out in zip(rows, kept):
        at = np.argsort(-np.abs(row), kind="stable")[:k]
        out[at] = row[at]
    return kept


def test_ef21_is_that_of_numpy():
    grads, task = _forced(3)
    ours, _ = _rounds(EF21(0.1, TopK(k=2, value_dtype="native")), task, 3)
    x, h = task._start.numpy().copy(), np.zeros((3, 10))
    for t, rows in enumerate(grads.numpy()):
        h += _largest(rows - h, 2)
        x -= 0.1 * h.mean(0)
        np.testing.assert_allclose(ours[t + 1].numpy(), x, rtol=0, atol=1e-14)


def test_a_joiner_of_ef21_downloads_the_mean_of_what_is_tracked(tiny):
    """Without it, it could not take the next step: parameters and that mean, 2 rows of 32 bytes."""
    run = tiny(EF21(0.1, TopK(2)), away={3: (2.5, 5.2)}, coordinator=Elastic())
    run.run()
    assert run.sim.trace["transfer"]["nbytes"].iloc[0] == 2 * 32


def test_what_a_leaver_was_known_for_is_forgotten(tiny):
    grads, task = _forced(4, P=8)
    strategy = EF21(0.1, TopK(k=2, value_dtype="native"))
    rounds = RecordedRounds(lambda sim: strategy.consensus(sim))
    away, budget = {1: (1.5, EVER)}, Budget(steps=3, seconds=60)  # a payload is on its way
    tiny(strategy, task=task, away=away, coordinator=rounds, budget=budget).run()
    x, h = task._start.numpy().copy(), np.zeros((4, 8))
    for t, rows in enumerate(grads[:3].numpy()):
        h += _largest(rows - h, 2)
        x = x - 0.1 * h[[0, 2, 3]].mean(0)
        np.testing.assert_allclose(rounds.notes[t + 1].numpy(), x, rtol=0, atol=1e-14)


# -- 1-bit Adam -----------------------------------------------------------------------------------


def _adam_then_bits(grads, start, warmup, compress, lr=0.1, b1=0.9, b2=0.95, eps=1e-8):
    """Algorithm 1 with Adam's bias corrections, node by node."""
    x, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    errors, server = np.zeros(grads.shape[1:]), np.zeros_like(start)
    for t, rows in enumerate(grads):
        if t < warmup:
            g = rows.mean(0)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        else:
            sent = np.zeros_like(errors)
            for i, g in enumerate(rows):
                corrected = b1 * m + (1 - b1) * g + errors[i]
                sent[i] = compress(corrected)
                errors[i] = corrected - sent[i]
            total = sent.mean(0) + server
            m = compress(total)
            server = total - m
        root = np.sqrt(v / (1 - b2 ** min(t + 1, warmup))) + eps
        x = x - lr * m / (1 - b1 ** (t + 1)) / root
        yield x


def _signs(p):
    return np.float32(np.abs(p).mean()) * np.where(p < 0, -1.0, 1.0)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("codec", "compress"), [(Sign(), _signs), (EXACT, lambda p: p)], ids=["signs", "exact"]
)
def test_one_bit_adam_is_that_of_numpy(codec, compress, n):
    grads, task = _forced(n, steps=8)
    strategy = OneBitAdam(AdamW(lr=0.1), warmup=3, compressor=codec)
    ours, _ = _rounds(strategy, task, n, budget=Budget(steps=8))
    wanted = _adam_then_bits(grads.numpy(), task._start.numpy(), 3, compress)
    for t, x in enumerate(wanted):
        np.testing.assert_allclose(ours[t + 1].numpy(), x, rtol=0, atol=1e-11)


def test_the_warm_up_is_all_reduce_with_adam():
    task, adam = Regression.drawn(3), AdamW(lr=0.1, weight_decay=0.1)
    ours, _ = _rounds(OneBitAdam(adam, warmup=100), task, 3)
    theirs, _ = _rounds(AllReduce(adam, EXACT), task, 3)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_bits_of_momentum_go_to_their_servers_and_back():
    """`2 (N - 1) / N` of 10 bytes of signs and 4 of scale, after a step of 640 bytes of float64."""
    _, task = _forced(4, P=80)
    run = Experiment(task, complete(4), OneBitAdam(warmup=1), budget=Budget(steps=3))
    run.run()
    wanted = 1.5 * (320 + 2 * 14)
    assert run.sim.network.totals().sent.tolist() == pytest.approx([wanted] * 4)


def test_the_error_of_a_servers_shard_leaves_with_it(idle):
    """Node 1 of four leaves: what it kept of columns 2 and 3 of 8 is gone."""
    sim = idle(away={1: (0.5, 0.7)})
    before, error = sim.group(range(4)), torch.arange(1.0, 9.0)
    assert OneBitAdam._kept(error, before) is error
    sim.run(until=1.0)
    assert OneBitAdam._kept(error, before).tolist() == [1, 2, 0, 0, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"optimizer": SGD(0.1)}, "must be AdamW"),
        ({"warmup": 0}, "must be >= 1"),
        ({"compressor": ErrorFeedback(Sign())}, "without state"),
    ],
)
def test_one_bit_adam_says_what_it_needs(arguments, said):
    with pytest.raises(ValueError, match=said):
        OneBitAdam(**arguments)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AllReduce(accumulate=0), "accumulate=0"),
        (lambda: AllReduce(samples=[1, 0]), "numbers > 0"),
        (lambda: AllReduce(samples=[1, 2], aggregation=Krum()), "Krum.* has no form for members"),
        (lambda: SignSGD(momentum=1.0), r"momentum=1.0: must be in \[0, 1\)"),
        (lambda: SignSGD(exchange="post"), "'server' or 'gather'"),
        (lambda: EFSGD(lr=0.0), "lr=0.0"),
        (lambda: EF21(lr=-1.0), "lr=-1.0"),
    ],
)
def test_impossible_arguments_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_samples_are_one_number_per_node():
    with pytest.raises(ValueError, match="each of the 3 nodes"):
        Experiment(Quadratic(), complete(3), AllReduce(samples=[1, 2])).run()


# -- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("name", FAMILY)
def test_a_small_fleet_learns(name, n):
    trace = Experiment(
        Regression.drawn(n),
        complete(n),
        FAMILY[name],
        local=SGD(0.1),
        budget=Budget(steps=24),
    ).run()
    loss = trace["metric"]["loss"]
    assert loss.iloc[-1] < 0.9 * loss.iloc[0]


@pytest.mark.parametrize("name", FAMILY)
def test_a_thousand_nodes(name):
    run = Experiment(
        Quadratic(dimension=16), datacenter(1000), FAMILY[name], budget=Budget(steps=4)
    )
    loss = run.run()["metric"]["loss"]
    assert loss.iloc[-1] < loss.iloc[0]


@pytest.mark.parametrize("name", FAMILY)
def test_bytes_and_times_without_values_are_those_with_them(name):
    found = []
    for values in (True, False):
        compute = ComputeOptions(values=values)
        run = Experiment(
            Quadratic(dimension=64),
            regions(5, ["East US", "West Europe"]),
            FAMILY[name],
            budget=Budget(steps=6),
            compute=compute,
        )
        found.append(run.run()["metric"][["time", "nbytes"]].iloc[-1].tolist())
    assert found[0] == pytest.approx(found[1])
