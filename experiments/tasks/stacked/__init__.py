"""Hand-written forward and backward passes of the built-in models, for a block of nodes at once.

Each is faster than whatever goes through autograd: it allocates nothing, keeps the activations of
a few nodes in cache and calls compiled kernels (`sim.compute.kernels`) for a layer of all nodes.
They compute the mean cross-entropy of integer targets and its gradient, to rounding what
`torch.func` gives. A module of another class, or a subclass, is for `vmap`.
"""

from __future__ import annotations

from torch import nn

from experiments.tasks.models import CNN, GPT, MLP
from experiments.tasks.stacked.cnn import StackedCNN
from experiments.tasks.stacked.gpt import StackedGPT
from experiments.tasks.stacked.mlp import StackedMLP

FORMS: dict[type[nn.Module], type[StackedMLP] | type[StackedGPT] | type[StackedCNN]] = {
    MLP: StackedMLP,
    GPT: StackedGPT,
    CNN: StackedCNN,
}
"""By the exact class of the module."""
