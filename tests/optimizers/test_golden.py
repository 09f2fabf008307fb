"""The strategies against numbers that the authors' own code produced, step by step.

Every run is a whole experiment, with a network, devices and a coordinator; the values must not
notice. What the files hold and where they come from is in `tests/golden/README.md`.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from golden_case import (
    TENSORS,
    Forced,
    Golden,
    Listed,
    Logistic,
    Regression,
)
from recorders import RecordedCodec, RecordedOptimizer, RecordedRounds, rows

from experiments.experiment import Experiment
from optimizers import DPSGD, SGD, AdamW, DeMo, DiLoCo, StreamingDiLoCo
from optimizers.compression import DCT, Chain, PerTensor, TopK
from optimizers.compression.basis import coefficients, halves
from sim.budget import Budget
from sim.compute.options import ComputeOptions
from sim.payload import Compressor, Context, Dense
from topologies import complete, ring
from topologies.weights import metropolis_weights

DEMO = ["demo_small_f64", "demo_prime_wd_sched_f64", "demo_default_f32"]
TORCHFT = ["diloco_torchft_sgd", "diloco_streaming_torchft_adamw"]
DILOCO = [*TORCHFT, "diloco_exogym_sgd"]
ATOL = {"float64": 1e-14, "float32": 1e-9}
"""Of values up to 10 in float64; of gradients up to 1e-3 in float32."""


def assert_close(ours, theirs, dtype="float64"):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=ATOL[dtype])


# -- DeMo -----------------------------------------------------------------------------------------


@dataclass
class DemoRun:
    """A file and what our DeMo did on the same problem."""

    golden: Golden
    codec: Compressor
    rounds: RecordedRounds

    @property
    def dtype(self):
        return self.golden.meta["dtype"]


@pytest.fixture(scope="module", params=DEMO)
def demo(request):
    return _demo_run(Golden(request.param), RecordedCodec)


@pytest.fixture(scope="module", params=DEMO)
def demo_of_coefficients(request):
    """The same with a codec that DeMo can take apart: its momentum lies in the other basis."""
    return _demo_run(Golden(request.param), lambda codec: codec)


def _demo_run(golden, observed):
    meta, top_k = golden.meta, TopK(golden.meta["compression_topk"], value_dtype="native")
    codec = observed(PerTensor(Chain(DCT(meta["compression_chunk"]), top_k)))
    strategy = DeMo(
        lr=1.0,
        schedule=Listed(golden["lr"]),
        decay=meta["compression_decay"],
        weight_decay=meta["weight_decay"],
        compressor=codec,
        lr_in_momentum=True,
    )
    if meta["dtype"] == "float64":
        task = Regression.of(golden)
    else:  # the rounding of a gradient could turn a sign, so the gradients are the file's
        task = Forced(golden.flat("grad"), golden.layout, golden.flat("init"))
    rounds = RecordedRounds(
        lambda sim: torch.cat([sim.shared["params"][None], rows(sim, "momentum")])
    )
    _experiment(golden, task, strategy, coordinator=rounds).run()
    return DemoRun(golden, codec, rounds)


def _experiment(golden, task, strategy, **parts):
    """A complete graph of the file's workers, for as many steps as the file has."""
    steps = golden.meta.get("steps", golden.meta.get("T"))
    graph = complete(golden.meta["workers"])
    alone = ComputeOptions(workers=1)  # recorders see all nodes of a step in one call
    return Experiment(task, graph, strategy, budget=Budget(steps=steps), compute=alone, **parts)


@pytest.mark.parametrize("tensor", TENSORS)
def test_demo_sends_the_same_coefficients(demo, tensor):
    indices, values = demo.golden[f"{tensor}_idx"], demo.golden[f"{tensor}_val"]
    for payload, index, value in zip(demo.codec.payloads, indices, values, strict=True):
        sent = list(payload.wires())  # of each tensor its indices, then its values
        at = 2 * TENSORS.index(tensor)
        assert torch.equal(sent[at].data.reshape(index.shape).int(), index)
        assert_close(sent[at + 1].data.reshape(value.shape), value, demo.dtype)


def test_demo_averages_over_the_senders_before_the_sign(demo):
    theirs = demo.golden.flat("agg")
    ours = torch.stack(demo.codec.means)
    assert_close(ours, theirs, demo.dtype)
    certain = theirs.abs() > ATOL[demo.dtype]
    assert torch.equal(ours.sign()[certain], theirs.sign()[certain])


def test_demo_holds_the_same_parameters_after_every_step(demo):
    assert_close(demo.rounds.after_rounds[:, 0], demo.golden.flat("params"), demo.dtype)


@pytest.mark.parametrize("demo", DEMO[:2], indirect=True)  # the other has no momentum
def test_demo_keeps_what_it_did_not_send(demo):
    assert_close(demo.rounds.after_rounds[:, 1:], demo.golden.flat("residual"))


def test_demo_holds_the_same_parameters_with_a_momentum_of_coefficients(demo_of_coefficients):
    run = demo_of_coefficients
    assert_close(run.rounds.after_rounds[:, 0], run.golden.flat("params"), run.dtype)


@pytest.mark.parametrize("demo_of_coefficients", DEMO[:2], indirect=True)
def test_demo_keeps_the_coefficients_that_it_did_not_send(demo_of_coefficients):
    run = demo_of_coefficients
    kept = run.golden.flat("residual")  # [T, N, P]
    transform, _ = halves(run.codec)
    ctx = Context(run.golden.layout, 0, np.zeros(kept.shape[1], np.int64), 0)
    turned = [coefficients(transform.encode(rows, None, ctx)[0]) for rows in kept]
    assert_close(run.rounds.after_rounds[:, 1:], torch.stack(turned))


# -- DiLoCo ---------------------------------------------------------------------------------------


@dataclass
class DiLoCoRun:
    """A file and what our DiLoCo or Streaming DiLoCo did on the same problem."""

    golden: Golden
    inner: RecordedOptimizer
    outer: RecordedOptimizer
    codec: RecordedCodec
    rounds: RecordedRounds

    @property
    def sync_steps(self):
        """The steps after which the file applied an outer step, in order."""
        meta = self.golden.meta
        if meta["algorithm"] == "diloco":
            return list(range(meta["H"], meta["T"], meta["H"]))
        applied = [self.golden[f"{names[0]}_apply_step"] for names in meta["fragments"]]
        return torch.cat(applied).sort().values.tolist()

    def outer_steps(self, what):
        """`what` of the file's outer steps, in the order of time: fragments take turns."""
        parts = [self.golden.flat(what, names) for names in self.golden.meta["fragments"]]
        return [part[turn] for turn in range(len(parts[0])) for part in parts]


def _diloco_strategy(meta, outer, codec):
    if meta["algorithm"] != "StreamingDiLoCo":
        late = meta["algorithm"] == "diloco"  # exo-gym, whose first round has a step more
        return DiLoCo(meta["H"], outer=outer, compressor=codec, extra_first_step=late)
    return StreamingDiLoCo(
        meta["H"],
        fragments=meta["fragments"],
        overlap=meta["tau"],
        mixing=meta["alpha"],
        outer=outer,
        compressor=codec,
    )


@pytest.fixture(scope="module", params=DILOCO)
def diloco(request):
    golden = Golden(request.param)
    meta, codec = golden.meta, RecordedCodec(Dense("native"))
    adamw = meta.get("inner_adamw")
    inner = AdamW(meta["inner_lr"], **adamw) if adamw else SGD(meta["inner_lr"])
    inner = RecordedOptimizer(inner)
    outer = RecordedOptimizer(SGD(meta["outer_lr"], meta.get("outer_m", 0.9), nesterov=True))
    strategy = _diloco_strategy(meta, outer, codec)
    streams, n = isinstance(strategy, StreamingDiLoCo), meta["workers"]
    rounds = RecordedRounds(lambda sim: rows(sim) if streams else sim.shared["theta"].repeat(n, 1))
    _experiment(golden, Regression.of(golden), strategy, local=inner, coordinator=rounds).run()
    return DiLoCoRun(golden, inner, outer, codec, rounds)


def test_diloco_computes_the_same_gradients(diloco):
    theirs = diloco.golden.flat("grad")
    assert_close(torch.stack(diloco.inner.grads[: len(theirs)]), theirs)


def test_diloco_holds_the_same_parameters_after_every_step(diloco):
    theirs = diloco.golden.flat("params")
    ours = torch.stack(diloco.inner.params[: len(theirs)])
    synced = diloco.sync_steps
    ours[synced] = diloco.rounds.after_rounds[: len(synced)]
    assert_close(ours, theirs)


@pytest.mark.parametrize("what", ["pseudograd_local", "pseudograd_mean", "global", "momentum"])
@pytest.mark.parametrize("diloco", TORCHFT, indirect=True)  # exo-gym's file has no outer steps
def test_diloco_makes_the_same_outer_steps(diloco, what):
    ours = {
        "pseudograd_local": diloco.codec.inputs,
        "pseudograd_mean": diloco.outer.grads,
        "global": diloco.outer.params,
        "momentum": [state["momentum"] for state in diloco.outer.states],
    }[what]
    theirs = diloco.outer_steps("outer_momentum" if what == "momentum" else what)
    for mine, expected in zip(ours, theirs, strict=True):
        assert_close(mine, expected)


# -- D-PSGD ---------------------------------------------------------------------------------------


def test_metropolis_weights_are_those_of_the_reference_ring():
    golden = Golden("dpsgd_ring_plain")
    weights = metropolis_weights(ring(golden.meta["workers"]))
    assert_close(torch.from_numpy(weights.toarray()), golden["W"])


def test_dpsgd_holds_the_same_parameters_after_every_step():
    golden = Golden("dpsgd_ring_plain")
    meta = golden.meta
    strategy = DPSGD(meta["lr"], order="adapt_then_combine")
    rounds, budget = RecordedRounds(rows), Budget(steps=meta["steps"])
    graph = ring(meta["workers"])
    run = Experiment(Logistic(golden), graph, strategy, coordinator=rounds, budget=budget)
    sim = run.build()
    sim.group().params = golden["x_init"]  # each node starts elsewhere
    sim.start()
    sim.run(until=sim.done)
    assert_close(rounds.after_rounds, golden["x"])
