"""Rules of aggregation against other programs, and against members that lie."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch

import sim.aggregation
from experiments.experiment import Experiment
from experiments.tasks.quadratic import Quadratic
from optimizers import (
    EF21,
    EFSGD,
    SGD,
    SPARTA,
    AllReduce,
    CentredClipping,
    CoordinateMedian,
    DeMo,
    DiLoCo,
    EagerDiLoCo,
    GeometricMedian,
    Krum,
    Mean,
    Moshpit,
    PowerSGD,
    PsycheDeMo,
    SparseLoCo,
    StreamingDiLoCo,
    TrimmedMean,
)
from optimizers.compression import PerTensor, Quantize, RandomK, TopK
from sim.aggregation import combined
from sim.budget import Budget
from sim.churn import AlwaysOn
from sim.compute.device import Device
from sim.compute.layout import Fragment, Layout
from sim.compute.memory import Estimate
from sim.compute.options import ComputeOptions
from sim.compute.workers import Workers
from sim.coordinators.state_sync import state_nbytes
from sim.network.closed_forms import all_gather_seconds
from sim.payload import Compressor, Context, Dense
from sim.strategy import NodeState
from topologies import complete

RULES = {
    "mean": Mean(),
    "median": CoordinateMedian(),
    "trimmed": TrimmedMean(0.3),
    "krum": Krum(0.3),
    "multi_krum": Krum(0.3, selected=None),
    "clipping": CentredClipping(radius=2.0, iterations=3),
    "geometric": GeometricMedian(iterations=20),
}
ROBUST = {name: rule for name, rule in RULES.items() if name != "mean"}
WEIGHTED = {name: rule for name, rule in RULES.items() if rule.weighted}
CODECS = {"dense": Dense("native"), "top_k": TopK(ratio=0.5), "int8": PerTensor(Quantize(8))}


@pytest.fixture(params=[False, True], ids=["whole", "pieces"])
def pieces(request, monkeypatch):
    """Rows in one piece, or in many of each kind."""
    if request.param:
        monkeypatch.setattr(sim.aggregation, "_BLOCK", 1)
        monkeypatch.setattr(sim.aggregation, "_PIECE", 64)
        monkeypatch.setattr(sim.aggregation, "_SLAB", 200)


def rows_of(n, width=13, seed=0, dtype=torch.float32):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, width))).to(dtype)


def combine(rule, x, codec=CODECS["dense"], weights=None, before=None, workers=1):
    """What a rule makes of rows [n, P] that were sent by a codec."""
    layout = Layout({"a": (1,), "b": (x.shape[1] - 1,)})
    nodes = np.arange(len(x))
    payload, _ = codec.encode(x, codec.init(layout, len(x)), Context(layout, 0, nodes, 0))
    weights = None if weights is None else torch.tensor(weights)
    return combined(rule, payload, Workers(workers), weights, before)


def decoded(x, codec):
    layout = Layout({"a": (1,), "b": (x.shape[1] - 1,)})
    state = codec.init(layout, len(x))
    return codec.encode(x, state, Context(layout, 0, np.arange(len(x)), 0))[0].decode()


# -- against other programs ---------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("n", [1, 2, 3, 6, 37])
def test_the_coordinate_median_is_that_of_numpy(pieces, n, codec):
    x = rows_of(n)
    wanted = np.median(decoded(x, CODECS[codec]).numpy(), axis=0)
    got = combine(CoordinateMedian(), x, CODECS[codec])
    np.testing.assert_array_equal(got.numpy(), wanted)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.49])
@pytest.mark.parametrize("n", [1, 2, 3, 6, 37])
def test_the_trimmed_mean_is_that_of_scipy(pieces, n, share, codec):
    x = rows_of(n)
    wanted = scipy.stats.trim_mean(decoded(x, CODECS[codec]).numpy(), share, axis=0)
    got = combine(TrimmedMean(share), x, CODECS[codec])
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-5, atol=1e-6)


def krum_scores(x, f):
    """By the definition, one distance after the other."""
    x, scores = x.double().numpy(), []
    for i in range(len(x)):
        others = sorted(((x[i] - x[j]) ** 2).sum() for j in range(len(x)) if j != i)
        scores.append(sum(others[: len(x) - f - 2]))
    return np.array(scores)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("n", "f"), [(3, 0), (5, 1), (7, 2), (37, 10)])
def test_krum_is_the_row_of_the_least_score(pieces, n, f, codec):
    x = rows_of(n)
    sent = decoded(x, CODECS[codec])
    wanted = sent[int(krum_scores(sent, f).argmin())]
    torch.testing.assert_close(combine(Krum(f), x, CODECS[codec]), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("selected", [None, 1, 2, 6])
def test_multi_krum_is_the_mean_of_the_rows_of_the_least_scores(pieces, selected):
    x, n, f = rows_of(23, seed=1), 23, 4
    many = n - f - 2 if selected is None else selected
    best = np.argsort(krum_scores(x, f), kind="stable")[:many]
    torch.testing.assert_close(combine(Krum(f, selected), x), x[best].mean(0))


def test_multi_krum_of_all_rows_is_the_mean():
    x = rows_of(9)
    torch.testing.assert_close(combine(Krum(2, selected=9), x), x.mean(0))


def test_krum_tells_rows_apart_that_differ_by_little_beside_what_they_share():
    x = rows_of(9) * 1e-2 + 100.0
    wanted = x[int(krum_scores(x, 2).argmin())]
    torch.testing.assert_close(combine(Krum(2), x), wanted, rtol=0, atol=0)


def test_the_geometric_median_minimises_the_sum_of_distances(pieces):
    x = rows_of(21, width=6, dtype=torch.float64)
    weights = np.random.default_rng(5).uniform(0.5, 2.0, 21)

    def cost(v, w):
        return (w * np.linalg.norm(x.numpy() - v, axis=1)).sum()

    rule = GeometricMedian(iterations=200, smoothing=1e-9)
    for w in (None, weights):
        given = np.ones(21) if w is None else w
        best = scipy.optimize.minimize(cost, np.zeros(6), args=(given,), tol=1e-10).x
        np.testing.assert_allclose(combine(rule, x, weights=w).numpy(), best, atol=1e-5)


def test_on_a_line_the_geometric_median_is_the_median():
    way = torch.tensor([1.0, -2.0, 2.0, 0.0, 1.0, 0.5])
    at = torch.tensor([-3.0, 0.5, 0.7, 1.0, 9.0])
    got = combine(GeometricMedian(iterations=300, smoothing=1e-7), at[:, None] * way)
    torch.testing.assert_close(got, 0.7 * way, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("start", [False, True])
def test_centred_clipping_is_its_formula(pieces, start):
    x = rows_of(19) * torch.linspace(0.1, 5, 19)[:, None]
    centre = rows_of(1, seed=9)[0] if start else torch.zeros(13)
    got = combine(CentredClipping(1.5, 4), x, before=centre if start else None)
    for _ in range(4):
        moves = [(row - centre) * min(1.0, 1.5 / float((row - centre).norm())) for row in x]
        centre = centre + sum(moves) / len(x)
    torch.testing.assert_close(got, centre)


def test_clipping_to_a_large_ball_is_the_mean():
    x = rows_of(7)
    torch.testing.assert_close(combine(CentredClipping(radius=1e6), x), x.mean(0))


# -- what every rule keeps ----------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_members_does_not_matter(rule):
    x = rows_of(11)
    order = torch.from_numpy(np.random.default_rng(2).permutation(11))
    torch.testing.assert_close(combine(RULES[rule], x[order]), combine(RULES[rule], x))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [1, 2, 3, 1000])
def test_equal_rows_give_that_row(rule, n):
    row = rows_of(1)[0] / 10  # within the ball of the clipping
    torch.testing.assert_close(combine(RULES[rule], row.expand(n, -1).contiguous()), row)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rule", RULES)
def test_the_number_of_workers_changes_no_bit(monkeypatch, rule, codec):
    monkeypatch.setattr(sim.aggregation, "_BLOCK", 1)
    monkeypatch.setattr(sim.aggregation, "_PIECE", 512)
    monkeypatch.setattr(sim.aggregation, "_SLAB", 4096)
    x = rows_of(70, width=101)
    alone, many = (combine(RULES[rule], x, CODECS[codec], workers=w) for w in (1, 4))
    assert torch.equal(alone, many)


@pytest.mark.parametrize("rule", RULES)
def test_rows_are_left_alone_and_their_type_is_kept(rule):
    for dtype, width in itertools.product((torch.float32, torch.float64), (13, 2)):
        x = rows_of(5, width, dtype=dtype)
        before = x.clone()
        assert combine(RULES[rule], x).dtype == dtype
        assert torch.equal(x, before)


@pytest.mark.parametrize("rule", WEIGHTED)
def test_a_member_of_weight_two_counts_as_two(rule):
    x, weights = rows_of(6), [1.0, 2.0, 0.0, 1.0, 3.0, 1.0]
    repeated = x[[0, 1, 1, 3, 4, 4, 4, 5]]
    got = combine(WEIGHTED[rule], x, weights=weights)
    torch.testing.assert_close(got, combine(WEIGHTED[rule], repeated))


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("lie", [np.nan, np.inf, -np.inf, 1e38])
def test_a_row_that_is_no_number_is_harmless(rule, lie):
    x = rows_of(9)
    x[4] = lie
    x[7, 3] = lie
    got = combine(ROBUST[rule], x)
    assert got.isfinite().all()
    assert got.abs().max() < 3


# -- too few members ----------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "least"), [(TrimmedMean(2), 5), (Krum(2), 7)])
def test_a_number_of_liars_needs_members(rule, least):
    assert combine(rule, rows_of(least)).isfinite().all()
    assert rule.tolerates(least) == 2
    with pytest.raises(ValueError, match=rf"2 that lie need {least} members, and {least - 1} have"):
        combine(rule, rows_of(least - 1))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_share_of_liars_goes_with_the_members_that_are_there(rule, n):
    x = rows_of(n) / 10
    got = combine(RULES[rule], x)
    assert got.isfinite().all()
    assert 2 * RULES[rule].tolerates(n) < n
    if n == 1:
        torch.testing.assert_close(got, x[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrimmedMean(0.5), r"byzantine=0.5: .* the nearest is 0.49"),
        (lambda: Krum(-1), r"byzantine=-1: .* the nearest is 0"),
        (lambda: TrimmedMean(float("nan")), r"byzantine=nan"),
        (lambda: Krum(selected=0), "selected=0: must be >= 1"),
        (lambda: CentredClipping(radius=0.0), "radius=0.0: must be a number > 0"),
        (lambda: CentredClipping(iterations=0), "iterations=0: must be >= 1"),
        (lambda: GeometricMedian(smoothing=0.0), "smoothing=0.0: must be > 0"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- as a collective ----------------------------------------------------------------------------


def test_a_rule_gathers_the_rows_and_charges_their_way_and_the_arithmetic(tiny):
    """Four nodes, 32 bytes a row, 32 bytes/s, 0.1 s; 1 kB/s of memory."""
    device = Device(speed=48, mfu=1, jitter=0, memory_bandwidth=1e3)
    codec = Dense("native")
    strategy = AllReduce(SGD(lr=0.1), codec, CoordinateMedian())
    trace = tiny(strategy, device=device, budget=Budget(steps=2)).run()
    first = trace["collective"].iloc[0]
    assert first["op"] == "all_gather"
    assert trace["metric"]["nbytes"].max() == pytest.approx(2 * 4 * 3 * 32)
    step = trace["round"]["time"].iloc[1]
    decode, rows = codec.passes * 32 / 1e3, CoordinateMedian.passes * 32 / 1e3
    encode, read = decode, 4 * 32 / 1e3
    way = all_gather_seconds(32, 4, 32, 0.1)
    setting = strategy.passes * 32 / 1e3  # parameters are set, which the next step pays for
    wanted = setting + 1.0 + encode + way + read + decode + 3 * decode + 4 * rows
    assert step == pytest.approx(wanted)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("lost", [None, 2])
def test_members_that_are_lost_have_no_say(idle, rule, lost):
    sim = idle(away={} if lost is None else {lost: (0.5, np.inf)})
    x = rows_of(4, 8)
    sim.run(until=0.2)
    got = sim.run(until=sim.group(range(4)).average(x, Dense("native"), rule=RULES[rule]))
    inside = [i for i in range(4) if i != lost]
    torch.testing.assert_close(got, combine(RULES[rule], x[inside]))


@pytest.mark.parametrize("rule", ROBUST)
def test_of_nobody_there_is_no_aggregate(idle, rule):
    sim = idle(away={i: (0.3, np.inf) for i in range(4)})
    everybody, nobody = sim.group(range(4)), sim.group([])
    dense, robust = Dense("native"), ROBUST[rule]
    assert sim.run(until=nobody.average(nobody.params, dense, rule=robust)) is None
    assert sim.run(until=everybody.average(everybody.grad(), dense, rule=robust)) is None


@pytest.mark.parametrize("rule", WEIGHTED)
def test_weights_of_lost_members_do_not_count(idle, rule):
    sim, weights = idle(away={1: (0.5, np.inf)}), torch.tensor([1.0, 3.0, 2.0, 5.0])
    x = rows_of(4, 8)
    sim.run(until=0.2)
    event = sim.group(range(4)).average(x, Dense("native"), weights, rule=WEIGHTED[rule])
    wanted = combine(WEIGHTED[rule], x[[0, 2, 3]], weights=[1.0, 2.0, 5.0])
    torch.testing.assert_close(sim.run(until=event), wanted)


def test_weights_are_refused_by_a_rule_that_has_no_such_form(idle):
    group = idle().group()
    with pytest.raises(ValueError, match=r"weights: Krum.* has no form for members of unequal"):
        group.average(group.params, Dense(), torch.ones(4), rule=Krum())


def test_the_centre_is_carried_from_round_to_round_and_downloaded_by_joiners(idle):
    sim, rule, dense = idle(), CentredClipping(radius=0.5), Dense("native")
    x, before = rows_of(4, 8), state_nbytes(idle())
    first = sim.run(until=sim.group().average(x, dense, rule=rule))
    torch.testing.assert_close(first, combine(rule, x))
    second = sim.run(until=sim.group().average(x, dense, rule=rule))
    torch.testing.assert_close(second, combine(rule, x, before=first))
    assert state_nbytes(sim) == before + 32


def test_each_fragment_and_each_name_has_a_centre_of_its_own(idle):
    sim, rule, dense = idle(), CentredClipping(radius=0.5), Dense("native")
    group, layout = sim.group(), sim.fleet.layout
    group["params"], group["momentum"] = rows_of(4, 8), rows_of(4, 8, seed=1)
    parts = [group.part(Fragment(layout, (name,))) for name in layout.shapes]
    for where in (group, *parts):
        for name in ("params", "momentum"):
            first = sim.run(until=where.average(where[name], dense, rule=rule))
            wanted = combine(rule, where[name].tensor())
            torch.testing.assert_close(first, wanted)
    assert sim.run(until=group.average(rows_of(4, 8), dense, rule=rule)) is not None
    assert sum(key.startswith("aggregate") for key in sim.shared) == 7


STRATEGIES = {
    "all_reduce": AllReduce(SGD(0.1)),
    "all_reduce_layerwise": AllReduce(SGD(0.1), overlap="layerwise"),
    "ef_sgd": EFSGD(),
    "diloco": DiLoCo(inner_steps=3),
    "diloco_layerwise": DiLoCo(inner_steps=3, overlap="layerwise"),
    "streaming": StreamingDiLoCo(inner_steps=4, fragments=2, overlap=1),
    "eager": EagerDiLoCo(inner_steps=3),
    "sparse_loco": SparseLoCo(inner_steps=3),
    "power_sgd": PowerSGD(1, "one", half_steps=2),
    "demo": DeMo(0.02),
    "psyche_demo": PsycheDeMo(0.02),
    "ef21": EF21(0.1, TopK(ratio=0.5)),
}


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_on_the_meta_device_a_run_takes_the_same_time(tiny, strategy, rule):
    times = []
    for values in (True, False):
        chosen = replace(STRATEGIES[strategy], aggregation=ROBUST[rule])
        options = ComputeOptions() if values else ComputeOptions(values=False)
        trace = tiny(chosen, compute=options, budget=Budget(steps=9)).run()
        times.append(trace["metric"]["time"].max())
        assert (trace["collective"]["op"] == "all_gather").all()
    assert times[0] == times[1] > 9


@pytest.mark.parametrize("rule", ROBUST)
def test_a_run_has_the_same_bits_with_any_number_of_workers(tiny, monkeypatch, rule):
    monkeypatch.setattr(sim.aggregation, "_BLOCK", 1)
    monkeypatch.setattr(sim.aggregation, "_PIECE", 64)
    consensus = []
    for workers in (1, 3):
        strategy = DiLoCo(inner_steps=2, aggregation=ROBUST[rule])
        options = ComputeOptions(workers=workers)
        experiment = tiny(strategy, n=40, compute=options, budget=Budget(steps=8))
        experiment.run()
        consensus.append(strategy.consensus(experiment.sim))
    assert torch.equal(*consensus)


EXACT = Dense("native")
ALIKE = {
    "diloco": DiLoCo(1, SGD(1.0), EXACT),
    "all_reduce": AllReduce(SGD(0.1), EXACT),
    "sparse_loco": SparseLoCo(1, decay=0.0, compressor=TopK(ratio=1.0, value_dtype="native")),
    "demo": DeMo(0.1, 0.0, TopK(ratio=1.0, value_dtype="native"), sign=False),
    "ef21": EF21(0.1, TopK(ratio=1.0, value_dtype="native")),
    "sparta": SPARTA(EXACT),
    "moshpit": Moshpit(1, dims=1),
    "power_sgd": PowerSGD(4, "one", optimizer=SGD(0.1), min_rate=0.0),
}
"""Of one plain step of gradient descent, each its own way."""


def one_step(strategy, rule, n=7):
    """The consensus after a step; the task has one matrix of 4 x 4, which rank 4 spans."""
    task = Quadratic(dimension=16, condition=4.0, heterogeneity=1.0)
    task.layout = Layout({"w": (4, 4)})
    budget = Budget(steps=1)
    chosen = replace(strategy, aggregation=rule)
    run = Experiment(task, complete(n), chosen, local=SGD(0.1), budget=budget)
    run.run()
    return chosen.consensus(run.sim), run.sim


@pytest.mark.parametrize("rule", [name for name in ROBUST if not ROBUST[name].carries])
@pytest.mark.parametrize("strategy", ALIKE)
def test_strategies_that_combine_rows_of_all_take_the_same_step(strategy, rule):
    ours, sim = one_step(ALIKE[strategy], ROBUST[rule])
    theirs, _ = one_step(ALIKE["diloco"], ROBUST[rule])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert set(sim.trace["collective"]["op"]) == {"all_gather"}
    mean, _ = one_step(ALIKE["diloco"], Mean())
    assert (theirs - mean).abs().max() > 1e-3


def test_sparta_takes_the_median_of_the_entries_that_are_sent():
    task = Quadratic(dimension=16, heterogeneity=1.0)
    strategy = SPARTA(RandomK(5), aggregation=CoordinateMedian())
    run = Experiment(task, complete(5), strategy, local=SGD(0.1), budget=Budget(steps=1))
    run.run()
    start, rows = run.sim.initial_params(), run.sim.group().params.tensor()
    gradients = task._spectrum * (start.numpy() - task.optimum - task.offsets)
    alone = start - 0.1 * torch.from_numpy(gradients).float()
    sent = (rows == rows[0]).all(0)
    assert sent.sum() == 5
    expected = torch.where(sent, torch.from_numpy(np.median(alone.numpy(), axis=0)), alone)
    torch.testing.assert_close(rows, expected)


@pytest.mark.parametrize("make", [SPARTA, Moshpit])
def test_a_rule_that_begins_where_it_ended_is_refused_where_rows_are_others_each_time(make):
    with pytest.raises(
        ValueError, match=r"strategy\.aggregation=CentredClipping.*CoordinateMedian"
    ):
        make(aggregation=CentredClipping())


def test_low_rank_with_residuals_against_the_mean_refuses_another_rule():
    with pytest.raises(ValueError, match=r"strategy\.aggregation=Krum.*sides='one'"):
        PowerSGD(aggregation=Krum())


def test_a_mean_over_senders_and_a_rule_of_rows_are_not_both_possible():
    with pytest.raises(ValueError, match=r"strategy\.aggregation=Krum.*aggregate='all'"):
        SparseLoCo(aggregate="senders", aggregation=Krum())


def test_gathered_rows_are_in_every_process():
    layout, state = Layout.flat(100), NodeState(sends=Dense(), params=False, local=False)
    summed = Estimate(8, layout, SGD(0.1), state, own=2)
    gathered = Estimate(8, layout, SGD(0.1), replace(state, gathers=True), own=2)
    assert (summed.total, gathered.total) == (2 * 2 * 400, 2 * 8 * 400)


# -- members that lie ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Lying(Compressor):
    """Some nodes send their rows times a factor: -1 flips signs, a large one shouts."""

    codec: Compressor
    liars: tuple[int, ...]
    factor: float

    separable = True

    def encode(self, x, state, ctx):
        factor = np.where(np.isin(ctx.nodes, self.liars), self.factor, 1.0)
        return self.codec.encode(x * torch.from_numpy(factor).to(x)[:, None], state, ctx)

    def decode(self, payload):
        raise AssertionError("its payloads are those of the codec")


TRAINED = {
    "all_reduce": AllReduce(SGD(0.2)),
    "sparse_loco": SparseLoCo(inner_steps=5, lr=0.7),
    "diloco": DiLoCo(inner_steps=5, outer=SGD(0.7)),
    "streaming": StreamingDiLoCo(inner_steps=4, fragments=1, overlap=1, outer=SGD(0.7)),
}
LIES = {"flipped": -4.0, "large": -1e4, "nothing but noughts": 0.0}


def final_loss(strategy, rule, factor):
    """Excess loss of 11 nodes of which three lie, over that of the optimum."""
    task = Quadratic(dimension=16, condition=4.0, heterogeneity=0.05, noise=0.05)
    chosen = replace(
        TRAINED[strategy], compressor=Lying(Dense(), (1, 5, 8), factor), aggregation=rule
    )
    metric = Experiment(
        task,
        complete(11),
        chosen,
        local=SGD(0.2),
        device=Device(speed=48, mfu=1, jitter=0),
        churn=AlwaysOn(),
        budget=Budget(steps=60),
    ).run()["metric"]
    return metric["loss"].iloc[-1] / metric["loss"].iloc[0]


TUNED = {
    "median": CoordinateMedian(),
    "trimmed": TrimmedMean(3),
    "krum": Krum(3),
    "multi_krum": Krum(3, selected=None),
    "clipping": CentredClipping(radius=0.3, iterations=3),
    "geometric": GeometricMedian(),
}


@pytest.mark.parametrize("strategy", TRAINED)
@pytest.mark.parametrize("lie", ["flipped", "large"])
def test_the_mean_breaks_when_members_lie(strategy, lie):
    assert not final_loss(strategy, Mean(), LIES[lie]) < 1.0


CASES = [("all_reduce", lie) for lie in LIES]
CASES += [("diloco", "flipped"), ("streaming", "large"), ("sparse_loco", "flipped")]


@pytest.mark.parametrize(("strategy", "lie"), CASES)
@pytest.mark.parametrize("rule", TUNED)
def test_robust_rules_learn_although_members_lie(strategy, lie, rule):
    assert final_loss(strategy, TUNED[rule], LIES[lie]) < 0.1
