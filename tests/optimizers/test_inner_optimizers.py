"""Lion and Muon against numpy, torch.optim and singular values; as inner optimizers of DiLoCo."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from experiments import cells
from experiments.assemble import assemble
from experiments.experiment import Experiment
from experiments.tasks.digits import Digits
from experiments.validate.golden.problems import Regression
from experiments.validate.golden.recorders import RecordedRounds
from optimizers import SGD, WSD, AdamW, AllReduce, DiLoCo, Lion, Muon, WarmupCosine
from optimizers.muon import QUINTIC, orthogonalised
from sim.budget import Budget
from sim.compute.device import Device
from sim.compute.joint import Joint
from sim.compute.layout import Layout
from sim.payload import Dense
from topologies import complete

LAYOUT = Layout(
    {
        "embed": (5, 4),
        "0.up": (6, 4),
        "0.down": (4, 6),
        "1.up": (6, 4),
        "1.conv": (3, 2, 2, 2),
        "bias": (7,),
        "lm_head": (2, 4),
        "gain": (),
    }
)
MATRICES = ("0.up", "0.down", "1.up", "1.conv")
EXACT = Dense("native")


def _rows(n=3, steps=1, layout=LAYOUT, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(steps, n, layout.numel, generator=draw, dtype=torch.float64)


def _run(optimizer, params, gradients, state=None):
    state = state or optimizer.init(params)
    for gradient in gradients:
        params, state = optimizer.step(params, gradient, state)
    return params, state


def _muon(**options):
    defaults = {"precision": "native", "others": AdamW(0.01)}
    return Muon(**(defaults | options)).bind(LAYOUT)


OPTIMIZERS = {
    "lion": Lion(0.01, weight_decay=0.1),
    "muon": _muon(weight_decay=0.1),
    "muon, plain": _muon(nesterov=False, adjust_lr="match_rms_adamw", clip=0.5),
}
every = pytest.mark.parametrize("name", OPTIMIZERS)


def test_lion_is_the_program_of_its_paper():
    x, gradients = _rows()[0].numpy(), _rows(steps=7, seed=1)
    m, lr, (b1, b2), decay = np.zeros_like(x), 0.01, (0.9, 0.99), 0.1
    ours, state = _run(Lion(lr, weight_decay=decay), torch.from_numpy(x), gradients)
    for g in gradients.numpy():
        update = np.sign(b1 * m + (1 - b1) * g)
        m = b2 * m + (1 - b2) * g
        x = x - lr * (update + decay * x)
    np.testing.assert_allclose(ours.numpy(), x, rtol=0, atol=1e-14)
    np.testing.assert_allclose(state["momentum"].numpy(), m, rtol=0, atol=1e-14)


# -- muon -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 3), (7, 1)])
def test_the_iteration_is_its_polynomial_of_singular_values(shape):
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, *shape)))
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    s = s / (s.square().sum(-1, keepdim=True).sqrt() + 1e-7)
    for _ in range(5):
        a, b, c = QUINTIC
        s = a * s + b * s**3 + c * s**5
    expected = u @ torch.diag_embed(s) @ vt
    torch.testing.assert_close(orthogonalised(x, precision="native"), expected)
    assert (s > 0.3).all()
    assert (s < 1.3).all()


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_few_bits_are_near_many(precision):
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 16, 24)))
    off = orthogonalised(x, precision=precision).double() - orthogonalised(x, precision="native")
    assert off.abs().max() < (0.05 if precision == "bfloat16" else 1e-5)


@pytest.mark.parametrize("nesterov", [True, False])
def test_matrices_follow_the_equations(nesterov):
    start, gradients = _rows()[0], _rows(steps=5, seed=1)
    muon = _muon(lr=0.02, momentum=0.9, weight_decay=0.1, nesterov=nesterov)
    ours, state = _run(muon, start, gradients)
    for name in MATRICES:
        x = LAYOUT.views(start)[name].flatten(2)
        rows, columns = x.shape[1:]
        m = torch.zeros_like(x)
        for gradient in gradients:
            g = LAYOUT.views(gradient)[name].flatten(2)
            m = 0.9 * m + 0.1 * g
            u = 0.1 * g + 0.9 * m if nesterov else m
            step = orthogonalised(u, precision="native") * math.sqrt(max(1, rows / columns))
            x = (1 - 0.02 * 0.1) * x - 0.02 * step
        torch.testing.assert_close(LAYOUT.views(ours)[name].flatten(2), x, rtol=0, atol=1e-13)
        torch.testing.assert_close(muon.momenta(state)[name].flatten(2), m, rtol=0, atol=1e-13)


@pytest.mark.parametrize("adjust_lr", ["original", "match_rms_adamw"])
def test_muon_is_torchs_up_to_its_bfloat16(adjust_lr):
    start, gradients = _rows()[0].float(), _rows(steps=6, seed=1).float()
    muon = _muon(lr=0.02, weight_decay=0.1, adjust_lr=adjust_lr, precision="bfloat16")
    ours, _ = _run(muon, start, gradients)
    for name in ("0.up", "0.down", "1.up"):
        weight = torch.nn.Parameter(LAYOUT.views(start)[name][1].clone())
        options = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": adjust_lr}
        theirs = torch.optim.Muon([weight], **options)
        for gradient in gradients:
            weight.grad = LAYOUT.views(gradient)[name][1].clone()
            theirs.step()
        off = (LAYOUT.views(ours)[name][1] - weight).abs().max()
        assert off < 6 * 0.02 * 0.04 * muon.scale(weight.shape), name


def test_vectors_embeddings_and_the_head_get_the_other_optimizer():
    start, gradients = _rows()[0], _rows(steps=5, seed=1)
    ours, _ = _run(_muon(others=AdamW(0.01, weight_decay=0.1)), start, gradients)
    theirs, _ = _run(AdamW(0.01, weight_decay=0.1), start, gradients)
    same = {n: torch.equal(LAYOUT.views(ours)[n], LAYOUT.views(theirs)[n]) for n in LAYOUT.shapes}
    assert [name for name in LAYOUT.shapes if not same[name]] == list(MATRICES)


def test_a_model_of_vectors_is_left_to_the_other_optimizer():
    layout = Layout.flat(6)
    start, gradients = _rows(layout=layout)[0], _rows(steps=3, layout=layout, seed=1)
    ours, state = _run(Muon(others=SGD(0.1)).bind(layout), start, gradients)
    torch.testing.assert_close(ours, start - 0.1 * gradients.sum(0))
    assert "momentum" not in state


def test_a_model_of_matrices_has_no_state_of_the_other():
    state = Muon().bind(Layout({"w": (3, 2)})).init(torch.zeros(4, 6))
    assert {name: tuple(x.shape) for name, x in state.items()} == {
        "age": (4, 1),
        "momentum": (4, 6),
    }


def test_the_state_has_the_columns_that_are_needed():
    muon, matrices = _muon(), 24 + 24 + 24 + 24
    state = muon.init(torch.zeros(2, LAYOUT.numel))
    wide = {name: x.shape[1] for name, x in state.items()}
    rest = LAYOUT.numel - matrices
    assert wide["momentum"] == matrices
    assert wide["others.mean"] == wide["others.square"] == rest
    assert muon.state_rows == pytest.approx((matrices + 2 * rest) / LAYOUT.numel)


def test_flops_are_those_of_the_products():
    muon = Muon(ns_steps=3).bind(Layout({"w": (40, 10)}))
    gram, square, last = 2 * 10 * 10 * 40, 2 * 10**3, 2 * 10 * 10 * 40
    assert muon.flops == 3 * (gram + square + last)


def test_it_says_that_it_must_be_bound():
    with pytest.raises(ValueError, match=r"use bind\(layout\)"):
        Muon().init(torch.zeros(2, 3))


def test_rows_of_another_layout_are_refused():
    with pytest.raises(ValueError, match="rows of 3 values and is bound to a layout of"):
        _muon().init(torch.zeros(2, 3))


# -- both -----------------------------------------------------------------------------------------


@every
def test_rows_of_different_ages_are_each_what_they_would_be_alone(name):
    optimizer, start, gradients = OPTIMIZERS[name], _rows()[0], _rows(steps=9, seed=1)
    old, old_state = _run(optimizer, start[0], gradients[:6, 0])
    young_state = optimizer.init(start[1])
    state = {k: torch.stack([old_state[k], young_state[k]]) for k in old_state}
    both, state = _run(optimizer, torch.stack([old, start[1]]), gradients[6:, :2], state)
    alone = [_run(optimizer, old, gradients[6:, 0], old_state)[0]]
    alone.append(_run(optimizer, start[1], gradients[6:, 1])[0])
    assert torch.equal(both, torch.stack(alone))
    assert state["age"].tolist() == [[9], [3]]


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_in_place_writes_what_a_step_returns(name, dtype):
    optimizer = OPTIMIZERS[name]
    params, gradient = _rows(steps=2).to(dtype)
    _, state = _run(optimizer, params, gradient[None])
    kept = [x.clone() for x in (params, gradient, *state.values())]
    expected, expected_state = optimizer.step(params, gradient, state)
    assert all(torch.equal(a, b) for a, b in zip(kept, (params, gradient, *state.values())))
    optimizer.step_(params, gradient, state)
    assert torch.equal(params, expected)
    assert params.dtype == dtype
    assert torch.equal(gradient, kept[1])
    assert all(torch.equal(state[key], expected_state[key]) for key in expected_state)


@every
def test_a_step_works_on_the_meta_device(name):
    params = torch.empty(4, LAYOUT.numel, device="meta")
    stepped, _ = OPTIMIZERS[name].step(params, params, OPTIMIZERS[name].init(params))
    assert stepped.shape == params.shape


@pytest.mark.parametrize("make", [Lion, lambda lr, **o: _muon(lr=lr, others=SGD(0.0), **o)])
@pytest.mark.parametrize(
    "schedule", [WarmupCosine(warmup=4, total=10, floor=0.1), WSD(2, total=10, decay=4)]
)
def test_schedules_scale_each_step(make, schedule):
    start, gradients = _rows()[0], _rows(steps=12, seed=1)
    scheduled, plain = make(1.0, schedule=schedule), make(1.0)
    state, free = scheduled.init(start), plain.init(start)
    for age, gradient in enumerate(gradients):
        x, state = scheduled.step(start, gradient, state)
        y, free = plain.step(start, gradient, free)
        factor = schedule.factor(torch.tensor(age))
        torch.testing.assert_close(x - start, factor * (y - start), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lion(lr=-1), "lr=-1"),
        (lambda: Lion(0.1, betas=(0.9,)), r"two numbers, such as \(0.9, 0.99\)"),
        (lambda: Lion(0.1, betas=(1.0, 0.9)), r"betas\[0\]=1.0"),
        (lambda: Muon(momentum=1.0), "momentum=1.0"),
        (lambda: Muon(ns_steps=0), "ns_steps=0"),
        (lambda: Muon(precision="bf16"), "precision='bf16'.*try 'bfloat16'"),
        (lambda: Muon(adjust_lr="rms"), "adjust_lr='rms'"),
        (lambda: Muon(excluded="("), "must be a regular expression"),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- in a run -------------------------------------------------------------------------------------


def _consensus(strategy, n, **parts):
    """The consensus model at the start and after each round, [rounds + 1, P]."""
    rounds = RecordedRounds(lambda sim: strategy.consensus(sim))
    parts = {"budget": Budget(steps=6)} | parts
    task = Regression.drawn(n)
    Experiment(task, complete(n), strategy, coordinator=rounds, **parts).run()
    return torch.stack(rounds.notes)


def _gradient(task, x, t):
    """Of node 0 at step t."""
    inputs, targets = task.batch(np.array([0]), np.array([t]))
    return torch.func.grad(task.loss)(x, (inputs[0], targets[0]))


@pytest.mark.parametrize("inner", [Muon(precision="native"), Lion(0.01)], ids=["muon", "lion"])
def test_a_plain_round_of_one_step_on_one_node_is_the_inner_optimizer(inner):
    plain = DiLoCo(1, outer=SGD(1.0), compressor=EXACT)
    ours, theirs = _consensus(plain, 1, local=inner), _consensus(AllReduce(inner, EXACT), 1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    assert not torch.equal(ours[0], ours[-1])


def test_one_replica_is_nesterov_on_its_own_outer_gradients():
    """DiLoCo on one node: the outer optimizer alone, which explains a part of the gain."""
    strategy, task = DiLoCo(2, compressor=EXACT), Regression.drawn(1)
    notes = _consensus(strategy, 1, local=SGD(0.1), budget=Budget(steps=8))
    theta = torch.nn.Parameter(notes[0].clone())
    outer = torch.optim.SGD([theta], lr=0.7, momentum=0.9, nesterov=True)
    for r in range(4):
        x = theta.detach()
        for t in (2 * r, 2 * r + 1):
            x = x - 0.1 * _gradient(task, x, t)
        theta.grad = theta.detach() - x
        outer.step()
        torch.testing.assert_close(notes[r + 1], theta.detach(), rtol=0, atol=1e-13)


def test_all_reduce_with_muon_is_muon_on_the_mean_gradient():
    n, task = 3, Regression.drawn(3)
    muon, x = Muon(precision="native").bind(task.layout), task.init(torch.Generator())
    state = muon.init(x)
    for t in range(4):
        batches = task.batch(np.arange(n), np.full(n, t))
        grads = torch.func.vmap(torch.func.grad(task.loss), (None, 0))(x, batches)
        x, state = muon.step(x, grads.mean(0), state)
    strategy = AllReduce(Muon(precision="native"), EXACT)
    ours = _consensus(strategy, n, budget=Budget(steps=4))
    torch.testing.assert_close(ours[-1], x, rtol=0, atol=1e-13)


def test_an_outer_heavy_ball_has_no_look_ahead():
    """m <- mu m - lr delta, theta <- theta + m: NoLoCo's DiLoCo baseline."""
    notes = _consensus(
        DiLoCo(2, outer=SGD(0.7, 0.9), compressor=EXACT), 1, local=SGD(0.1), budget=Budget(steps=8)
    )
    task = Regression.drawn(1)
    theta, m = notes[0], torch.zeros_like(notes[0])
    for r in range(4):
        x = theta
        for t in (2 * r, 2 * r + 1):
            x = x - 0.1 * _gradient(task, x, t)
        m = 0.9 * m - 0.7 * (theta - x)
        theta = theta + m
        torch.testing.assert_close(notes[r + 1], theta, rtol=0, atol=1e-13)


def test_the_time_of_the_products_is_charged():
    """A step of 1 s, and three products of Newton-Schulz on each of five matrices."""
    task = Regression.drawn(2)
    flops = task.flops_per_token * task.tokens_per_step
    times = {}
    for name, local in {"sgd": SGD(0.1), "muon": Muon()}.items():
        device = Device(speed=flops, mfu=1, jitter=0, memory_bandwidth=1e30)
        run = Experiment(
            task, complete(2), DiLoCo(2), device=device, local=local, budget=Budget(steps=2)
        )
        run.run()
        times[name] = run.sim.trace["compute"]["end"].iloc[-1]
    more = 2 * Muon().bind(task.layout).flops / flops
    assert times["muon"] - times["sgd"] == pytest.approx(more, rel=1e-6)


def test_workers_do_not_change_bits():
    found = []
    for workers in (1, 3):
        line = ["strategy=muloco", "task=markov_small", "topology=complete", "topology.n=37"]
        small = ["strategy.inner_steps=3", "budget.steps=6", f"compute.workers={workers}"]
        run = assemble(cells.read(line + small).cells[0].cfg)
        run.run()
        found.append(run.sim.shared["theta"])
    assert torch.equal(*found)


def test_runs_side_by_side_have_the_bits_of_runs_alone():
    """Rates may differ in one block; which columns are matrices must not."""
    inners = [Muon(0.01), Muon(0.02), Muon(0.02, excluded="layers.0")]

    def run(inner, **together):
        task, budget = Digits(width=4, examples=3), Budget(steps=4)
        run = Experiment(task, complete(3), DiLoCo(2), local=inner, budget=budget)
        return run.run(**together)["metric"]["loss"].tolist()

    alone, joint = [run(inner) for inner in inners], Joint(1)
    programs = [partial(run, inner, joint=joint, kind="one") for inner in inners]
    assert joint.run(programs) == alone
    assert len(set(map(tuple, alone))) == 3


def test_muloco_brings_muon_and_the_command_line_wins():
    cfg = cells.read(["strategy=muloco"]).cells[0].cfg
    assert cfg.local._target_ == "optimizers.muon.Muon"
    cfg = cells.read(["strategy=muloco", "local=adamw", "compressor=ef_stat2"]).cells[0].cfg
    assert cfg.local._target_ == "optimizers.local.AdamW"
    assert cfg.strategy.compressor._target_ == "optimizers.compression.ErrorFeedback"


@pytest.mark.parametrize("choice", ["lion_cosine", "lion_wsd", "muon_cosine", "muon_wsd"])
def test_schedules_are_choices_and_reach_all_columns(choice):
    run = assemble(cells.read([f"local={choice}", "task=markov_small"]).cells[0].cfg)
    wanted = WarmupCosine if choice.endswith("cosine") else WSD
    assert isinstance(run.local.schedule, wanted)
    if isinstance(run.local, Muon):
        assert run.local.others.schedule == run.local.schedule


def test_a_strategy_tells_its_optimizers_the_layout():
    bound = AllReduce(Muon()).bind(LAYOUT)
    assert bound.optimizer == Muon().bind(LAYOUT)
    plain = DiLoCo()
    assert plain.bind(LAYOUT) is plain
