"""Compiled kernels against torch, forward and backward."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sim.compute.kernels.attention import attend, attend_backward
from sim.compute.kernels.convolution import (
    convolution_inputs,
    convolution_relu,
    convolution_weights,
)
from sim.compute.kernels.cross_entropy import UNSCORED, cross_entropy
from sim.compute.kernels.embedding import embed, embed_backward
from sim.compute.kernels.gelu import gelu, gelu_backward
from sim.compute.kernels.linear import (
    linear,
    linear_inputs,
    linear_relu,
    linear_weights,
    through_relu,
)
from sim.compute.kernels.norm import add, norm, norm_backward
from sim.compute.kernels.numeric import exp, upper_tail

C = 3
"""Nodes of a block."""


def _normal(*shape):
    return np.random.default_rng(math.prod(shape)).standard_normal(shape).astype(np.float32)


def _leaf(array):
    return torch.tensor(array, requires_grad=True)


def assert_close(found, expected, relative=2e-6):
    error = np.linalg.norm(found - expected.detach().numpy().reshape(found.shape))
    assert error <= relative * max(1e-6, float(expected.detach().norm()))


def test_exp_is_that_of_float64_to_float32_accuracy():
    for x in np.linspace(-87, 88, 701, dtype=np.float32):
        assert exp(x) == pytest.approx(math.exp(x), rel=3e-7)
    assert exp(np.float32(-1e30)) == 0
    assert math.isnan(exp(np.float32(math.nan)))


def test_the_tail_of_the_normal_distribution_is_that_of_erfc():
    for x in np.linspace(0, 12, 1201, dtype=np.float32):
        bell = np.float32(math.exp(-(float(x) ** 2) / 2))
        assert upper_tail(x, bell) == pytest.approx(
            math.erfc(float(x) / math.sqrt(2)) / 2, rel=1e-6, abs=0
        )


@pytest.mark.parametrize(
    ("M", "size_in", "size_out"), [(1, 3, 2), (32, 64, 64), (256, 64, 192), (70, 130, 240)]
)
@pytest.mark.parametrize("shared", [False, True])
def test_linear_layers_are_those_of_torch(M, size_in, size_out, shared):
    at, P = 5, 5 + size_in * size_out + size_out
    params, x, dy = _normal(1 if shared else C, P), _normal(C, M, size_in), _normal(C, M, size_out)
    rows, inputs = _leaf(params), _leaf(x)
    weight = rows[:, at : at + size_in * size_out].view(-1, size_out, size_in)
    expected = inputs @ weight.mT + rows[:, None, -size_out:]
    y, dx, grads = np.empty_like(dy), np.empty_like(x), np.zeros((C, P), np.float32)
    linear(params, at, P - size_out, x, y)
    assert_close(y, expected)
    linear_relu(params, at, P - size_out, x, y)
    assert_close(y, expected.relu())
    expected.backward(torch.from_numpy(dy))
    linear_weights(at, P - size_out, x, dy, grads)
    linear_inputs(params, at, dy, dx)
    assert_close(grads.sum(0, keepdims=True) if shared else grads, rows.grad)
    assert_close(dx, inputs.grad)


def test_a_relu_passes_gradients_where_its_output_is_positive():
    y, dy = np.array([0.0, 2.0, 0.0, 1.0], np.float32), np.arange(1, 5, dtype=np.float32)
    through_relu(y, dy)
    assert dy.tolist() == [0, 2, 0, 4]


@pytest.mark.parametrize("W", [7, 32, 64])
def test_layer_norm_and_its_gradients_are_those_of_torch(W):
    params, x, dy, residual = (
        _normal(C, 2 * W),
        _normal(C, 9, W),
        _normal(C, 9, W) + 1,
        _normal(9, W),
    )
    rows, inputs = _leaf(params), _leaf(x)
    expected = F.layer_norm(inputs, (W,)) * rows[:, None, :W] + rows[:, None, W:]
    y, moments, grads = np.empty_like(x), np.empty((C, 9, 2), np.float32), np.empty_like(params)
    norm(params, 0, W, x, y, moments)
    assert_close(y, expected)
    expected.backward(torch.from_numpy(dy))
    dx = np.stack([residual] * C)
    norm_backward(params, 0, W, x, moments, dy, dx, grads)
    assert_close(dx, inputs.grad + torch.from_numpy(residual))
    assert_close(grads, rows.grad)


def test_a_residual_is_added_with_the_bias():
    params, x, y = _normal(C, 8), _normal(C, 4, 6), _normal(C, 4, 6) * 2
    expected = y + x + params[:, None, 2:]
    add(params, 2, x, y)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


def test_gelu_and_its_gradient_are_those_of_torch():
    params, u, dy = _normal(C, 40), _normal(C, 50, 40) * 3, _normal(C, 50, 40)
    inputs = torch.tensor(u + params[:, None], dtype=torch.float64, requires_grad=True)
    expected = F.gelu(inputs)
    y = np.empty_like(u)
    gelu(params, 0, u, y)
    assert_close(y, expected, 3e-7)
    expected.backward(torch.from_numpy(dy).double())
    gelu_backward(u, dy)
    assert_close(dy, inputs.grad, 3e-7)


@pytest.mark.parametrize(
    ("T", "heads", "D"), [(1, 1, 1), (5, 2, 3), (16, 4, 8), (33, 1, 16), (64, 4, 8)]
)
def test_attention_and_its_gradients_are_those_of_torch(T, heads, D):
    W, S = heads * D, 2
    qkv, dy = _normal(C, S * T, 3 * W) * 2, _normal(C, S * T, W)
    inputs = _leaf(qkv)
    q, k, v = inputs.view(C * S, T, 3, heads, D).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    weights, y = np.empty((C * S, heads, T, T), np.float32), np.empty_like(dy)
    attend(qkv, heads, weights, y)
    assert_close(y, expected)
    expected.reshape(C, S * T, W).backward(torch.from_numpy(dy))
    dqkv = np.empty_like(qkv)
    attend_backward(qkv, heads, weights, dy, dqkv)
    assert_close(dqkv, inputs.grad)


def test_embeddings_are_gathered_and_their_gradients_added():
    V, T, W, context = 5, 4, 3, 6
    params, dx = _normal(C, (V + context) * W), _normal(C, 2 * T, W)
    tokens = np.random.default_rng(0).integers(0, V, (C, 2, T))
    rows = _leaf(params)
    table, places = rows[:, : V * W].view(C, V, W), rows[:, V * W :].view(C, context, W)[:, :T]
    expected = table[torch.arange(C)[:, None, None], torch.from_numpy(tokens)] + places[:, None]
    x, grads = np.empty_like(dx), np.zeros_like(params)
    embed(params, 0, V * W, V, tokens, x)
    assert_close(x, expected)
    expected.flatten(1, 2).backward(torch.from_numpy(dx))
    embed_backward(0, V * W, context, tokens, dx, grads)
    assert_close(grads, rows.grad)


@pytest.mark.parametrize(
    ("N", "stride", "I", "O", "B"), [(5, 1, 1, 3, 2), (5, 2, 2, 3, 7), (8, 2, 12, 24, 32)]
)
def test_convolutions_are_those_of_torch(N, stride, I, O, B):
    n, P = (N - 1) // stride + 1, O * I * 9 + O
    params, x, dy = _normal(C, P), _normal(C, I, N, N, B), _normal(C, O, n, n, B)
    rows, inputs = _leaf(params), _leaf(x)
    raw = [
        F.conv2d(image.permute(3, 0, 1, 2), row[:-O].view(O, I, 3, 3), row[-O:], stride, padding=1)
        for image, row in zip(inputs, rows)
    ]
    expected = torch.stack(raw).permute(0, 2, 3, 4, 1)
    patches, y = np.empty((C, 9 * I, n, n, B), np.float32), np.empty_like(dy)
    convolution_relu(params, 0, P - O, x, stride, patches, y)
    assert_close(y, expected.relu())
    expected.backward(torch.from_numpy(dy))
    grads, dx = np.empty_like(params), np.empty_like(x)
    convolution_weights(0, P - O, patches, dy, grads)
    convolution_inputs(params, 0, dy, stride, np.empty_like(patches[0]), dx)
    assert_close(grads, rows.grad)
    assert_close(dx, inputs.grad)


def test_cross_entropy_is_the_mean_over_what_is_scored():
    logits, targets = _normal(C, 6, 11) * 4, np.random.default_rng(0).integers(0, 11, (C, 6))
    targets[0, 2:], targets[1] = UNSCORED, np.where(np.arange(6) % 2, targets[1], UNSCORED)
    inputs = _leaf(logits)
    expected = torch.stack(
        [F.cross_entropy(a, b) for a, b in zip(inputs, torch.from_numpy(targets))]
    )
    losses = np.empty(C, np.float32)
    cross_entropy(logits.reshape(1, -1, 11), targets.reshape(1, -1), 6, losses)
    assert_close(losses, expected)
    expected.sum().backward()
    assert_close(logits, inputs.grad)


def test_what_is_not_scored_at_all_has_no_loss_and_no_gradient():
    logits, losses = _normal(1, 4, 3), np.ones(1, np.float32)
    cross_entropy(logits, np.full((1, 4), UNSCORED), 4, losses)
    assert losses == [0]
    assert not logits.any()


@pytest.mark.parametrize("target", [-1, 3])
def test_a_target_that_is_no_class_is_refused(target):
    with pytest.raises(IndexError, match="target"):
        cross_entropy(_normal(1, 1, 3), np.array([[target]]), 1, np.empty(1, np.float32))


@pytest.mark.parametrize("token", [-1, 5])
def test_a_token_that_is_not_in_the_vocabulary_is_refused(token):
    with pytest.raises(IndexError, match="vocabulary"):
        embed(_normal(1, 12), 0, 10, 5, np.array([[[token]]]), np.empty((1, 1, 2), np.float32))
