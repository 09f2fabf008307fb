"""Strategies against each other where theory says that they agree, alone, and run twice."""

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.experiment import Experiment
from experiments.tasks.quadratic import Quadratic
from experiments.validate.golden.problems import Regression
from experiments.validate.golden.recorders import RecordedOptimizer, RecordedRounds, rows_of
from optimizers import (
    ADPSGD,
    CHOCO,
    DPSGD,
    EF21,
    EFSGD,
    SGD,
    SGP,
    SPARTA,
    AdamW,
    AllReduce,
    AsyncDiLoCo,
    DecoupledDiLoCo,
    DelayedDiLoCo,
    DelayedNesterov,
    DeMo,
    DiLoCo,
    DyLU,
    EagerDiLoCo,
    FedAvg,
    Moshpit,
    NoLoCo,
    OneBitAdam,
    ParameterServer,
    PowerSGD,
    PsycheDeMo,
    SignSGD,
    Single,
    SparseLoCo,
    SPARTADiLoCo,
    StreamingDiLoCo,
    Subset,
    Vanilla,
)
from optimizers.compression import CodeBook, RandomK, TopK
from optimizers.streaming_diloco import layer_groups
from sim.budget import Budget
from sim.churn import AlwaysOn, Exponential
from sim.compute.device import Device
from sim.compute.layout import Layout
from sim.compute.options import ComputeOptions
from sim.payload import Dense
from sim.reduction import CodedRing, Hierarchical
from topologies import complete, ring

EXACT = Dense("native")
STRATEGIES = {
    "all_reduce": AllReduce(SGD(0.1)),
    "all_reduce_int8_ring": AllReduce(SGD(0.1), accumulate=2, reduction=CodedRing(CodeBook())),
    "all_reduce_subset": AllReduce(SGD(0.1), nodes=Subset(fastest=3)),
    "single": Single(SGD(0.1)),
    "signum": SignSGD(0.02, momentum=0.5),
    "ef_signsgd": EFSGD(0.1),
    "ef21": EF21(0.1, TopK(ratio=0.5)),
    "one_bit_adam": OneBitAdam(AdamW(lr=0.02), warmup=4),
    "diloco": DiLoCo(inner_steps=3),
    "diloco_top_k": DiLoCo(inner_steps=3, compressor=TopK(ratio=0.5)),
    "fedavg": FedAvg(inner_steps=3, fraction=0.7),
    "delayed": DelayedDiLoCo(inner_steps=3, outer=SGD(0.7, 0.5)),
    "eager": EagerDiLoCo(inner_steps=3),
    "streaming": StreamingDiLoCo(inner_steps=4, fragments=2, overlap=1),
    "demo": DeMo(lr=0.02),
    "psyche_demo": PsycheDeMo(lr=0.02),
    "sparse_loco": SparseLoCo(inner_steps=3),
    "noloco": NoLoCo(inner_steps=3),
    "sparta": SPARTA(RandomK(5), delay=1),
    "sparta_diloco": SPARTADiLoCo(inner_steps=3, sparta=SPARTA(RandomK(5))),
    "dpsgd": DPSGD(0.1),
    "dpsgd_adapt_first": DPSGD(0.1, order="adapt_then_combine"),
    "adpsgd": ADPSGD(0.1),
    "choco": CHOCO(0.1, 0.2, compressor=TopK(ratio=0.25)),
    "sgp": SGP(0.1),
    "sgp_late": SGP(0.05, momentum=0.5, overlap=1, leavers="hand_over"),
    "moshpit": Moshpit(inner_steps=3),
    "parameter_server": ParameterServer(0.1),
    "async_diloco": AsyncDiLoCo(3, Vanilla(SGD(0.5)), grace="1ms"),
    "async_diloco_delayed": AsyncDiLoCo(3, DelayedNesterov(), DyLU()),
    "decoupled_diloco": DecoupledDiLoCo(4, quorum=2),
    "power_sgd": PowerSGD(1, min_rate=1.0),
    "power_sgd_half": PowerSGD(1, "one", half_steps=2, min_rate=0.5),
}
PLAIN = {
    "all_reduce": AllReduce(SGD(0.1), EXACT),
    "single": Single(SGD(0.1)),
    "hierarchical": AllReduce(SGD(0.1), EXACT, reduction=Hierarchical()),
    "exact_ring": DiLoCo(1, outer=SGD(1.0), reduction=CodedRing(EXACT)),
    "subset": AllReduce(SGD(0.1), EXACT, nodes=Subset(ids=[0], absent="wait")),
    "ef_sgd": EFSGD(0.1, EXACT),
    "ef21": EF21(0.1, EXACT),
    "diloco": DiLoCo(1, outer=SGD(1.0), compressor=EXACT),
    "fedavg": FedAvg(1, compressor=EXACT),
    "eager": EagerDiLoCo(1, SGD(1.0), EXACT),
    "streaming": StreamingDiLoCo(
        1, fragments=1, overlap=0, mixing=0, outer=SGD(1.0), compressor=EXACT
    ),
    "sparse_loco": SparseLoCo(1, decay=0.0, compressor=TopK(ratio=1.0, value_dtype="native")),
    "noloco": NoLoCo(1, alpha=0.0, beta=1.0),
    "sparta": SPARTA(EXACT),
    "sparta_diloco": SPARTADiLoCo(1, SGD(1.0), EXACT, sparta=SPARTA(EXACT)),
    "dpsgd": DPSGD(0.1),
    "dpsgd_adapt_first": DPSGD(0.1, order="adapt_then_combine"),
    "adpsgd": ADPSGD(0.1),
    "choco": CHOCO(0.1, 1.0, compressor=EXACT),
    "sgp": SGP(0.1),
    "moshpit": Moshpit(1),
    "parameter_server": ParameterServer(0.1),
    "async_diloco": AsyncDiLoCo(1, Vanilla(SGD(1.0)), compressor=EXACT),
    "decoupled_diloco": DecoupledDiLoCo(1, 1, overlap=0, mixing=0, outer=SGD(1.0)),
    "power_sgd": PowerSGD(4, optimizer=SGD(0.1), min_rate=0, value_dtype="native"),
    "power_sgd_half": PowerSGD(
        4, "one", half_steps=2, optimizer=SGD(0.1), min_rate=0, value_dtype="native"
    ),
}
"""Each of them is plain SGD when the node is alone, with inner steps of SGD(0.1)."""


def _consensus(strategy, n=4, task=None, **parts):
    """The consensus model at the start and after each round, [rounds + 1, P], in float64."""
    parts = {"local": SGD(0.1), "budget": Budget(steps=6)} | parts
    rounds = RecordedRounds(lambda sim: strategy.consensus(sim))
    task = task or Regression.drawn(n)
    Experiment(task, complete(n), strategy, coordinator=rounds, **parts).run()
    return torch.stack(rounds.notes)


def _run(name, seed=0, n=5, lazy=True, churn=False):
    """A run on unequal devices whose steps vary and take about as long as a message."""
    nodes = Exponential(up="150ms", down="50ms") if churn else AlwaysOn()
    run = Experiment(
        Regression.drawn(n),
        ring(n),
        STRATEGIES[name],
        local=SGD(0.05),
        seed=seed,
        compute=ComputeOptions(lazy=lazy),
        churn=nodes,
        device=Device(speed="100kFLOPS", mfu=1.0, spread=0.5, jitter=0.3),
        budget=Budget(seconds="400ms") if churn else Budget(steps=12),
    )
    run.run()
    return run.sim


def _assert_equal(one, other, **tolerance):
    """All records of two runs are the same."""
    assert one.trace.kinds == other.trace.kinds
    for kind in one.trace.kinds:
        pd.testing.assert_frame_equal(one.trace[kind], other.trace[kind], **tolerance)


# -- strategies that coincide ---------------------------------------------------------------------


def test_diloco_of_one_plain_step_is_all_reduce():
    diloco = DiLoCo(1, outer=SGD(1.0), compressor=EXACT)
    ours, theirs = _consensus(diloco), _consensus(AllReduce(SGD(0.1), EXACT))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    assert len(ours) == 7


def test_local_sgd_is_the_mean_of_nodes_that_train_alone():
    n, steps = 3, 4
    alone = RecordedOptimizer(SGD(0.1))
    local_sgd = DiLoCo(steps, outer=SGD(1.0), compressor=EXACT)
    together = ComputeOptions(workers=1)  # in one call of the optimizer
    result = _consensus(local_sgd, n, local=alone, budget=Budget(steps=steps), compute=together)
    torch.testing.assert_close(result[1], alone.params[-1].mean(0), rtol=0, atol=1e-14)


def test_streaming_one_fragment_at_once_is_diloco():
    outer, options = SGD(0.7, 0.9, nesterov=True), {"fragments": 1, "overlap": 0, "mixing": 0}
    streaming = StreamingDiLoCo(3, outer=outer, compressor=EXACT, **options)
    diloco = DiLoCo(3, outer, EXACT)
    budget = Budget(steps=12)
    ours, theirs = _consensus(streaming, budget=budget), _consensus(diloco, budget=budget)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    assert len(ours) == 5


def test_gossip_with_everybody_after_the_step_is_all_reduce():
    ours = _consensus(DPSGD(0.1, order="adapt_then_combine"))
    theirs = _consensus(AllReduce(SGD(0.1), EXACT))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_gossip_with_everybody_leaves_equal_parameters():
    rounds = RecordedRounds(rows_of)
    strategy = DPSGD(0.1, order="adapt_then_combine")
    budget = Budget(steps=3)
    run = Experiment(Regression.drawn(4), complete(4), strategy, coordinator=rounds, budget=budget)
    run.run()
    models = rounds.after_rounds
    torch.testing.assert_close(models, models[:, :1].expand_as(models), rtol=0, atol=1e-14)


@pytest.mark.parametrize("order", ["combine_while_adapt", "adapt_then_combine"])
@pytest.mark.parametrize("graph", [complete, ring])
def test_on_equal_quadratics_the_mean_of_gossip_is_all_reduce(graph, order):
    means = []
    for strategy in (DPSGD(0.1, order), AllReduce(SGD(0.1))):
        task = Quadratic(dimension=6, heterogeneity=1.0)  # linear gradients commute with the mean
        rounds = RecordedRounds(lambda sim, strategy=strategy: strategy.consensus(sim))
        budget = Budget(steps=8)
        Experiment(task, graph(5), strategy, coordinator=rounds, budget=budget).run()
        means.append(torch.stack(rounds.notes))
    torch.testing.assert_close(*means, rtol=0, atol=1e-5)


# -- small fleets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_a_node_alone_is_plain_sgd(name):
    task, steps = Regression.drawn(1), 6
    x = task.init(torch.Generator())
    for t in range(steps):
        inputs, targets = task.batch(np.array([0]), np.array([t]))
        grad = torch.func.grad(task.loss)(x, (inputs[0], targets[0]))
        x = x - 0.1 * grad
    budget = Budget(steps=steps)
    run = Experiment(task, complete(1), PLAIN[name], local=SGD(0.1), budget=budget)
    run.run()
    torch.testing.assert_close(PLAIN[name].consensus(run.sim), x, rtol=0, atol=1e-14)


UNAWAITED = {"decoupled_diloco"}
"""Nobody waits for the network, which here takes longer than the whole run."""


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in UNAWAITED])
def test_a_small_fleet_learns(name, n):
    task = Regression.drawn(n)
    budget = Budget(steps=24)
    trace = Experiment(task, complete(n), STRATEGIES[name], local=SGD(0.1), budget=budget).run()
    loss, step = trace["metric"]["loss"], trace["metric"]["step"]
    assert loss.iloc[-1] < 0.9 * loss.iloc[0]
    assert step.iloc[-1] == 24


# -- run twice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("churn", [False, True], ids=["always on", "churn"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_seed_gives_one_trace(name, churn):
    _assert_equal(_run(name, churn=churn), _run(name, churn=churn), check_exact=True)


@pytest.mark.parametrize("name", STRATEGIES)
def test_another_seed_gives_another_trace(name):
    one, other = _run(name), _run(name, seed=1)
    assert one.trace["metric"]["time"].iloc[-1] != other.trace["metric"]["time"].iloc[-1]


@pytest.mark.parametrize("churn", [False, True], ids=["always on", "churn"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_batched_gradients_are_those_of_one_request_at_a_time(name, churn):
    batched, one_by_one = _run(name, churn=churn), _run(name, lazy=False, churn=churn)
    _assert_equal(batched, one_by_one, check_exact=False, rtol=1e-10)


@pytest.mark.parametrize("name", ["adpsgd", "parameter_server", "async_diloco", "decoupled_diloco"])
def test_gradients_of_asynchronous_nodes_are_batched(name):
    batched, one_by_one = _run(name, n=9), _run(name, n=9, lazy=False)
    assert batched.fleet.flushes < one_by_one.fleet.flushes / 2


def test_nodes_come_and_go_in_the_runs_with_churn():
    events = _run("adpsgd", churn=True).trace["session"]["event"].tolist()
    assert {"left", "joined", "admitted"} <= set(events)


def test_the_device_holds_the_state_of_the_optimizer_that_steps_on_it():
    """Two moments of AdamW; DeMo's momentum; all-reduce has no inner optimizer."""
    moments, none = AdamW(lr=0.01), SGD(lr=1.0)
    assert DiLoCo().state_rows(moments) == 2
    assert DeMo().state_rows(moments) == 1
    assert AllReduce(moments).state_rows(none) == 2


@pytest.mark.parametrize("pattern", ["strided", "consecutive"])
@pytest.mark.parametrize("n", range(1, 8))
def test_fragments_are_as_many_as_asked_and_hold_each_tensor_once(n, pattern):
    layout = Layout({f"layers.{i}.{name}": (2,) for i in range(7) for name in ("w", "b")})
    parts = layer_groups(layout, n, pattern)
    assert len(parts) == n
    assert all(parts)
    assert sorted(name for part in parts for name in part) == sorted(layout.shapes)
