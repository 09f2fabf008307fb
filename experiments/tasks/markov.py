"""MarkovLanguage: a transformer learns an artificial language whose entropy is known exactly.

The language is an order-2 Markov chain (`chain.py`): the next symbol depends on the last two, and
low symbols are frequent. Its entropy rate is the smallest loss that any model can reach, so
`loss - floor` is the honest measure of what was learnt.

Legend: n nodes of a batch, B sequences, T context, V vocabulary, P parameters.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.tasks.chain import (
    Factors,
    FactorSampler,
    Sampler,
    TableSampler,
    entropy_rate,
    stationary,
)
from experiments.tasks.checks import at_least, not_negative
from experiments.tasks.models import GPT
from experiments.tasks.module_task import Model, ModuleTask, OwnModel
from experiments.tasks.own_model import chosen, flops_per_token
from sim.compute.kernels.cross_entropy import UNSCORED
from sim.streams import Streams, uniforms


@dataclass(eq=False)
class MarkovLanguage(ModuleTask):
    """Next-symbol prediction with P(c | a, b) ~ rank(c)^-alpha * exp(scale * (A[a, c] + B[b, c])).

    A model sees T symbols of each sequence and predicts the next of each. The first prediction is
    not scored, as it has one symbol of context instead of the two that determine the distribution.

    Evaluation is exact where it can be: contexts are held-out sequences of the base language, and
    at each the model's distribution is compared with the true one, not with a drawn symbol.
    `"excess"` is the mean Kullback-Leibler divergence and `"loss"` is floor + excess, in nats per
    symbol, so the loss is never below its floor.

    Args:
        vocabulary: V, 2 to 256.
        alpha, scale: shape of the language, see above; A and B are standard normal.
        context: T, symbols that the model sees.
        sequences: B, sequences per node and step; `tokens_per_step` is B * T.
        heterogeneity: h; node i speaks a language with tables (A + h A_i) / sqrt(1 + h^2), and
            the same for B. The evaluated language, and the floor, are those of h = 0, which for
            h > 0 is approached but not reached, as the nodes' languages differ from it.
        model: "gpt", a transformer, or a module of yours, symbols [B, T] (int64) to logits
            [B, T, V]: the module, or what makes it when called without arguments.
        layers, width, heads: of "gpt".
        evaluation_sequences: held-out sequences.
        language_seed: seed of A, B, A_i, B_i and the held-out sequences; apart from the run's
            seed, so that runs of several seeds train on the same language.
    """

    vocabulary: int = 64
    alpha: float = 1.0
    scale: float = 1.0
    context: int = 64
    sequences: int = 4
    heterogeneity: float = 0.0
    model: str | OwnModel = "gpt"
    layers: int = 2
    width: int = 32
    heads: int = 4
    evaluation_sequences: int = 128
    language_seed: int = 0

    def __post_init__(self) -> None:
        at_least(2, {"vocabulary": self.vocabulary, "context": self.context})
        if self.vocabulary > 256:  # V^3 chances of 8 bytes are 134 MB at 256
            raise ValueError(f"vocabulary={self.vocabulary}: must be 2 to 256; try 256")
        at_least(1, {"sequences": self.sequences})
        at_least(1, {"evaluation_sequences": self.evaluation_sequences})
        not_negative({"alpha": self.alpha, "scale": self.scale})
        not_negative({"heterogeneity": self.heterogeneity})
        shape = (self.vocabulary, self.context, self.layers, self.heads, self.width)
        example = torch.arange(2 * self.context).view(2, -1) % self.vocabulary
        build = chosen(self.model, {"gpt": lambda: GPT(*shape)})
        module = self.attach(build, example, output=(*example.shape, self.vocabulary))
        self.flops_per_token = flops_per_token(self, module, example, example.numel())
        self.tokens_per_step = self.sequences * self.context
        self._speak()

    def _speak(self) -> None:
        """Draw the base language, its floor and the held-out contexts."""
        self._tables = self._draw_tables("markov tables")
        factors = Factors.log_linear(self._tables[None], self.alpha, self.scale)
        conditionals = factors.conditionals()
        pairs = stationary(conditionals)
        self._entropy = entropy_rate(conditionals, pairs)
        self.floor = self._entropy
        self._base = TableSampler.of(conditionals, pairs)
        rows = np.arange(self.evaluation_sequences)
        draws = uniforms(self.language_seed, "markov evaluation", rows, rows * 0, self.context - 1)
        contexts = self._base.draw(rows, draws)  # [S, T]
        self._contexts = torch.from_numpy(contexts.copy())
        self._targets = torch.from_numpy(conditionals[contexts[:, :-1], contexts[:, 1:]])

    def _draw_tables(self, name: str, *key: int) -> np.ndarray:
        """A and B, [2, V, V]."""
        rng = Streams(self.language_seed).rng(name, *key)
        return rng.standard_normal((2, self.vocabulary, self.vocabulary))

    def bind(self, seed: int, n_nodes: int) -> None:
        """Fix the seed of the sequences; draw the nodes' own languages if they differ."""
        at_least(1, {"n_nodes": n_nodes})
        self._seed = seed
        self._sampler: Sampler = self._base
        if self.heterogeneity > 0:
            own = np.stack([self._draw_tables("markov node", node) for node in range(n_nodes)])
            tables = self._tables + self.heterogeneity * own
            tables /= np.sqrt(1 + self.heterogeneity**2)  # the entropy stays about the same
            factors = Factors.log_linear(tables, self.alpha, self.scale)
            self._sampler = FactorSampler(factors, self._base.pairs)

    def batch(self, nodes: np.ndarray, steps: np.ndarray) -> Tensor:
        """Symbols, int64 [n, B, T + 1]; a sequence begins with a pair of the base language."""
        nodes = np.asarray(nodes)
        draws = uniforms(self._seed, "markov batch", nodes, steps, self.sequences * self.context)
        chains = np.repeat(nodes, self.sequences)
        symbols = self._sampler.draw(chains, draws.reshape(-1, self.context))
        return torch.from_numpy(symbols.reshape(len(nodes), self.sequences, self.context + 1))

    def objective(self, model: Model, batch: Tensor) -> Tensor:
        """Mean cross-entropy over the scored positions of one node's batch [B, T + 1], in nats."""
        logits = model(batch[:, :-1])[:, 1:]  # [B, T - 1, V]
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 2:].flatten())

    def labelled(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Symbols [n, B, T], and the next ones; the first of them is not scored."""
        targets = batch[..., 1:].clone()
        targets[..., 0] = UNSCORED
        return batch[..., :-1], targets

    @torch.no_grad()
    def evaluate(self, params: Tensor, buffers: Tensor | None = None) -> dict[str, float]:
        """`"loss"` and `"excess"` over the floor on the held-out contexts, nats per symbol."""
        contexts, targets = self._contexts.to(params.device), self._targets.to(params.device)
        logits = self.forward(params, contexts, buffers=buffers)[:, 1:].double()
        divergences = F.kl_div(logits.log_softmax(-1), targets, reduction="none").sum(-1)
        # Rounding may leave -1e-17 at the optimum; clamp, unlike max(), lets NaN through.
        excess = divergences.mean().clamp(min=0.0).item()
        return {"loss": self._entropy + excess, "excess": excess}

    def describe(self) -> dict[str, Any]:
        """Hash of the language's tables, and its floor in nats per symbol."""
        tables = hashlib.sha256(self._tables.tobytes()).hexdigest()
        return {"data": "markov language", "tables_sha256": tables, "floor": self.floor}
