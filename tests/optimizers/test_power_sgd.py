"""PowerSGD against a loop over nodes and tensors, in the paper's form; its bytes; full rank."""

import math

import numpy as np
import pytest
import torch

from experiments.experiment import Experiment
from experiments.tasks.quadratic import Quadratic
from experiments.validate.golden.problems import Regression
from experiments.validate.golden.recorders import RecordedRounds, rows_of
from optimizers import SGD, AllReduce, PowerSGD
from optimizers.compression.low_rank import Basis, Matrices, Projection, orthonormal
from sim.budget import Budget
from sim.compute.layout import Layout
from sim.compute.options import ComputeOptions
from sim.payload import Context, Dense
from sim.testing import LAYOUT
from sim.workload import transformer
from topologies import complete, ring


def _gradient(params, x, y):
    """The gradients of one worker, by the chain rule."""
    hidden = np.tanh(x @ params["W1"].T + params["b1"])
    off = hidden @ params["W2"].T + params["b2"] - y
    slope = 2 * off / off.size
    back = (slope @ params["W2"]) * (1 - hidden**2)
    return {"W1": back.T @ x, "b1": back.sum(0), "W2": slope.T @ hidden, "b2": slope.sum(0)}


def _ortho(columns):
    """Modified Gram-Schmidt, twice."""
    q = columns.copy()
    for _ in range(2):
        for j in range(q.shape[1]):
            for i in range(j):
                q[:, j] -= (q[:, i] @ q[:, j]) * q[:, i]
            q[:, j] /= np.linalg.norm(q[:, j])
    return q


def _problem(workers, shape, steps, dtype=np.float64):
    rng = np.random.default_rng(3)
    inputs, hidden, outputs = shape
    x = rng.standard_normal((steps, workers, 5, inputs)).astype(dtype)
    y = rng.standard_normal((steps, workers, 5, outputs)).astype(dtype)
    sides = {"W1": (hidden, inputs), "b1": (hidden,), "W2": (outputs, hidden), "b2": (outputs,)}
    start = {k: (0.5 * rng.standard_normal(s)).astype(dtype) for k, s in sides.items()}
    return x, y, start


def _params_and_residuals(sim):
    return torch.cat([sim.shared["params"][None], rows_of(sim, "residual")])


def _run(strategy, n=3, shape=(8, 12, 6), steps=6, note=None, topology=complete, **parts):
    x, y, start = _problem(n, shape, steps)
    layout = Layout({k: v.shape for k, v in start.items()})
    flat = layout.flatten({k: torch.from_numpy(v) for k, v in start.items()})
    task = Regression(torch.from_numpy(x), torch.from_numpy(y), layout, flat)
    rounds = RecordedRounds(note or (lambda sim: sim.shared["params"]))
    run = Experiment(
        task, topology(n), strategy, coordinator=rounds, budget=Budget(steps=steps), **parts
    )
    return run, rounds, (x, y, start)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_paper_s_form_equals_a_loop_over_nodes_and_tensors(n):
    strategy = PowerSGD(2, optimizer=SGD(0.05, 0.9), min_rate=1.0, value_dtype="native")
    run, rounds, (x, y, params) = _run(
        strategy,
        n,
        note=lambda sim: torch.cat([sim.shared["params"][None], rows_of(sim, "residual")]),
    )
    sim = run.build()
    sim.start()
    Q = {k: v.numpy().copy() for k, v in sim.shared["right"].items()}
    assert list(Q) == ["W1", "W2"]
    sim.run(until=sim.done)
    residual = [{k: np.zeros_like(v) for k, v in params.items()} for _ in range(n)]
    momentum = {k: np.zeros_like(v) for k, v in params.items()}
    for t, ours in enumerate(rounds.after_rounds):
        grads = [_gradient(params, x[t, i], y[t, i]) for i in range(n)]
        for k in params:
            M = [g[k] + e[k] for g, e in zip(grads, residual)]
            out = sum(M) / n
            if k in Q:
                P = _ortho(sum(m @ Q[k] for m in M) / n)
                Q[k] = sum(m.T @ P for m in M) / n
                out = P @ Q[k].T
            for e, m in zip(residual, M):
                e[k] = (m - out) * (k in Q)
            momentum[k] = 0.9 * momentum[k] + out
            params[k] = params[k] - 0.05 * momentum[k]
        wanted = [params, *residual]
        rows = torch.tensor(
            np.stack([np.concatenate([v.ravel() for v in w.values()]) for w in wanted])
        )
        torch.testing.assert_close(ours, rows, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sides", ["both", "one"])
def test_with_full_rank_it_is_all_reduce(sides):
    exact = {"optimizer": SGD(0.05, 0.9)}
    vectors = sides == "both"  # half of the time the basis of a column is one direction of it
    strategy = PowerSGD(12, sides, min_rate=0, value_dtype="native", vectors=vectors, **exact)
    run, ours, _ = _run(strategy, shape=(8, 8, 8))
    run.run()
    plain, theirs, _ = _run(AllReduce(SGD(0.05, 0.9), Dense("native")), shape=(8, 8, 8))
    plain.run()
    torch.testing.assert_close(ours.after_rounds, theirs.after_rounds, rtol=0, atol=1e-12)


def test_what_a_lone_node_applied_and_its_residual_are_all_its_gradients():
    plain = SGD(1e-9)  # so that parameters, and with them gradients, stay as they are
    for options in ({}, {"sides": "one"}, {"sides": "one", "half_steps": 2}):
        strategy = PowerSGD(1, optimizer=plain, min_rate=0, value_dtype="native", **options)
        run, rounds, (x, y, start) = _run(strategy, n=1, note=_params_and_residuals)
        run.run()
        applied = (rounds.notes[0][0] - rounds.notes[-1][0]) / 1e-9
        total = applied + rounds.notes[-1][1]
        each = [_gradient(start, x[t, 0], y[t, 0]) for t in range(len(x))]
        wanted = np.concatenate([sum(g[k] for g in each).ravel() for k in start])
        np.testing.assert_allclose(total.numpy(), wanted, atol=1e-5)


def test_bytes_are_those_of_the_factors_and_of_the_vectors():
    r, n, vectors = 2, 3, 4 * (12 + 6)
    left, right = 4 * r * (12 + 6), 4 * r * (8 + 12)
    sent = {}
    for name, strategy in {
        "both": PowerSGD(r, min_rate=1),
        "one": PowerSGD(r, "one", min_rate=1),
        "three": PowerSGD(r, "one", half_steps=3, min_rate=0.5),
    }.items():
        run, _, _ = _run(strategy, n, topology=ring)
        sent[name] = run.run()["metric"]["nbytes"].iloc[-1] / (2 * (n - 1))
    assert sent["both"] == pytest.approx(6 * (left + right + vectors), rel=1e-6)
    assert sent["one"] == pytest.approx(3 * (left + right) + 6 * vectors, rel=1e-6)
    assert sent["three"] == pytest.approx(9 * (left + right) + 6 * vectors, rel=1e-6)


def test_bytes_of_a_large_model_are_those_of_its_own_shapes():
    layout = transformer("1b", 16, 2048, 32, 8, 8192, 128_256).layout
    matrices = Matrices(4, min_rate=2.0)
    both = sum(
        Projection(matrices, side, others=side == "left").nbytes(layout)
        for side in ("left", "right")
    )
    wanted = sum(
        16 * (shape[0] + math.prod(shape[1:])) if len(shape) > 1 else 4 * shape[0]
        for shape in layout.shapes.values()
    )
    assert both == wanted
    assert 4 * layout.numel / both > 300


@pytest.mark.parametrize("sides", ["both", "one"])
def test_a_run_without_values_takes_the_same_time_and_bytes(sides):
    found = []
    for compute in (ComputeOptions(), ComputeOptions(values=False)):
        strategy = PowerSGD(2, sides, half_steps=1, min_rate=1)
        metric = _run(strategy, compute=compute)[0].run()["metric"]
        found.append(metric[["time", "nbytes", "step"]].iloc[-1].tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize("sides", ["both", "one"])
def test_a_model_without_matrices_is_charged_as_the_workload_that_has_some(sides):
    large = transformer("tiny", 2, 64, 4, 2, 128, 100)
    run = Experiment(
        Quadratic(), ring(3), PowerSGD(2, sides), workload=large, budget=Budget(steps=2)
    )
    sent = run.run()["metric"]["nbytes"].iloc[-1] / (2 * 2)
    matrices = Matrices(2, 2 if sides == "both" else 1, min_rate=2.0)
    left, right = (
        Projection(matrices, side, others=False).nbytes(large.layout) for side in ("left", "right")
    )
    ranks = {name: matrices.rank_of(shape) for name, shape in large.layout.shapes.items()}
    others = 4 * sum(math.prod(large.layout.shapes[name]) for name, r in ranks.items() if not r)
    factors = 2 * (left + right) if sides == "both" else left + right
    assert sent == pytest.approx(factors + 2 * others, rel=1e-6)


@pytest.mark.parametrize("n", [1, 2, 1000])
def test_a_model_without_matrices_is_averaged_whole(n):
    both = []
    for strategy in (PowerSGD(optimizer=SGD(0.1)), AllReduce(SGD(0.1))):
        run = Experiment(Quadratic(), complete(n), strategy, budget=Budget(steps=3))
        both.append(run.run()["metric"]["loss"].iloc[-1])
    assert both[0] == pytest.approx(both[1], rel=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-30, 1.0, 1e30])
def test_columns_become_orthonormal_however_small_they_are(scale):
    drawn = torch.randn(4, 9, 3, generator=torch.Generator().manual_seed(0)) * scale
    for columns in (drawn, torch.ones(4, 9, 3) * scale):
        q = orthonormal(columns)
        torch.testing.assert_close(q.mT @ q, torch.eye(3).expand(4, 3, 3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("others", [True, False])
def test_a_projection_is_sent_as_its_coefficients_and_adds_up(side, others):
    generator = torch.Generator().manual_seed(0)
    sides = {"weight": (24, 10), "conv": (4, 9)}
    columns = {
        name: torch.randn(sides[name][side == "right"], 2, generator=generator) for name in sides
    }
    codec = Projection(Matrices(2), side, others, basis=Basis.spanned(LAYOUT, columns))
    rows = torch.randn(5, LAYOUT.numel, generator=generator)
    payload, _ = codec.encode(rows, None, Context(LAYOUT, 0, np.arange(5), 0))
    packed = payload.pack()
    assert payload.sizes == [len(row) for row in packed] == [codec.nbytes(LAYOUT)] * 5
    arrived = codec.template(LAYOUT).unpack_like(packed)
    assert torch.equal(arrived.decode(), payload.decode())
    torch.testing.assert_close(payload.combine(), payload.decode().mean(0))
    left_over = codec.rest(rows)
    torch.testing.assert_close(codec.rest(left_over), left_over, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, "rank=0"),
        ({"sides": "left"}, "'both' or 'one'"),
        ({"half_steps": 2}, "choose sides='one'"),
        ({"warmup": -1}, "warmup=-1"),
        ({"min_rate": -1}, "min_rate=-1"),
        ({"value_dtype": "float8"}, "dtype='float8'"),
    ],
)
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        PowerSGD(**options)
