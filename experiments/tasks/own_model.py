"""A task's `model` argument: one of its choices by name, or a module of the user's; what it costs.

Legend: P parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.tasks.models import BUILT_IN
from experiments.tasks.module_task import ModuleTask, OwnModel
from sim.units import nearest


def chosen(model: str | OwnModel, choices: Mapping[str, Callable[[], nn.Module]]) -> OwnModel:
    """What to `attach` for the argument `model` of a task.

    Raises:
        ValueError: it is neither one of the choices, nor a module, nor can be called.
    """
    if isinstance(model, str) and model in choices:
        return choices[model]
    if isinstance(model, str) or not callable(model):
        near = nearest(str(model), list(choices))
        raise ValueError(
            f"model={model!r}: must be one of {list(choices)}, a torch module, or what makes one "
            f"when it is called without arguments; try {near!r}"
        )
    return model


def flops_per_token(task: ModuleTask, module: nn.Module, example: Tensor, tokens: int) -> float:
    """FLOP of forward and backward per token (or example), of the module that a task has attached.

    Modules of `models` know it. Of others, torch counts matmuls, convolutions and attention in a
    training pass on `example`, which holds that many `tokens`; where it counts none, 6 P.
    """
    if isinstance(module, BUILT_IN):
        return module.flops
    params = task.init(torch.Generator()).requires_grad_()
    word = torch.zeros(1, dtype=torch.int64)
    # Recurrent layers of oneDNN are one operation, which the counter does not know.
    with warnings.catch_warnings(), FlopCounterMode(display=False) as counter:
        warnings.simplefilter("ignore")  # the flags below warn of settings that are left alone
        with torch.backends.mkldnn.flags(enabled=False):
            output = task.training_pass(params, task.init_buffers(), word)(example)
            torch.autograd.grad(output.square().sum(), params)
    counted = counter.get_total_flops() / tokens
    if counted == 0:
        counted = 6.0 * task.layout.numel
        warnings.warn(
            f"model: torch counts no FLOP in {type(module).__name__}; 6 P = {counted:g} per token "
            "are charged",
            stacklevel=3,
        )
    return counted
