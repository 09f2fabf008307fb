"""Digits: handwritten digits of 8 x 8 pixels, with labels split unevenly over the nodes.

Data: scikit-learn's `load_digits` (UCI Optical Recognition of Handwritten Digits, CC BY 4.0), 1797
images, part of the scikit-learn package: nothing is downloaded.

Legend: n nodes of a batch, N nodes, B examples per node and step, K = 10 classes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.tasks.checks import at_least, positive
from experiments.tasks.models import CNN, MLP
from experiments.tasks.module_task import Model, ModuleTask, OwnModel
from experiments.tasks.own_model import chosen, flops_per_token
from sim.compiled import compiled
from sim.streams import Streams, uniforms

_SIDE, _CLASSES, _HELD_OUT = 8, 10, 0.25


@dataclass(eq=False)
class Digits(ModuleTask):
    """Classification of digits.

    Each node draws a label from its own distribution, then an image with this label, both with
    replacement. A quarter of the images is held out for evaluation, the same for every seed.

    Args:
        model: "mlp" (one hidden layer), "cnn" (two convolutions), or a module of yours, images
            [B, 64] to logits [B, 10]: the module, or what makes it when called without arguments.
        width: hidden units of the MLP, or channels of the CNN's first convolution.
        examples: B, examples per node and step; `tokens_per_step` counts examples.
        label_alpha: concentration of the Dirichlet distribution, per class, that each node's label
            distribution is drawn from; its mean is the distribution of labels in the data. Small is
            uneven: at 0.1 most nodes see one or two digits. None: every node has the mean.
            Construction: Hsu, Qi and Brown, arXiv:1909.06335.
    """

    model: str | OwnModel = "mlp"
    width: int = 32
    examples: int = 16
    label_alpha: float | None = None

    def __post_init__(self) -> None:
        at_least(1, {"examples": self.examples})
        if self.label_alpha is not None:
            positive({"label_alpha": self.label_alpha})
        self._load()
        choices = {
            "mlp": lambda: MLP(_SIDE**2, (self.width,), _CLASSES),
            "cnn": lambda: CNN(_SIDE, self.width, _CLASSES),
        }
        example = torch.from_numpy(self._images[:2])
        module = self.attach(chosen(self.model, choices), example, output=(2, _CLASSES))
        self.flops_per_token = flops_per_token(self, module, example, tokens=2)
        self.tokens_per_step = self.examples

    def _load(self) -> None:
        """Read the images, hold a quarter out, and sort the rest by label."""
        pixels, labels = _digits()
        self._hash = hashlib.sha256(pixels.tobytes()).hexdigest()
        images = (pixels / 16).astype(np.float32)  # 0 to 1
        order = Streams(0).rng("digits held out").permutation(len(labels))
        held_out, train = np.split(order, [int(_HELD_OUT * len(labels))])
        self._held_out = torch.from_numpy(images[held_out]), torch.from_numpy(labels[held_out])
        train = train[np.argsort(labels[train], kind="stable")]
        self._images, self._labels = images[train], labels[train].astype(np.int64)
        self._counts = np.bincount(self._labels, minlength=_CLASSES)
        self._starts = self._counts.cumsum() - self._counts

    def bind(self, seed: int, n_nodes: int) -> None:
        """Fix the seed of the draws; draw `label_distributions`, float64 [N, K]."""
        at_least(1, {"n_nodes": n_nodes})
        self._seed = seed
        mean = self._counts / self._counts.sum()
        self.label_distributions = np.tile(mean, (n_nodes, 1))
        if self.label_alpha is not None:
            rng = Streams(seed).rng("digits labels")
            self.label_distributions = rng.dirichlet(self.label_alpha * _CLASSES * mean, n_nodes)
        self._cumulative = self.label_distributions.cumsum(-1)

    def batch(self, nodes: np.ndarray, steps: np.ndarray) -> tuple[Tensor, Tensor]:
        """Images, float32 [n, B, 64] in 0 to 1, and labels, int64 [n, B]."""
        draws = uniforms(self._seed, "digits batch", nodes, steps, 2 * self.examples)
        rows = np.empty((len(draws), self.examples), np.int64)
        _draw_rows(self._cumulative, np.asarray(nodes), self._starts, self._counts, draws, rows)
        return torch.from_numpy(self._images[rows]), torch.from_numpy(self._labels[rows])

    def objective(self, model: Model, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy of one node's images [B, 64] and labels [B], in nats."""
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    def labelled(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Images and labels."""
        return batch

    @torch.no_grad()
    def evaluate(self, params: Tensor, buffers: Tensor | None = None) -> dict[str, float]:
        """`"loss"` (nats) and `"accuracy"` (0 to 1) on the held-out images."""
        images, labels = (part.to(params.device) for part in self._held_out)
        logits = self.forward(params, images, buffers=buffers)
        accuracy = (logits.argmax(-1) == labels).double().mean().item()
        return {"loss": F.cross_entropy(logits, labels).item(), "accuracy": accuracy}

    def describe(self) -> dict[str, Any]:
        """Hash of the pixels as scikit-learn gives them."""
        return {"data": "sklearn.datasets.load_digits", "sha256": self._hash}


@compiled(__file__)
def _draw_rows(cumulative, nodes, starts, counts, draws, rows):
    """Write `rows` [n, B], of images; `draws` has B for labels, then B for images within them."""
    B, last = rows.shape[1], cumulative.shape[1] - 1
    for i in range(len(nodes)):
        chances = cumulative[nodes[i]]
        for b in range(B):
            label, level = 0, draws[i, b] * chances[last]
            while label < last and chances[label] <= level:
                label += 1
            rows[i, b] = starts[label] + int(draws[i, B + b] * counts[label])


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [1797, 64] and labels as scikit-learn has them, read once; nobody writes to them."""
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)
