"""Hand-written passes of the built-in models against `torch.func` on the models themselves."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional as F

from experiments.tasks.models import CNN, GPT, MLP
from experiments.tasks.stacked import FORMS
from sim.compute.layout import Layout

NODES = 5
MODELS = {
    "mlp": (lambda: MLP(64, (64,), 10), 32),
    "mlp of odd sizes": (lambda: MLP(5, (7, 3), 2), 3),
    "mlp without hidden layers": (lambda: MLP(6, (), 4), 1),
    "cnn": (lambda: CNN(8, 12, 10), 32),
    "cnn of odd sizes": (lambda: CNN(5, 3, 4), 3),
    "gpt": (lambda: GPT(64, 64, 2, 4, 32), 4),
    "gpt, wide": (lambda: GPT(64, 64, 2, 4, 64), 4),
    "gpt, tied": (lambda: GPT(29, 16, 1, 2, 16, tied=True), 2),
    "gpt of odd sizes": (lambda: GPT(11, 9, 3, 3, 21), 3),
    "gpt of odd sizes, tied": (lambda: GPT(11, 20, 2, 1, 7, tied=True), 1),
}
every_model = pytest.mark.parametrize("name", MODELS)


def _case(name, shared=False):
    """Module, parameters, inputs and targets; sequences are shorter than the context if odd."""
    build, B = MODELS[name]
    module, draw = build(), torch.Generator().manual_seed(3)
    P = sum(p.numel() for p in module.parameters())
    params = 0.3 * torch.randn(1 if shared else NODES, P, generator=draw)
    if isinstance(module, GPT):
        T = module.context - ("odd" in name)
        inputs, targets = torch.randint(0, module.vocabulary, (2, NODES, B, T), generator=draw)
        targets[torch.rand(targets.shape, generator=draw) < 0.2] = -100
        return module, params, inputs, targets
    if isinstance(module, MLP):
        width, classes = module.layers[0].in_features, module.layers[-1].out_features
    else:
        width, classes = module.side**2, module.head.out_features
    inputs = torch.randn(NODES, B, width, generator=draw)
    return module, params, inputs, torch.randint(0, classes, (NODES, B), generator=draw)


def _stacked(module, params, inputs, targets, rows=NODES):
    form = FORMS[type(module)](module, Layout.of_module(module))
    grads, losses = (np.full(s, np.nan, np.float32) for s in ((rows, params.shape[1]), len(inputs)))
    form.gradients(params.numpy(), inputs.numpy(), targets.numpy(), grads, losses)
    return torch.from_numpy(grads), torch.from_numpy(losses)


def _by_torch(module, params, inputs, targets):
    layout = Layout.of_module(module)

    def loss(row, x, y):
        outputs = functional_call(module, layout.views(row), (x,))
        return F.cross_entropy(outputs.flatten(0, -2), y.flatten())

    return vmap(grad_and_value(loss))(params.expand(NODES, -1), inputs, targets)


def _relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@every_model
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_and_losses_are_those_of_the_module(name, shared):
    case = _case(name, shared)
    grads, losses = _stacked(*case)
    expected, expected_losses = _by_torch(*case)
    assert _relative(losses, expected_losses) < 1e-6
    for tensor, part in Layout.of_module(case[0]).slices.items():
        assert _relative(grads[:, part], expected[:, part]) < 5e-6, tensor


@every_model
def test_one_row_of_gradients_is_the_sum_over_the_nodes(name):
    case = _case(name, shared=True)
    summed, losses = _stacked(*case, rows=1)
    grads, each = _stacked(*case)
    assert _relative(summed, grads.sum(0, keepdim=True)) < 2e-6
    assert _relative(losses, each) < 1e-6


@every_model
def test_a_node_gets_the_same_bits_whoever_is_in_its_block(name):
    module, *arrays = _case(name)
    grads, losses = _stacked(module, *arrays)
    for block in ([2], [4, 2], [0, 1, 3, 2]):
        part = [array[block].contiguous() for array in arrays]
        own, loss = _stacked(module, *part, rows=len(block))
        assert torch.equal(own[-1], grads[2])
        assert loss[-1] == losses[2]


@every_model
def test_a_second_block_of_another_size_is_not_disturbed_by_the_first(name):
    module, params, inputs, targets = _case(name)
    form = FORMS[type(module)](module, Layout.of_module(module))
    fresh, _ = _stacked(module, params, inputs, targets)
    for c in (NODES, 2, NODES):
        grads, losses = np.empty((c, params.shape[1]), np.float32), np.empty(c, np.float32)
        arrays = (params[:c].numpy(), inputs[:c].numpy(), targets[:c].numpy())
        form.gradients(*arrays, grads, losses)
        assert np.array_equal(grads, fresh[:c].numpy())


@every_model
def test_a_model_that_diverged_has_no_finite_loss(name):
    module, params, inputs, targets = _case(name)
    params[1] = torch.nan
    _, losses = _stacked(module, params, inputs, targets)
    assert torch.isfinite(losses).tolist() == [True, False, True, True, True]


@every_model
def test_the_work_space_is_as_large_as_it_says(name):
    module, params, inputs, targets = _case(name)
    _stacked(module, params, inputs, targets)  # compiles
    values = FORMS[type(module)](module, Layout.of_module(module)).values(targets[0].numel())
    tracemalloc.start()
    form = FORMS[type(module)](module, Layout.of_module(module))
    grads, losses = np.empty((NODES, params.shape[1]), np.float32), np.empty(NODES, np.float32)
    before, _ = tracemalloc.get_traced_memory()
    form.gradients(params.numpy(), inputs.numpy(), targets.numpy(), grads, losses)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.5 * values <= (after - before) / 4 / NODES <= 1.05 * values + 1000
