"""The tiny models that are trained: MLP, CNN, GPT; and how their parameters begin.

Notable choices, all so that one model per node can run under `vmap(grad(...))`:

- no dropout, no batch norm: an output depends on the parameters and on its own example only;
- no buffers: a model is its parameters, on whatever device they are;
- attention is plain matmuls and a softmax, since the fused kernel has no vmap rule on CPUs;
- tokens are embedded by a matmul with one-hot rows. It costs what the gather costs at these sizes
  (63 ms for a step of 32 models either way, one thread), and its backward pass adds in a fixed
  order on every device.

Legend: B examples, T positions, V vocabulary, W width, H heads, D = W / H.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.tasks.checks import at_least

_BACKWARD = 6.0
"""FLOP per multiply-add of the forward pass: 2 forward, 4 backward."""


def n_parameters(module: nn.Module) -> int:
    """P, the number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def reset(module: nn.Module, generator: torch.Generator) -> None:
    """Draw a module's parameters again, from `generator` alone, in place.

    Weights of linear and convolution layers are normal with variance 1 / fan-in, token embeddings
    standard normal, biases and positions zero, gains of norms one. With embeddings of deviation
    0.02 the Markov language is 0.1 nats behind after 200 steps.

    Raises:
        ValueError: if a part of the module owns parameters of another kind.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="linear", generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, generator=generator)
        elif isinstance(part, Positions):
            nn.init.zeros_(part.weight)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
        elif any(True for _ in part.parameters(recurse=False)):
            raise ValueError(
                f"{name}={type(part).__name__}: cannot draw its parameters; use Linear, Conv2d, "
                "Embedding, Positions or LayerNorm"
            )


class MLP(nn.Module):
    """Fully connected ReLU network: `[B, inputs] -> [B, classes]`."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], classes: int) -> None:
        super().__init__()
        sizes = (inputs, *hidden, classes)
        at_least(1, {f"sizes[{i}]": size for i, size in enumerate(sizes)})
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    @property
    def flops(self) -> float:
        """FLOP of forward and backward per example."""
        return _BACKWARD * n_parameters(self)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


class CNN(nn.Module):
    """Two 3 x 3 convolutions, the second with stride 2, and a linear layer.

    Takes grey images as rows, `[B, side * side]`, and gives `[B, classes]`.
    """

    def __init__(self, side: int, channels: int, classes: int) -> None:
        super().__init__()
        at_least(2, {"side": side, "channels": channels, "classes": classes})
        self.side, self.halved = side, (side + 1) // 2
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.head = nn.Linear(2 * channels * self.halved**2, classes)

    @property
    def flops(self) -> float:
        """FLOP of forward and backward per example; a kernel is used once per output pixel."""
        first = self.side**2 * n_parameters(self.first)
        second = self.halved**2 * n_parameters(self.second)
        return _BACKWARD * (first + second + n_parameters(self.head))

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (1, self.side, self.side))  # [B, 1, side, side]
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.flatten(-3))


class Positions(nn.Module):
    """A learned vector per position, [T, W]."""

    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(context, width))

    def forward(self, T: int) -> Tensor:
        return self.weight[:T]


class Block(nn.Module):
    """A transformer layer, pre-norm: causal attention, then a GELU MLP of four times the width."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.out(self._attend(self.qkv(self.attention_norm(x)), mask))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))

    def _attend(self, qkv: Tensor, mask: Tensor) -> Tensor:
        B, T, _ = qkv.shape
        q, k, v = qkv.view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # [B, H, T, D] each
        # Scaling q rather than the scores touches T x D values instead of T x T.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + mask  # [B, H, T, T]
        return (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(B, T, -1)


class GPT(nn.Module):
    """A decoder-only transformer with learned positions: tokens `[B, T]` -> logits `[B, T, V]`.

    Args:
        vocabulary: V; tokens are integers in [0, V).
        context: the largest T.
        layers, heads, width: heads divides width.
        tied: use the token embedding as the output matrix as well.
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        layers: int,
        heads: int,
        width: int,
        tied: bool = False,
    ) -> None:
        super().__init__()
        at_least(1, {"vocabulary": vocabulary, "context": context, "layers": layers})
        at_least(1, {"heads": heads, "width": width})
        if width % heads:
            near = max(1, round(width / heads)) * heads
            raise ValueError(f"width={width}: must be a multiple of heads={heads}; try {near}")
        self.vocabulary, self.context, self.width = vocabulary, context, width
        self.token = nn.Embedding(vocabulary, width)
        self.position = Positions(context, width)
        self.blocks = nn.ModuleList(Block(heads, width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = None if tied else nn.Linear(width, vocabulary, bias=False)

    @property
    def flops(self) -> float:
        """FLOP of forward and backward per token: 6 P + 12 layers * width * context.

        Source: appendix B of PaLM (Chowdhery et al., arXiv:2204.02311). P counts embeddings as
        well (the token embedding is a matmul here), and attention is computed in full, then masked.
        """
        attention = 12.0 * len(self.blocks) * self.width * self.context
        return _BACKWARD * n_parameters(self) + attention

    def forward(self, tokens: Tensor) -> Tensor:
        T = tokens.shape[-1]
        table = self.token.weight
        one_hot = tokens[..., None] == torch.arange(self.vocabulary, device=tokens.device)
        x = one_hot.to(table.dtype) @ table + self.position(T)  # [B, T, W]
        mask = torch.full((T, T), -math.inf, dtype=x.dtype, device=x.device).triu(1)
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        if self.head is not None:
            return self.head(x)
        return x @ table.T * self.width**-0.5  # the table has variance 1, not 1 / width


BUILT_IN = (CNN, GPT, MLP)
"""Modules that `reset` draws and that know their FLOP."""
