"""Local optimizers against torch.optim, row by row, with rows of different ages."""

import math

import pytest
import torch

from optimizers.local import SGD, AdamW
from optimizers.schedule import WSD, Constant, WarmupCosine

CASES = {
    "plain": (SGD(0.1), torch.optim.SGD, {"lr": 0.1}),
    "momentum": (SGD(0.1, 0.9), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "nesterov": (
        SGD(0.7, 0.9, nesterov=True, weight_decay=0.1),
        torch.optim.SGD,
        {"lr": 0.7, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ),
    "adamw": (
        AdamW(0.01, betas=(0.9, 0.95)),
        torch.optim.AdamW,
        {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.0},
    ),
    "adamw with decay": (
        AdamW(0.01, betas=(0.8, 0.99), eps=1e-4, weight_decay=0.1),
        torch.optim.AdamW,
        {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.1},
    ),
}


def _gradients(steps, rows=3, numel=5):
    return torch.randn(steps, rows, numel, generator=torch.Generator().manual_seed(1)).double()


def _torch_run(make, options, start, gradients):
    params = start.clone().requires_grad_()
    optimizer = make([params], **options)
    for gradient in gradients:
        params.grad = gradient.clone()
        optimizer.step()
    return params.detach()


def _run(optimizer, params, gradients, state=None):
    state = state or optimizer.init(params)
    for gradient in gradients:
        params, state = optimizer.step(params, gradient, state)
    return params, state


@pytest.mark.parametrize("name", CASES)
def test_each_row_of_a_block_follows_torch(name):
    optimizer, make, options = CASES[name]
    start, gradients = _gradients(1)[0], _gradients(7)
    ours, _ = _run(optimizer, start, gradients)
    for row in range(3):
        theirs = _torch_run(make, options, start[row], gradients[:, row])
        torch.testing.assert_close(ours[row], theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_rows_of_different_ages_follow_torch(name):
    optimizer, make, options = CASES[name]
    start, gradients = _gradients(1)[0], _gradients(9)
    old, old_state = _run(optimizer, start[0], gradients[:6, 0])
    young, young_state = start[1], optimizer.init(start[1])
    state = {k: torch.stack([old_state[k], young_state[k]]) for k in old_state}
    both, state = _run(optimizer, torch.stack([old, young]), gradients[6:, :2], state)
    old_torch = _torch_run(make, options, start[0], gradients[:, 0])
    young_torch = _torch_run(make, options, start[1], gradients[6:, 1])
    torch.testing.assert_close(both, torch.stack([old_torch, young_torch]), rtol=1e-12, atol=1e-12)
    assert state["age"].tolist() == [[9], [3]]


@pytest.mark.parametrize("name", CASES)
def test_one_model_and_one_row_agree(name):
    optimizer = CASES[name][0]
    start, gradients = _gradients(1)[0, 0], _gradients(4)[:, 0]
    flat, _ = _run(optimizer, start, gradients)
    block, _ = _run(optimizer, start[None], gradients[:, None])
    assert torch.equal(flat, block[0])


@pytest.mark.parametrize("name", CASES)
def test_a_step_leaves_its_arguments_alone(name):
    optimizer = CASES[name][0]
    params, gradient = _gradients(2)
    _, state = _run(optimizer, params, gradient[None])
    before = [t.clone() for t in (params, gradient, *state.values())]
    optimizer.step(params, gradient, state)
    assert all(torch.equal(a, b) for a, b in zip(before, (params, gradient, *state.values())))


@pytest.mark.parametrize("name", CASES)
def test_a_step_in_place_writes_what_a_step_returns(name):
    optimizer = CASES[name][0]
    params, gradient = _gradients(2)
    _, state = _run(optimizer, params, gradient[None])
    kept = gradient.clone()
    expected, expected_state = optimizer.step(params, gradient, state)
    optimizer.step_(params, gradient, state)
    assert torch.equal(params, expected)
    assert torch.equal(gradient, kept)
    assert all(torch.equal(state[key], expected_state[key]) for key in expected_state)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_step_keeps_the_dtype(name, dtype):
    optimizer = CASES[name][0]
    params, state = _run(optimizer, torch.ones(2, 3, dtype=dtype), torch.ones(1, 2, 3, dtype=dtype))
    rows = [tensor for key, tensor in state.items() if key != "age"]
    assert {tensor.dtype for tensor in (params, *rows)} == {dtype}


@pytest.mark.parametrize("name", CASES)
def test_a_step_works_on_the_meta_device(name):
    optimizer = CASES[name][0]
    params = torch.empty(4, 10, device="meta")
    stepped, state = optimizer.step(params, params, optimizer.init(params))
    assert stepped.shape == (4, 10)
    assert state["age"].shape == (4, 1)


@pytest.mark.parametrize("name", CASES)
def test_state_rows_counts_the_parameter_sized_tensors(name):
    optimizer = CASES[name][0]
    state = optimizer.init(torch.zeros(3, 5))
    assert sum(tensor.shape == (3, 5) for tensor in state.values()) == optimizer.state_rows
    assert (
        optimizer.passes == 3 + 2 * optimizer.state_rows
    )  # x twice, g once, state read and written


def test_clipping_bounds_each_row_as_torch_does():
    gradients = _gradients(1)[0] * torch.tensor([[0.01], [1.0], [100.0]])
    params, _ = SGD(lr=1.0, clip=0.5).step(
        torch.zeros(3, 5).double(), gradients, {"age": 0 * gradients[:, :1]}
    )
    for row in range(3):
        model = torch.nn.Parameter(torch.zeros(5).double())
        model.grad = gradients[row].clone()
        torch.nn.utils.clip_grad_norm_([model], 0.5)
        torch.testing.assert_close(-params[row], model.grad)


def test_cosine_follows_torch_after_the_warmup():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.1)
    expected = []
    for _ in range(21):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    ours = WarmupCosine(warmup=5, total=25, floor=0.1).factor(torch.arange(5, 26))
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64))


def test_warmup_is_linear_and_never_zero():
    factors = WarmupCosine(warmup=4, total=10).factor(torch.arange(4))
    assert factors.tolist() == [0.25, 0.5, 0.75, 1.0]


def test_wsd_warms_up_stays_and_decays():
    factors = WSD(warmup=2, total=10, decay=4, floor=0.2).factor(
        torch.tensor([0, 1, 5, 6, 8, 10, 99])
    )
    torch.testing.assert_close(
        factors, torch.tensor([0.5, 1, 1, 1, 0.6, 0.2, 0.2], dtype=torch.float64)
    )


def test_the_schedule_follows_the_age_of_each_row():
    optimizer = SGD(lr=1.0, schedule=WarmupCosine(warmup=10, total=20))
    state = {"age": torch.tensor([[0], [4], [30]])}
    params, _ = optimizer.step(torch.zeros(3, 2), torch.ones(3, 2), state)
    torch.testing.assert_close(params[:, 0], -torch.tensor([0.1, 0.5, 0.0]))


def test_constant_is_one_at_every_age():
    assert Constant().factor(torch.tensor([0, 10**6])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(lr=-1), "lr=-1"),
        (lambda: SGD(lr=math.nan), "lr=nan"),
        (lambda: SGD(0.1, momentum=1.0), "momentum=1.0"),
        (lambda: SGD(0.1, nesterov=True), "needs momentum"),
        (lambda: SGD(0.1, clip=0.0), "clip=0.0"),
        (lambda: AdamW(0.1, betas=(0.9,)), "two numbers"),
        (lambda: AdamW(0.1, betas=(0.9, 1.5)), r"betas\[1\]=1.5"),
        (lambda: AdamW(0.1, eps=0), "eps=0"),
        (lambda: WarmupCosine(10, 10), "at least 11"),
        (lambda: WarmupCosine(-1, 10), "warmup=-1"),
        (lambda: WSD(5, 10, decay=6), "1..total - warmup = 5"),
        (lambda: WSD(5, 10, decay=5, floor=2), "floor=2"),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
