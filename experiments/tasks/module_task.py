"""ModuleTask (interface): a task whose model is a torch module.

It keeps the module and its layout; leaves say what the data is and what the loss is.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from experiments.tasks.models import reset
from sim.compute.layout import Layout
from sim.compute.task import Task

_Module = TypeVar("_Module", bound=nn.Module)


class ModuleTask(Task):
    """A task that calls `attach` when it is constructed and `forward` in its loss.

    Any module without buffers and without draws in its forward pass will do: it then runs under
    `torch.func.vmap` and `torch.func.grad`, from any number of threads at once.
    """

    def attach(self, build: Callable[[], _Module]) -> _Module:
        """Build the module, set `layout` from it, and return it."""
        with torch.random.fork_rng(devices=[]):  # torch's layers draw from the global stream
            module = build()
        self._module: nn.Module = module
        self._copies: dict[int, nn.Module] = {}
        self.layout = Layout.of_module(module)
        return module

    def init(self, generator: torch.Generator) -> Tensor:
        """Initial parameters, float32 [P], drawn by `models.reset`."""
        module = copy.deepcopy(self._module)
        reset(module, generator)
        return self.layout.flatten({k: v.detach() for k, v in module.named_parameters()})

    def module(self, params: Tensor) -> nn.Module:
        """A module of its own that holds a copy of `params` [P], to train by ordinary means."""
        module = copy.deepcopy(self._module)
        views = self.layout.views(params)
        module.load_state_dict({name: view.clone() for name, view in views.items()}, strict=False)
        return module

    def forward(self, params: Tensor, *inputs: Tensor) -> Tensor:
        """The module's output at `params` [P], differentiable with respect to them."""
        # One split rather than a slice per tensor: its backward is a single concatenation, where
        # each slice would add a vector of P zeros.
        pieces = params.split([part.stop - part.start for part in self.layout.slices.values()])
        shapes = self.layout.shapes.items()
        tensors = {name: piece.view(shape) for (name, shape), piece in zip(shapes, pieces)}
        return functional_call(self._own_module(), tensors, inputs)

    def _own_module(self) -> nn.Module:
        """This thread's copy: `functional_call` swaps tensors inside the module it is given.

        The copies share their (never read) tensors, so that making one runs no torch operation,
        which a transform that is active would capture.
        """
        thread = threading.get_ident()
        if thread not in self._copies:
            shared = {id(p): p for p in self._module.parameters()}
            self._copies[thread] = copy.deepcopy(self._module, shared)
        return self._copies[thread]
