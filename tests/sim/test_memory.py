"""Memory known before a run: what tables hold after it, closed forms, and what is refused."""

import math
import re
from dataclasses import replace

import pytest
import torch

from optimizers import (
    ADPSGD,
    CHOCO,
    DPSGD,
    SGD,
    SGP,
    AdamW,
    AllReduce,
    AsyncDiLoCo,
    DecoupledDiLoCo,
    DiLoCo,
    Moshpit,
    ParameterServer,
    Single,
    StreamingDiLoCo,
)
from optimizers.compression import ErrorFeedback, TopK
from sim.budget import Budget
from sim.compute.layout import Layout
from sim.compute.memory import Estimate, at_once, saved_nbytes
from sim.compute.options import CORES, ComputeOptions, available_cores
from sim.compute.room import free_nbytes
from sim.payload import Dense
from sim.strategy import NodeState
from topologies import complete, star

P, CPU = 100, torch.device("cpu")
LOCALS = {"sgd": SGD(0.1), "momentum": SGD(0.1, momentum=0.9), "adamw": AdamW(0.1)}
STRATEGIES = {
    "all_reduce": AllReduce(AdamW(0.1)),
    "single": Single(AdamW(0.1)),
    "diloco": DiLoCo(inner_steps=2),
    "streaming": StreamingDiLoCo(inner_steps=4, fragments=2, overlap=1),
    "dpsgd": DPSGD(),
    "dpsgd_adapt": DPSGD(order="adapt_then_combine"),
    "adpsgd": ADPSGD(),
    "choco": CHOCO(),
    "sgp": SGP(momentum=0.9, overlap=1),
    "moshpit": Moshpit(inner_steps=2, dims=1),
    "parameter_server": ParameterServer(patience=5),
    "async_diloco": AsyncDiLoCo(2, patience=5),
    "decoupled_diloco": DecoupledDiLoCo(4),
}


def _of(n=10, *, local=None, **state):
    return Estimate(n, Layout.flat(P), local or AdamW(0.1), NodeState(**state))


# -- rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("local", LOCALS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_rows_take_what_tables_hold_after_some_steps(tiny, name, local):
    graph = complete(12, bandwidth="1MBps", latency="10ms")
    experiment = tiny(STRATEGIES[name], topology=graph, local=LOCALS[local], budget=Budget(steps=8))
    experiment.run()
    held = sum(table.nbytes for table in experiment.sim.fleet.tables.values())
    vector = experiment.sim.fleet.initial.nbytes
    expected = 12 * sum(experiment.memory.rows.values())
    results = experiment.strategy.node_state.results if name == "async_diloco" else 0
    most = 7 + 12 * results  # defaults, and vectors that all share; there the anchors are vectors
    assert 0 <= held - expected <= most * vector


def test_rows_of_a_node_that_trains_are_parameters_and_moments():
    assert dict(_of().rows) == {"parameters": 4 * P, "mean": 4 * P, "square": 4 * P, "age": 8}
    assert dict(_of(local=SGD(0.1)).rows) == {"parameters": 4 * P, "age": 8}
    assert dict(_of(params=False, local=None, named=("momentum",)).rows)["momentum"] == 4 * P


def test_a_strategy_that_says_nothing_is_taken_to_train(idle):
    assert idle().strategy.node_state == NodeState(params=True, local=True)


def test_narrow_state_halves_moments_and_leaves_parameters_and_ages():
    narrow = replace(_of(named=("trend",)), state_dtype="bfloat16")
    assert list(narrow.rows.values()) == [4 * P, 2 * P, 2 * P, 8, 2 * P]


def test_buffers_are_kept_by_every_node():
    assert replace(_of(), buffers=7).per_node - _of().per_node == 4 * 7


@pytest.mark.parametrize(
    ("codec", "state", "payload"),
    [
        (Dense(), 0, 4 * P),
        (Dense("bfloat16"), 0, 4 * P),  # rounded, and kept in float32 for computing
        (TopK(5), 0, 5 * (4 + 8)),  # values, and where they are: int64
        (ErrorFeedback(TopK(5)), 4 * P, 5 * (4 + 8)),
    ],
    ids=repr,
)
def test_a_codec_has_its_state_and_its_payload(codec, state, payload):
    need = _of(sends=codec)
    assert (need.codec_state, need.payload) == (state, payload)
    assert need.per_node - _of().per_node == state + 2 * payload


def test_results_of_a_strategy_are_rows_too():
    assert _of(results=3).per_node - _of().per_node == 3 * 4 * P


@pytest.mark.parametrize("strategy", [AllReduce, DiLoCo])
def test_dense_gradients_are_added_up_and_others_are_gathered(strategy):
    assert strategy().node_state.sends is None
    assert strategy(compressor=TopK(5)).node_state.sends == TopK(5)


def test_what_a_loss_leaves_for_its_backward_pass_is_counted():
    assert saved_nbytes(lambda x: x.sum(), torch.ones(P)) == 0
    assert saved_nbytes(lambda x: x.exp().sum(), torch.ones(P)) == 4 * P
    assert saved_nbytes(lambda x: x.exp().exp().sum(), torch.ones(P)) == 2 * 4 * P


# -- what fits --------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1000, 5000.5, 1e9])
def test_as_many_nodes_fit_as_the_sum_says(room):
    need = replace(_of(100), work=500)
    most = need.most(room)
    assert most == 100 or replace(need, n_nodes=most + 1).total > room
    assert most == 0 or replace(need, n_nodes=most).total <= room


def test_the_number_of_nodes_that_is_said_to_fit_does(tiny):
    strategy = DiLoCo(compressor=TopK(2))
    four = tiny(strategy, n=4)
    four.build()
    limited = ComputeOptions(memory_limit=four.memory.total)
    with pytest.raises(ValueError, match=r"^9 nodes need .* at most 4 of them fit") as refused:
        tiny(strategy, n=9, compute=limited).build()
    assert "(rows 360 B: parameters, age; exchange 432 B; work " in str(refused.value)
    tiny(strategy, n=4, compute=limited).run()
    with pytest.raises(ValueError, match="at most 4 of them fit"):
        tiny(strategy, n=5, compute=limited).build()


def test_ways_out_need_what_they_are_said_to_need(tiny):
    run = {"strategy": DiLoCo(compressor=TopK(2)), "topology": star(20_000)}
    with pytest.raises(ValueError) as refused:
        tiny(**run, local=AdamW(0.1), compute=ComputeOptions(memory_limit="100kB")).build()
    told = dict(re.findall(r"(\S+) \(([\d.]+) MB\)", str(refused.value)))
    plain = tiny(**run, local=SGD(0.1))
    plain.build()
    assert float(told["local=sgd"]) == pytest.approx(plain.memory.total / 1e6, rel=0.12)  # ages
    narrow = replace(plain.memory, local=AdamW(0.1), state_dtype="bfloat16")
    assert float(told["compute.state_dtype=bfloat16"]) == pytest.approx(
        narrow.total / 1e6, rel=0.02
    )


def test_timing_only_needs_no_memory(tiny):
    experiment = tiny(compute=ComputeOptions(values=False, memory_limit=1))
    experiment.build()
    assert experiment.memory is None


@pytest.mark.parametrize("room", [0, 4, 5, 9, 12, 100])
def test_the_largest_of_the_runs_that_go_on_together_fit(room):
    needs = [3.0, 5.0, 4.0]
    k = at_once(needs, room)
    assert k == 1 or sum(sorted(needs)[-k:]) <= room
    assert k == 3 or sum(sorted(needs)[-k - 1 :]) > room


# -- what is free -----------------------------------------------------------------------------


def _machine(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return free_nbytes(CPU, root)


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemFree: 1000 kB\nMemAvailable: 5000 kB\n"}
V2 = {
    "proc/self/cgroup": "0::/a/b\n",
    "sys/fs/cgroup/a/memory.max": "2000000\n",
    "sys/fs/cgroup/a/memory.current": "900000\n",
    "sys/fs/cgroup/a/memory.stat": "anon 700000\ninactive_file 200000\n",
    "sys/fs/cgroup/a/b/memory.max": "max\n",
    "sys/fs/cgroup/a/b/memory.current": "900000\n",
    "sys/fs/cgroup/a/b/memory.stat": "inactive_file 0\n",
}
V1 = {
    "proc/self/cgroup": "5:cpu:/x\n4:memory:/elsewhere\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000\n",
    "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 500000\n",
}


@pytest.mark.parametrize(
    ("files", "free"),
    [(MEMINFO, 5000 * 1024), (MEMINFO | V2, 1_300_000), (MEMINFO | V1, 2_500_000)],
    ids=["machine", "control group, version 2", "version 1, seen from inside"],
)
def test_free_is_what_the_machine_has_and_control_groups_leave(tmp_path, files, free):
    assert _machine(tmp_path, files) == free


def test_a_wide_control_group_does_not_make_memory(tmp_path):
    wide = V2 | {"sys/fs/cgroup/a/memory.max": "9000000000\n"}
    assert _machine(tmp_path, MEMINFO | wide) == 5000 * 1024


def test_this_machine_says_what_is_free():
    assert 1e6 < free_nbytes(CPU) <= math.inf


# -- options ----------------------------------------------------------------------------------


def test_workers_are_those_asked_for_or_one_per_core(monkeypatch):
    monkeypatch.setenv(CORES, "3")
    assert ComputeOptions().n_workers() == 3
    assert ComputeOptions(workers=5).n_workers() == 5
    assert ComputeOptions(workers=5).n_workers("cuda") == 1


def test_a_process_uses_the_cores_that_it_may_use(monkeypatch):
    monkeypatch.delenv(CORES, raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 4, 6}, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert available_cores() == 3


@pytest.mark.parametrize("text", ["0", "two", "-1", ""])
def test_a_number_of_cores_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv(CORES, text)
    with pytest.raises(ValueError, match=f"{CORES}={text}: must be a whole number >= 1"):
        available_cores()


def test_tensors_live_where_the_options_say(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ComputeOptions(accelerator="auto").device.type == "cpu"
    assert ComputeOptions(values=False, accelerator="cuda").device.type == "meta"
    with pytest.raises(ValueError, match=r"compute\.accelerator='cuda': torch sees no GPU here"):
        _ = ComputeOptions(accelerator="cuda").device
    with pytest.raises(ValueError, match=r"compute\.precision='tf32': a CPU computes in"):
        _ = ComputeOptions(accelerator="auto", precision="tf32").device
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert ComputeOptions(accelerator="auto", precision="tf32").device.type == "cuda"
