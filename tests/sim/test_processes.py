"""Several processes compute one run: the same bits as one process, and each its own rows."""

import multiprocessing
import os
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from experiments import manifest
from experiments.experiment import Experiment
from experiments.tasks.digits import Digits
from optimizers import (
    ADPSGD,
    CHOCO,
    DPSGD,
    EF21,
    SGD,
    SGP,
    AdamW,
    AllReduce,
    AsyncDiLoCo,
    CentredClipping,
    DecoupledDiLoCo,
    DeMo,
    DiLoCo,
    Krum,
    Moshpit,
    OneBitAdam,
    ParameterServer,
    SignSGD,
    SparseLoCo,
    StreamingDiLoCo,
)
from optimizers.compression import DCT, Chain, CodeBook, ErrorFeedback, PerTensor, TopK
from sim.budget import Budget
from sim.churn import Exponential
from sim.compute import crew, fleet
from sim.compute.device import Device
from sim.compute.layout import Layout
from sim.compute.memory import Estimate
from sim.compute.options import CORES, ComputeOptions, available_cores
from sim.compute.parcel import pack, unpack
from sim.compute.processes import Processes, here, joined
from sim.compute.shard import Shard
from sim.compute.table import Table
from sim.payload import Context, Dense
from sim.reduction import CodedRing
from sim.strategy import NodeState
from sim.trace import Trace
from topologies import ring

N, BLOCK, SUMS = 22, 4, 4
"""Six blocks, the last of them not full; sums of several nodes, within a block."""
SIZES = (4, 2)
STRATEGIES = {
    "diloco": DiLoCo(inner_steps=2),
    "diloco, error feedback": DiLoCo(inner_steps=2, compressor=ErrorFeedback(TopK(20))),
    "diloco, batch norm": DiLoCo(inner_steps=2),
    "diloco, dropout": DiLoCo(inner_steps=2),
    "diloco, krum": DiLoCo(inner_steps=2, aggregation=Krum()),
    "all-reduce": AllReduce(SGD(lr=0.1)),
    "all-reduce, clipping": AllReduce(SGD(lr=0.1), aggregation=CentredClipping(radius=0.1)),
    "all-reduce, bfloat16": AllReduce(SGD(lr=0.1), Dense("bfloat16")),
    "all-reduce, coded ring": AllReduce(SGD(lr=0.1), reduction=CodedRing(CodeBook()), accumulate=2),
    "signum": SignSGD(momentum=0.5),
    "ef21": EF21(compressor=TopK(20)),
    "ef21, krum": EF21(compressor=TopK(20), aggregation=Krum()),
    "sparse loco, krum": SparseLoCo(inner_steps=2, compressor=TopK(20), aggregation=Krum()),
    "1-bit adam": OneBitAdam(warmup=2),
    "demo": DeMo(lr=0.01, compressor=PerTensor(Chain(DCT(8), TopK(2)))),
    "d-psgd": DPSGD(),
    "d-psgd, adapt then combine": DPSGD(order="adapt_then_combine"),
    "streaming diloco": StreamingDiLoCo(inner_steps=4, fragments=2, overlap=1),
    "streaming diloco, layerwise": StreamingDiLoCo(
        inner_steps=4, fragments=2, overlap=1, reductions="layerwise"
    ),
    "ad-psgd": ADPSGD(),
    "choco": CHOCO(compressor=TopK(20)),
    "sgp": SGP(momentum=0.9, overlap=1, leavers="hand_over"),
    "moshpit": Moshpit(inner_steps=2),
    "parameter server": ParameterServer(patience=5, compressor=TopK(20)),
    "async diloco": AsyncDiLoCo(2, grace="1s", patience=5, compressor=ErrorFeedback(TopK(20))),
    "decoupled diloco": DecoupledDiLoCo(4, quorum=2),
}


def _normed():
    """A model with running statistics."""
    return nn.Sequential(nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))


def _masked():
    """A model with random masks."""
    return nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, 10))


MODELS = {"diloco, batch norm": (_normed, "loop"), "diloco, dropout": (_masked, "vmap")}
"""Model and engine; under vmap the bits of a batch norm depend on how many nodes share a call."""


def _outcome(name):
    """What a run gives, as tensors."""
    model, engine = MODELS.get(name, ("mlp", "stacked"))
    task = Digits(model, width=4, examples=3)
    experiment = Experiment(
        task,
        ring(N, bandwidth=1e6, latency=1e-3),
        STRATEGIES[name],
        device=Device(speed=task.flops_per_step, mfu=1, jitter=0.2),
        churn=Exponential(up=60, down=5),
        local=AdamW(lr=0.01),
        budget=Budget(seconds=20),
        compute=ComputeOptions(workers=1, engine=engine),
    )
    trace, sim = experiment.run(), experiment.sim
    return {
        "losses": torch.tensor(trace["metric"]["loss"].to_numpy()),
        "training losses": torch.tensor(trace["compute"]["loss"].fillna(-1.0).to_numpy(np.float64)),
        "consensus": experiment.strategy.consensus(sim),
        "left": torch.tensor(sim.left),
        "bytes": torch.tensor([table.nbytes for table in sim.fleet.tables.values()]),
        "momentum": sim.fleet.get("momentum", np.array([N - 1, 0, 9])),
    }


def _told():
    """What a process learns from the others by each way there is."""
    group = here()
    shard = Shard(group, N, BLOCK)
    numbers = torch.arange(float(N))[:, None] * torch.ones(3)
    rows = shard.fetch(lambda ids: numbers[ids] if shard.owns(ids).all() else None, _SOME)
    shared = group.share({"rank": group.rank, "x": torch.full((2,), group.rank)}, _CPU)
    return {
        "rows": rows,
        "first": group.from_first(lambda: 10 + group.rank),
        "least": group.least(10.0 + group.rank),
        "shared": [(one["rank"], one["x"].tolist()) for one in shared],
    }


_CPU = torch.device("cpu")
_SOME = np.array([N - 1, 0, 7, 3])


def _live(rank, ports, folder):
    """What one of several processes does; of those of rank 0 and 1 there are two lives."""
    fleet._MIN_BLOCK = fleet._MAX_BLOCK = BLOCK
    crew._SUMS = SUMS
    torch.set_num_threads(1)
    for size, port in zip(SIZES, ports):
        if rank < size:
            where = f"tcp://localhost:{port}"
            limit = timedelta(seconds=60)
            dist.init_process_group("gloo", where, limit, rank=rank, world_size=size)
            found = {name: _outcome(name) for name in STRATEGIES} | {"told": _told()}
            dist.destroy_process_group()
            torch.save(found, folder / f"{rank}-of-{size}.pt")


def _free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """`together[size]`: of each process of so many, what it got in each run."""
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.set_forkserver_preload(
        ["experiments.experiment", "sklearn.datasets", "torch._dynamo"]
    )
    ports = [_free_port() for _ in SIZES]
    mp.start_processes(_live, (ports, folder), max(SIZES), start_method="forkserver")
    return {
        size: [torch.load(folder / f"{r}-of-{size}.pt", weights_only=True) for r in range(size)]
        for size in SIZES
    }


@pytest.fixture(scope="module")
def alone():
    """`alone(name)`: what one process gets, with blocks as small."""
    known = {}

    def run(name):
        if name not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(fleet, "_MIN_BLOCK", BLOCK)
                patch.setattr(fleet, "_MAX_BLOCK", BLOCK)
                patch.setattr(crew, "_SUMS", SUMS)
                known[name] = _outcome(name)
        return known[name]

    return run


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_several_processes_get_the_bits_of_one(alone, together, name, size):
    assert alone(name)["left"] > 0
    assert len(alone(name)["losses"].unique()) > 2
    for found in together[size]:
        for what in ("losses", "training losses", "consensus", "left", "momentum"):
            assert torch.equal(found[name][what], alone(name)[what]), what


@pytest.mark.parametrize("size", SIZES)
def test_each_process_keeps_the_rows_of_its_own_nodes_only(alone, together, size):
    whole = alone("diloco")["bytes"]
    largest = max(-(-6 * (r + 1) // size) - -(-6 * r // size) for r in range(size)) * BLOCK
    for found in together[size]:
        assert (found["diloco"]["bytes"] <= whole * (largest + 4) / N).all()


@pytest.mark.parametrize("size", SIZES)
def test_processes_tell_each_other_what_one_of_them_knows(together, size):
    for found in together[size]:
        told = found["told"]
        assert torch.equal(told["rows"][:, 2], torch.from_numpy(_SOME).float())
        assert (told["first"], told["least"]) == (10, 10.0)
        assert told["shared"] == [(r, [r, r]) for r in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [1, 9, 40])
def test_every_node_has_one_process_and_no_block_has_two(n, size):
    shards = [Shard(Processes(rank, size), n, BLOCK) for rank in range(size)]
    nodes = np.arange(n)
    owners = np.array([shard.owns(nodes) for shard in shards])
    assert (owners.sum(axis=0) == 1).all()
    assert all(
        (owners[:, nodes // BLOCK == b] == owners[:, [b * BLOCK]]).all()
        for b in nodes[: n // BLOCK]
    )
    blocks = [-(-len(shard.own) // BLOCK) for shard in shards]
    assert max(blocks) - min(blocks) <= 1
    assert [nodes[at].tolist() for at in shards[0].places(nodes)] == [list(s.own) for s in shards]


def test_a_table_keeps_own_rows_and_knows_whose_rows_are_private():
    table = Table(6, torch.zeros(3), own=range(2, 4))
    rows = torch.arange(18.0).reshape(6, 3)
    table.put(np.arange(1, 5), rows[1:5])
    assert torch.equal(table.get(np.array([3])), rows[[3]])
    assert (table.nbytes, table.news().tolist(), table.news().tolist()) == (3 * 12, [2, 3], [])
    assert not table.get(np.array([0, 5])).any()
    with pytest.raises(RuntimeError, match=r"rows of nodes .* are another process's"):
        table.get(np.array([3, 4]))


def test_a_function_of_blocks_may_not_give_nodes_a_vector_to_share():
    shard = Shard(Processes(0, 2), N, BLOCK)
    shard.check_together("params")
    with shard.working(), pytest.raises(RuntimeError, match=r"'params': .* one row per node"):
        shard.check_together("params")
    assert shard.exchanges


@pytest.mark.parametrize(
    "x",
    [
        torch.arange(6.0).reshape(2, 3),
        torch.arange(6.0).reshape(2, 3).T,
        torch.arange(3, dtype=torch.float64).expand(4, 3),
        torch.arange(24).reshape(2, 3, 4).transpose(0, 2)[:, 1:],
        torch.tensor(True),
        torch.empty(0, 5),
        torch.arange(5, dtype=torch.bfloat16),
    ],
)
def test_a_tensor_is_unpacked_as_it_was_packed(x):
    beside = torch.tensor([1], dtype=torch.uint8)
    first, (again, scale) = unpack(*pack((beside, [x, 0.5]), _CPU))
    assert (again.dtype, scale) == (x.dtype, 0.5)
    assert torch.equal(again, x)
    assert torch.equal(first, beside)
    assert [s == 0 for s in again.stride()] == [s == 0 for s in x.stride()]
    assert np.argsort(again.stride()).tolist() == np.argsort(x.stride()).tolist()


def test_a_payload_is_unpacked_as_it_was_packed():
    codec, layout = PerTensor(Chain(DCT(4), TopK(2))), Digits(width=4).layout
    x = torch.randn(3, layout.numel, generator=torch.Generator().manual_seed(0))
    payload, _ = codec.encode(x, None, Context(layout, 0, np.arange(3), 0))
    again = unpack(*pack(payload, _CPU))
    assert again.pack() == payload.pack()
    assert torch.equal(again.combine("senders"), payload.combine("senders"))


@pytest.mark.parametrize(
    ("codec", "results", "n_exchanged"), [(Dense(), 0, 10), (Dense(), 2, 40), (TopK(5), 0, 40)]
)
def test_a_process_needs_memory_for_its_own_rows_and_what_all_exchange(codec, results, n_exchanged):
    state = NodeState(sends=codec, results=results)
    need = Estimate(40, Layout.flat(100), AdamW(lr=0.1), state, work=7.0, own=10)
    rows = sum(need.rows.values()) + need.codec_state
    assert need.total == 10 * rows + n_exchanged * need.exchange + 7
    assert need.rows == replace(need, own=None).rows


def test_processes_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.delenv(CORES, raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cores = available_cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert available_cores() == max(1, cores // 2)


def test_without_torchrun_a_process_is_alone():
    with joined() as group:
        assert (group.rank, group.size, group.least(3.0)) == (0, 1, 3.0)
        assert group.from_first(lambda: "mine") == "mine"
    assert not dist.is_initialized()


def _archipelago(*args, processes=1):
    """`archipelago run` in so many processes."""
    starts = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    starts = starts if processes > 1 else []
    command = [sys.executable, *starts, "-m", "experiments.run", *args]
    environment = {k: v for k, v in os.environ.items() if k != CORES}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.slow
def test_torchrun_computes_a_run_of_the_command_line(tmp_path):
    args = ["strategy=diloco", "strategy.inner_steps=2", "topology.n=520", "budget.steps=6"]
    args += ["task=digits", "task.width=4"]
    folders = [tmp_path / "one", tmp_path / "two"]
    for n, folder in enumerate(folders, 1):
        done = _archipelago(*args, f"hydra.run.dir={folder}", processes=n)
        assert (done.returncode, done.stdout.count(str(folder))) == (0, 1), done.stderr
    one, two = map(Trace.load, folders)
    assert one["metric"].equals(two["metric"])
    told = [manifest.read(folder) for folder in folders]
    assert [each["processes"] for each in told] == [1, 2]
    assert told[0]["config_sha256"] == told[1]["config_sha256"]


@pytest.mark.slow
def test_torchrun_refuses_a_sweep_and_says_so_once(tmp_path):
    done = _archipelago("-m", "seed=0,1", f"hydra.sweep.dir={tmp_path}", processes=2)
    assert done.returncode != 0
    assert done.stderr.count("2 processes compute one run, and this is a sweep of 2") == 1
    assert not list(tmp_path.iterdir())
