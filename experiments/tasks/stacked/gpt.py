"""The GPT for a block of nodes: hand-written forward and backward passes.

Legend: g runs (nodes, or one for all of them), M tokens of a run, in sequences of T; c nodes,
P parameters, W width, H heads, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.tasks.models import GPT, Block
from sim.compute.kernels.attention import attend, attend_backward
from sim.compute.kernels.cross_entropy import cross_entropy
from sim.compute.kernels.embedding import embed, embed_backward
from sim.compute.kernels.gelu import gelu, gelu_backward
from sim.compute.kernels.linear import NO_BIAS, linear, linear_inputs, linear_weights
from sim.compute.kernels.norm import add, norm, norm_backward
from sim.compute.layout import Layout
from sim.compute.stacked import Space


@dataclass(frozen=True)
class _Half:
    """What the attention or the MLP of a layer leaves for the backward pass."""

    x: np.ndarray
    """[g, M, W], the residual stream before it."""
    normed: np.ndarray
    moments: np.ndarray
    wide: np.ndarray
    """Queries, keys and values [g, M, 3 W]; or slopes of the GELU [g, M, 4 W]."""
    y: np.ndarray
    """What the last linear layer multiplies: [g, M, W] or [g, M, 4 W]."""


@dataclass(frozen=True)
class _Work:
    """Arrays of one shape of a block, all of them float32."""

    attentions: list[_Half]
    mlps: list[_Half]
    weights: list[np.ndarray]
    """Of attention, [g M / T, H, T, T] per layer."""
    last: _Half
    """The final norm; `wide` are the logits [g, M, V], and `y` is empty."""
    dx: np.ndarray
    """[g, M, W], gradient of the residual stream."""
    dnormed: np.ndarray
    dqkv: np.ndarray
    dhidden: np.ndarray


class StackedGPT:
    """Cross-entropy of a `GPT`.

    Args:
        module: gives the sizes.
        layout: where its tensors are in a row.
    """

    def __init__(self, module: GPT, layout: Layout) -> None:
        first = module.blocks[0]
        assert isinstance(first, Block)
        self._heads, self._layers = first.heads, len(module.blocks)
        self._context, self._width = module.context, module.width
        self._vocabulary = module.vocabulary
        self._scale = np.float32(module.width**-0.5) if module.head is None else None
        starts = {name: part.start for name, part in layout.slices.items()}
        self._token, self._position = starts["token.weight"], starts["position.weight"]
        self._head = starts.get("head.weight", self._token)
        self._norm = _places(starts, "")["norm"]
        self._places = [_places(starts, f"blocks.{k}.") for k in range(self._layers)]
        self._space, self._shape = Space(), (0, 0, 0)

    def values(self, examples: int) -> int:
        """float32 values of work space per node with so many examples (tokens)."""
        per_layer = 16 * self._width + self._heads * self._context + 4
        per_token = self._layers * per_layer + 11 * self._width + self._vocabulary + 2
        return examples * per_token

    def gradients(
        self,
        params: np.ndarray,
        inputs: np.ndarray,
        targets: np.ndarray,
        grads: np.ndarray,
        losses: np.ndarray,
    ) -> None:
        """As `Stacked.gradients`; inputs and targets int64 [c, B, T].

        A target of -100 is not scored, and a loss is the mean over what is.
        """
        runs, (_, B, T) = len(grads), inputs.shape
        tokens = inputs.reshape(runs, -1, T)
        work = self._prepared(runs, tokens.shape[1] * T, T)
        x = work.attentions[0].x
        embed(params, self._token, self._position, self._vocabulary, tokens, x)
        for k in range(self._layers):
            self._forward(params, k, work)
        self._logits(params, work.last)
        cross_entropy(work.last.wide, targets.reshape(runs, -1), B * T, losses)
        self._logits_backward(params, work, grads)
        for k in reversed(range(self._layers)):
            self._backward(params, k, work, grads)
        if self._scale is None:
            grads[:, self._token : self._token + self._vocabulary * self._width] = 0
        embed_backward(self._token, self._position, self._context, tokens, work.dx, grads)

    def _forward(self, params: np.ndarray, k: int, work: _Work) -> None:
        at, attention, mlp = self._places[k], work.attentions[k], work.mlps[k]
        after = work.attentions[k + 1].x if k + 1 < self._layers else work.last.x
        norm(params, *at["attention_norm"], attention.x, attention.normed, attention.moments)
        linear(params, *at["qkv"], attention.normed, attention.wide)
        attend(attention.wide, self._heads, work.weights[k], attention.y)
        linear(params, at["out"][0], NO_BIAS, attention.y, mlp.x)
        add(params, at["out"][1], attention.x, mlp.x)
        norm(params, *at["mlp_norm"], mlp.x, mlp.normed, mlp.moments)
        linear(params, at["up"][0], NO_BIAS, mlp.normed, mlp.wide)
        gelu(params, at["up"][1], mlp.wide, mlp.y)
        linear(params, at["down"][0], NO_BIAS, mlp.y, after)
        add(params, at["down"][1], mlp.x, after)

    def _backward(self, params: np.ndarray, k: int, work: _Work, grads: np.ndarray) -> None:
        at, attention, mlp = self._places[k], work.attentions[k], work.mlps[k]
        dx, dnormed, dhidden, dqkv = work.dx, work.dnormed, work.dhidden, work.dqkv
        linear_weights(*at["down"], mlp.y, dx, grads)
        linear_inputs(params, at["down"][0], dx, dhidden)
        gelu_backward(mlp.wide, dhidden)
        linear_weights(*at["up"], mlp.normed, dhidden, grads)
        linear_inputs(params, at["up"][0], dhidden, dnormed)
        norm_backward(params, *at["mlp_norm"], mlp.x, mlp.moments, dnormed, dx, grads)
        linear_weights(*at["out"], attention.y, dx, grads)
        linear_inputs(params, at["out"][0], dx, dnormed)
        attend_backward(attention.wide, self._heads, work.weights[k], dnormed, dqkv)
        linear_weights(*at["qkv"], attention.normed, dqkv, grads)
        linear_inputs(params, at["qkv"][0], dqkv, dnormed)
        norm_backward(
            params, *at["attention_norm"], attention.x, attention.moments, dnormed, dx, grads
        )

    def _logits(self, params: np.ndarray, last: _Half) -> None:
        norm(params, *self._norm, last.x, last.normed, last.moments)
        if self._scale is not None:
            last.normed[:] *= self._scale
        linear(params, self._head, NO_BIAS, last.normed, last.wide)

    def _logits_backward(self, params: np.ndarray, work: _Work, grads: np.ndarray) -> None:
        last, dnormed = work.last, work.dnormed
        linear_weights(self._head, NO_BIAS, last.normed, last.wide, grads)
        linear_inputs(params, self._head, last.wide, dnormed)
        if self._scale is not None:
            dnormed *= self._scale
        work.dx[:] = 0
        norm_backward(params, *self._norm, last.x, last.moments, dnormed, work.dx, grads)

    def _prepared(self, runs: int, M: int, T: int) -> _Work:
        """Arrays for blocks of this shape; those of the last call if it had the same."""
        if self._shape != (runs, M, T):
            self._shape, self._work = (runs, M, T), self._work_for(runs, M, T)
        return self._work

    def _work_for(self, runs: int, M: int, T: int) -> _Work:
        W, layers = self._width, range(self._layers)

        def tokens(name, size):
            return self._space(name, runs, M, size)

        def half(name, wide, y):
            return _Half(
                tokens(f"{name} x", W),
                tokens(f"{name} normed", W),
                tokens(f"{name} moments", 2),
                tokens(f"{name} wide", wide),
                tokens(f"{name} y", y),
            )

        return _Work(
            [half(f"attention {k}", 3 * W, W) for k in layers],
            [half(f"mlp {k}", 4 * W, 4 * W) for k in layers],
            [self._space(f"weights {k}", runs * M // T, self._heads, T, T) for k in layers],
            half("last", self._vocabulary, 0),
            *(tokens("dx", W), tokens("dnormed", W), tokens("dqkv", 3 * W), tokens("dh", 4 * W)),
        )


def _places(starts: dict[str, int], prefix: str) -> dict[str, tuple[int, int]]:
    """Where weight and bias of every part below `prefix` begin in a row."""
    names = [name.removeprefix(prefix) for name in starts if name.startswith(prefix)]
    return {
        part: (starts[f"{prefix}{part}.weight"], starts.get(f"{prefix}{part}.bias", NO_BIAS))
        for part in (name.removesuffix(".weight") for name in names if name.endswith(".weight"))
    }
