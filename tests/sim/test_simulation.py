"""A whole run: common random numbers, closed forms of time and bytes, values or none."""

import math

import numpy as np
import pytest
import torch

from optimizers import (
    ADPSGD,
    CHOCO,
    DPSGD,
    SGD,
    SGP,
    SPARTA,
    AdamW,
    AllReduce,
    DeMo,
    DiLoCo,
    Moshpit,
    NoLoCo,
    ParameterServer,
    Single,
    SparseLoCo,
    SPARTADiLoCo,
    StreamingDiLoCo,
)
from optimizers.compression import DCT, Chain, ErrorFeedback, PerTensor, RandomK, Threshold, TopK
from sim.budget import Budget
from sim.churn import Exponential
from sim.compute.device import Device
from sim.compute.layout import Layout
from sim.compute.options import ComputeOptions
from sim.coordinators import Elastic
from sim.network.closed_forms import ring_all_reduce_seconds
from sim.workload import Workload

EVER = math.inf
FULL, META = ComputeOptions(), ComputeOptions(values=False)
STRATEGIES = {
    "all_reduce": AllReduce(SGD(lr=0.1)),
    "all_reduce_top_k": AllReduce(SGD(lr=0.1), ErrorFeedback(TopK(2))),
    "single": Single(SGD(lr=0.1)),
    "diloco": DiLoCo(inner_steps=3),
    "streaming": StreamingDiLoCo(inner_steps=4, fragments=2, overlap=1),
    "demo": DeMo(compressor=Chain(DCT(8), TopK(2))),
    "sparse_loco": SparseLoCo(inner_steps=3, compressor=PerTensor(TopK(2)), clip_to_median=True),
    "noloco": NoLoCo(inner_steps=3),
    "sparta": SPARTA(RandomK(3), delay=1),
    "sparta_diloco": SPARTADiLoCo(inner_steps=3, sparta=SPARTA(RandomK(3))),
    "dpsgd": DPSGD(),
    "dpsgd_adapt": DPSGD(order="adapt_then_combine"),
    "adpsgd": ADPSGD(),
    "choco": CHOCO(compressor=TopK(2)),
    "sgp": SGP(momentum=0.5, overlap=1, leavers="hand_over"),
    "moshpit": Moshpit(inner_steps=2),
    "parameter_server": ParameterServer(patience=5),
}
PASS = 0.1
"""Seconds that a device of 320 bytes/s takes to read 8 float32."""
MEMORY = Device(speed=48, mfu=1, jitter=0, memory_bandwidth=320)
RING = ring_all_reduce_seconds(32, 4, 32, 0.1)


# -- common random numbers --------------------------------------------------------------------


def _sessions(trace):
    table = trace["session"]
    table = table[table["event"].isin(["left", "joined"])]
    return table[["time", "node", "event"]].to_numpy().tolist()


def test_every_strategy_meets_the_same_sessions(tiny):
    churn, budget = Exponential(up=5, down=2), Budget(seconds=25)
    first, *others = (
        _sessions(tiny(strategy, churn=churn, budget=budget).run())
        for strategy in STRATEGIES.values()
    )
    assert len(first) > 10
    assert all(other == first for other in others)


def test_every_strategy_meets_the_same_devices_and_step_times(tiny):
    device = Device(speed=48, mfu=1, spread=0.5, jitter=0.3, stragglers=(0.1, 5))
    sims = [tiny(strategy, device=device).build() for strategy in STRATEGIES.values()]
    for sim in sims:
        assert (sim.devices.speed == sims[0].devices.speed).all()
    nodes = np.arange(4)
    train = sims[0].devices.seconds(48, nodes, nodes * 0, count=5)
    one_by_one = sum(sims[1].devices.seconds(48, nodes, nodes * 0 + step) for step in range(5))
    assert train == pytest.approx(one_by_one)


def test_another_seed_is_another_world(tiny):
    churn = Exponential(up=5, down=2)
    first, other = (_sessions(tiny(churn=churn, seed=seed).run()) for seed in (0, 1))
    assert first != other


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_same_seed_gives_the_same_trace(tiny, name):
    options = {"churn": Exponential(up=5, down=1), "coordinator": Elastic(), "evaluations": 5}
    first, again = (
        tiny(STRATEGIES[name], **options, budget=Budget(seconds=20)).run() for _ in range(2)
    )
    assert first.kinds == again.kinds
    for kind in first.kinds:
        assert first[kind].equals(again[kind])


@pytest.mark.parametrize("name", STRATEGIES)
def test_batching_the_gradients_of_different_nodes_changes_nothing(tiny, name):
    device = Device(speed=48, mfu=1, spread=0.3, jitter=0.3)
    options = {"churn": Exponential(up=15, down=1), "device": device, "budget": Budget(seconds=20)}
    lazy, eager = (
        tiny(STRATEGIES[name], compute=ComputeOptions(lazy=lazy), **options).run()
        for lazy in (True, False)
    )
    for column in ("time", "step", "nbytes", "wasted"):
        assert lazy["metric"][column].tolist() == eager["metric"][column].tolist()
    assert lazy["metric"]["loss"].tolist() == pytest.approx(eager["metric"]["loss"].tolist())


# -- time -------------------------------------------------------------------------------------


def test_a_local_step_takes_its_flop_over_the_speed_of_the_device(tiny):
    trace = tiny(budget=Budget(steps=3)).run()
    work = trace["compute"]
    assert (work["end"] - work["start"]).tolist() == pytest.approx([1.0] * 3)


def test_a_step_of_data_parallelism_is_compute_codec_ring_and_optimizer(tiny):
    """SGD touches 3 vectors; encoding and decoding float32 touch 2 each."""
    trace = tiny(AllReduce(SGD(lr=0.1)), device=MEMORY, budget=Budget(steps=4)).run()
    step = 3 * PASS + 1 + 2 * PASS + RING + 2 * PASS
    assert trace["round"]["time"].tolist() == pytest.approx([step * i for i in range(4)])


def test_a_round_of_diloco_is_inner_steps_codec_ring_and_outer_step(tiny):
    """Three steps of SGD, 3 passes each; Nesterov's outer step 5, theta - params 3."""
    trace = tiny(DiLoCo(inner_steps=3), device=MEMORY, budget=Budget(steps=9)).run()
    step = 3 * (1 + 3 * PASS) + (5 + 3) * PASS + 2 * PASS + RING + 2 * PASS
    assert trace["round"]["time"].tolist() == pytest.approx([step * i for i in range(3)])


def test_adamw_touches_seven_vectors_per_local_step(tiny):
    options = {"device": MEMORY, "budget": Budget(steps=4), "local": AdamW(lr=0.1)}
    trace = tiny(DiLoCo(inner_steps=4, outer=SGD(lr=1.0)), **options).run()
    work = trace["compute"].iloc[0]
    assert work["end"] - work["start"] == pytest.approx(4 * (1 + 7 * PASS) + (3 + 3) * PASS)


def test_overlap_hides_the_ring_behind_the_local_steps(tiny):
    """Two fragments of 5 and 3 values; their rings take 1.5375 and 1.1625 s, hidden in 2 s."""
    strategy = StreamingDiLoCo(inner_steps=8, fragments=2, overlap=2)
    trace = tiny(strategy, budget=Budget(steps=16)).run()
    assert trace["round"]["time"].tolist() == pytest.approx([0, 4, 8, 12])
    assert trace["collective"]["nbytes"].tolist() == [20, 12, 20, 12]


def test_only_gradients_count_as_useful(tiny):
    trace = tiny(AllReduce(SGD(lr=0.1)), device=MEMORY, budget=Budget(steps=4)).run()
    step = 3 * PASS + 1 + 2 * PASS + RING + 2 * PASS
    assert trace["metric"]["utilization"].iloc[-1] == pytest.approx(1 / step)


def test_alone_a_node_is_fully_used(tiny):
    trace = tiny(Single(SGD(lr=0.1)), n=2, budget=Budget(seconds=10.5)).run()
    assert trace["metric"]["utilization"].iloc[-1] == pytest.approx(10 / (2 * 10.5))


def test_online_seconds_are_the_sum_of_the_sessions(idle):
    sim = idle(away={1: [(2.0, 5.0), (6.0, EVER)], 2: (0.0, 9.0)}, budget=Budget(seconds=10))
    sim.run(until=sim.done)
    assert sim.online_seconds().tolist() == pytest.approx([10, 3, 1, 10])
    assert sim.departures.tolist() == [0, 2, 0, 0]


def test_work_of_a_member_that_left_is_not_counted(tiny):
    experiment = tiny(away={2: (0.5, EVER)}, budget=Budget(seconds=1.5))
    experiment.run()
    assert experiment.sim.completed.tolist() == [1, 1, 0, 1]
    assert experiment.sim.busy.tolist() == [1, 1, 0, 1]


# -- bytes ------------------------------------------------------------------------------------

LARGE = Workload("large", Layout({"layer.0": (64, 64), "layer.1": (64,)}), 1.0, 48, 2)
"""4160 parameters, whose weights are kept in 2 bytes."""
SPARSE = Chain(DCT(16), TopK(4))


@pytest.mark.parametrize("compute", [FULL, META], ids=["full", "meta"])
@pytest.mark.parametrize("codec", [SPARSE, TopK(ratio=0.1), ErrorFeedback(TopK(7))], ids=repr)
def test_payloads_are_charged_for_the_shapes_of_the_workload(tiny, codec, compute):
    options = {"workload": LARGE, "compute": compute, "budget": Budget(steps=2)}
    trace = tiny(AllReduce(SGD(lr=0.1), codec), **options).run()
    assert trace["collective"]["nbytes"].tolist() == [codec.nbytes(LARGE.layout)] * 2
    everybody = 2 * 4 * 3 * codec.nbytes(LARGE.layout)
    assert trace["metric"]["nbytes"].iloc[-1] == pytest.approx(everybody)


@pytest.mark.parametrize("compute", [FULL, META], ids=["full", "meta"])
def test_fragments_are_charged_their_share_of_the_workload(tiny, compute):
    strategy = StreamingDiLoCo(inner_steps=4, fragments=2, overlap=1)
    options = {"workload": LARGE, "compute": compute, "budget": Budget(steps=4)}
    trace = tiny(strategy, **options).run()
    assert trace["collective"]["nbytes"].tolist() == [4 * 64 * 64, 4 * 64]


def test_a_tensor_without_a_codec_travels_in_the_width_of_the_workload(tiny):
    trace = tiny(DPSGD(), workload=LARGE, budget=Budget(steps=1)).run()
    assert trace["collective"]["nbytes"].tolist() == [2 * 4160]


def test_a_codec_sized_by_data_is_charged_by_the_density_of_the_trained_model(tiny):
    codec = Threshold(0.5)
    trace = tiny(AllReduce(SGD(lr=0.1), codec), workload=LARGE, budget=Budget(steps=1)).run()
    small = tiny(AllReduce(SGD(lr=0.1), codec), budget=Budget(steps=1)).run()
    ratio = trace["collective"]["nbytes"][0] / small["collective"]["nbytes"][0]
    assert ratio == pytest.approx(4160 / 8, rel=1e-3)


# -- timing only ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_timing_only_gives_the_times_and_bytes_of_the_full_run(tiny, name):
    options = {
        "device": Device(speed=48, mfu=1, spread=0.2, jitter=0.2, memory_bandwidth=3200),
        "coordinator": Elastic(),
        "churn": Exponential(up=15, down=2),
        "budget": Budget(seconds=25),
    }
    full, meta = (tiny(STRATEGIES[name], compute=c, **options).run() for c in (FULL, META))
    assert full.kinds == meta.kinds
    for kind in full.kinds:
        columns = [c for c in full[kind].columns if c not in ("loss", "excess", "spread")]
        assert full[kind][columns].equals(meta[kind][columns])


def test_timing_only_refuses_a_codec_sized_by_data(tiny):
    experiment = tiny(AllReduce(SGD(lr=0.1), Threshold(0.5)), compute=META)
    with pytest.raises(ValueError, match=r"Threshold.*choose a codec of fixed size"):
        experiment.run()


def test_timing_only_knows_no_values(tiny):
    experiment = tiny(compute=META, budget=Budget(steps=2))
    trace = experiment.run()
    assert "loss" not in trace["metric"]
    assert trace["compute"]["loss"].isna().all()
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(experiment.sim.shared["params"][0])


# -- values -----------------------------------------------------------------------------------


def test_data_parallelism_is_gradient_descent_on_the_mean_loss(tiny, quadratic):
    """Error along eigenvalue s shrinks by 1 - lr s per step; offsets cancel over the nodes."""
    quadratic.noise = 0.0
    experiment = tiny(AllReduce(SGD(lr=0.5)), budget=Budget(steps=12))
    experiment.run()
    optimum = torch.from_numpy(quadratic.optimum).float()
    spectrum = torch.logspace(0, math.log10(1 / 4), 8)
    start = experiment.sim.initial_params()
    wanted = optimum + (1 - 0.5 * spectrum) ** 12 * (start - optimum)
    torch.testing.assert_close(experiment.sim.shared["params"], wanted)


def test_one_node_alone_and_data_parallelism_of_one_are_the_same(tiny):
    runs = [
        tiny(strategy(SGD(lr=0.1)), n=2, away={1: (0, EVER)}, budget=Budget(seconds=9.9)).run()
        for strategy in (AllReduce, Single)
    ]
    assert runs[0]["metric"]["loss"].iloc[-1] == runs[1]["metric"]["loss"].iloc[-1]


def test_the_best_node_alone_goes_on_from_its_own_disk(tiny):
    experiment = tiny(
        Single(SGD(lr=0.1)), away={i: (3.5, 7.0 + i) for i in range(4)}, coordinator=Elastic()
    )
    sim = experiment.build()
    with torch.no_grad():
        sim.start()
        sim.run(until=3.4)
        before = sim.shared["params"]
        sim.run(until=7.5)
    assert torch.equal(sim.shared["params"], before)
    assert sim.completed[0] == 3
    with torch.no_grad():
        sim.run(until=9.5)
    assert sim.completed[0] == 5


# -- evaluations and the end ------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_model_is_evaluated_at_most_as_often_as_asked_besides_start_and_end(tiny, name):
    trace = tiny(STRATEGIES[name], budget=Budget(steps=60), evaluations=10).run()
    spent = trace["metric"]["spent"]
    assert spent.iloc[0] == 0
    assert spent.iloc[-1] >= 1
    assert (spent >= 1).sum() == 1
    assert 3 <= len(spent) <= 11
    assert (spent.diff().iloc[1:] > 0).all()


def test_no_moment_is_evaluated_twice(tiny):
    """29 / 50 * 50 is less than 29 in floating point."""
    spent = tiny(ADPSGD(), budget=Budget(steps=50), evaluations=50).run()["metric"]["spent"]
    assert len(spent) == len(set(spent)) == 51


def test_a_metric_says_where_the_run_stands(tiny):
    last = tiny(budget=Budget(steps=5)).run()["metric"].iloc[-1]
    wanted = {
        "time": 5 * (1 + RING),
        "step": 5,
        "node_steps": 20,
        "tokens": 20,
        "nbytes": 5 * 4 * 48,
        "nbytes_per_node": 5 * 48,
        "wasted": 0,
        "online": 4,
        "left": 0,
        "joined": 0,
        "rounds": 5,
        "spent": 1,
    }
    assert {name: last[name] for name in wanted} == pytest.approx(wanted, rel=1e-6)


def test_churn_needs_a_horizon(tiny):
    with pytest.raises(ValueError, match=r"budget\.seconds=null: churn is drawn up to the end"):
        tiny(churn=Exponential(up=5, down=1), budget=Budget(steps=5)).build()


def test_torch_has_one_thread_while_a_run_lasts(tiny, quadratic, monkeypatch):
    seen = []
    evaluate = quadratic.evaluate
    monkeypatch.setattr(
        quadratic, "evaluate", lambda *a: seen.append(torch.get_num_threads()) or evaluate(*a)
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tiny(budget=Budget(steps=2)).run()
        with pytest.raises(ValueError, match="evaluations=0"):
            tiny(evaluations=0).run()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_everything_is_open_to_inspection_after_a_run(tiny):
    experiment = tiny(budget=Budget(steps=2))
    experiment.run()
    assert [node.id for node in experiment.sim.nodes] == [0, 1, 2, 3]
    assert experiment.sim.node(2) is experiment.sim.nodes[2]
    causes = dict(experiment.profile)
    total = causes.pop("total")
    assert total >= causes["gradients"] > 0
    assert sum(causes.values()) == pytest.approx(total)
    assert min(causes.values()) >= 0


def test_numbers_of_nodes_are_set_back_when_a_node_leaves(idle):
    sim = idle(away={2: (1.0, 2.0)})
    ones, own = sim.numbers("ones", 1.0), sim.numbers("own", [1, 2, 3, 4])
    ones[:], own[:] = 5.0, 7.0
    sim.run(until=3.0)
    assert sim.numbers("ones").tolist() == [5, 5, 1, 5]
    assert sim.numbers("own").tolist() == [7, 7, 3, 7]
    assert sim.numbers("others").tolist() == [0] * 4
