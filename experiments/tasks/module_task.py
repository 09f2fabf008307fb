"""ModuleTask (interface): a task whose model is a torch module, any module, unchanged.

It keeps the module and its layout; leaves say what the data is and what the loss is.

Legend: P trainable parameters, Pb values of the buffers that training updates.
"""

from __future__ import annotations

import copy
import threading
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from experiments.tasks.batchable import check_batchable, naming
from experiments.tasks.interception import Interception
from experiments.tasks.models import BUILT_IN, reset
from experiments.tasks.stacked.labelled import LabelledLoss, form_of
from sim.compute.layout import Layout
from sim.compute.stacked import Stacked
from sim.compute.task import Batch, Task

Model = Callable[..., Tensor]
"""What `objective` calls: the module at some node's parameters."""
OwnModel = Callable[[], nn.Module] | nn.Module
"""A class, function or partial that makes a module when it is called without arguments, and begins
anew in each seed; or a module, which begins at the values that it holds."""


class ModuleTask(Task):
    """A task that calls `attach` when it is constructed and says its loss in `objective`.

    The module may have buffers, dropout, tied weights and frozen parameters; it is run by
    `functional_call`, so one module serves all nodes, from any number of threads at once:

    - buffers that a training pass changes (running statistics) are kept per node, and so are no
      part of P; others are constants, and so are parameters with `requires_grad=False`;
    - a parameter with several names counts once, and its gradient is the sum of its uses;
    - training runs the module in training mode, `forward` (evaluation) in evaluation mode;
    - dropout draws by hashes, see `interception`; other draws are refused.
    """

    def attach(
        self,
        build: OwnModel,
        *example: Tensor,
        output: tuple[int, ...] | None = None,
    ) -> nn.Module:
        """Build the module, set `layout`, `buffers` and `draws` from it, and return it.

        Args:
            build: what makes the module when it is called without arguments, here and in every
                `init`; or the module itself, which is copied.
            example: inputs of one forward pass, which is run in both modes to see what happens.
            output: the shape that it must return for the example, if that is known.

        Raises:
            ValueError: names the part of the module that cannot be trained here, and why.
        """
        self._build: Callable[[], nn.Module]
        self._build = partial(copy.deepcopy, build) if isinstance(build, nn.Module) else build
        self._module = module = _built(self._build, 0)
        self._resets = isinstance(module, BUILT_IN) and not isinstance(build, nn.Module)
        _check_parameters(module)
        self._copies: dict[tuple[int, bool], nn.Module] = {}
        tensors = _tensors(module)
        trained = [name for name, p in module.named_parameters() if p.requires_grad]
        updated = self._probe(tensors, example, output)
        self.layout = Layout({name: tuple(tensors[name].shape) for name in trained})
        self.buffers = Layout({name: tuple(tensors[name].shape) for name in updated})
        self._types = {name: tensors[name].dtype for name in updated}
        self._first_buffers = _flat([tensors[name] for name in updated])
        constants = {k: v for k, v in tensors.items() if k not in {*trained, *updated}}
        self._constants = {torch.device("cpu"): constants}
        return module

    def _probe(
        self,
        tensors: dict[str, Tensor],
        example: tuple[Tensor, ...],
        output: tuple[int, ...] | None,
    ) -> list[str]:
        """Run the module on the example, see whether it draws, return the buffers it updates."""
        for training in (False, True):
            mode = Interception(torch.zeros(1, dtype=torch.int64) if training else None)
            module = self._own_module(training)
            given = {name: tensor.clone() for name, tensor in tensors.items()}
            used = dict(given)
            with naming(module, "its forward pass"), mode:
                result = functional_call(module, used, example)
            _check_output(result, output)
        self.draws, self._intercepts = mode.calls > 0, mode.needed
        changed = [k for k, v in given.items() if used[k] is not v or v._version > 0]
        buffers = dict(self._module.named_buffers())
        for name in changed:
            if name not in buffers or buffers[name].is_complex():
                raise ValueError(
                    f"model: {name} is changed by a forward pass; only buffers of real numbers may "
                    "be (an Embedding's max_norm changes a parameter)"
                )
        # Torch's batch norm changes its statistics unnoticed, but its count of batches as well.
        parts = {name.rpartition(".")[0] for name in changed}
        return [name for name in buffers if name.rpartition(".")[0] in parts]

    @property
    def signature(self) -> str:
        """The task, the class of its module, and what that consists of."""
        kind = type(self._module)
        return f"{type(self).__qualname__} {kind.__module__}.{kind.__qualname__} {self._module!r}"

    def init(self, generator: torch.Generator) -> Tensor:
        """Initial parameters, float32 [P].

        A module of `models` is drawn from `generator` by `models.reset`. Any other is built again,
        with torch's global generator seeded from it meanwhile, so it begins as its constructor
        says; one that was given as it is keeps its values.
        """
        if self._resets:
            module = copy.deepcopy(self._module)
            reset(module, generator)
        else:
            module = _built(self._build, int(torch.randint(2**62, (), generator=generator)))
        return self.layout.flatten({k: v.detach() for k, v in module.named_parameters()})

    def init_buffers(self) -> Tensor:
        """The buffers [Pb] that every node starts with."""
        return self._first_buffers

    @abstractmethod
    def objective(self, model: Model, batch: Batch) -> Tensor:
        """The loss (scalar) of `model` on the batch of one node."""

    def loss(self, params: Tensor, batch: Batch) -> Tensor:
        """`training_loss` of a model without buffers and draws."""
        return self.training_loss(params, self._first_buffers.to(params.device), batch, None)[0]

    def labelled(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """Inputs and integer targets of a batch of n nodes, [n, ...] each.

        Only if `objective` is the mean cross-entropy, in nats, of the module's output for the
        inputs, over targets that are not -100; else None. Then there may be hand-batched code.
        """
        return None

    def stacked(self) -> Stacked | None:
        """Hand-batched code, if the module is a plain one of `models` and the loss is labelled."""
        form = form_of(self._module, self.layout)
        fits = form is not None and not self.buffers.numel and not self.draws
        if not fits or self.labelled(self.batch(*np.zeros((2, 1), dtype=np.int64))) is None:
            return None
        return LabelledLoss(form, self.labelled)  # type: ignore[arg-type]

    def training_loss(
        self, params: Tensor, buffers: Tensor, batch: Batch, words: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As in `Task`: the module runs in training mode."""
        model = self.training_pass(params, buffers, words)
        return self.objective(model, batch), model.buffers

    def training_pass(self, params: Tensor, buffers: Tensor, words: Tensor | None) -> TrainingPass:
        """The module of one node in training mode, to be called; arguments as `training_loss`."""
        return TrainingPass(self, params, buffers, words)

    def forward(self, params: Tensor, *inputs: Tensor, buffers: Tensor | None = None) -> Tensor:
        """The module's output in evaluation mode at `params` [P] and `buffers` [Pb].

        Buffers that are not given are those that every node starts with.
        """
        if buffers is None:
            buffers = self._first_buffers.to(params.device)
        return functional_call(self._own_module(False), self._named(params, buffers), inputs)

    def module(self, params: Tensor) -> nn.Module:
        """A module of its own that holds a copy of `params` [P], to train by ordinary means."""
        module = copy.deepcopy(self._module)
        views = self.layout.views(params)
        module.load_state_dict({name: view.clone() for name, view in views.items()}, strict=False)
        return module

    def check(self) -> None:
        """Raise ValueError, naming the part of the module, if it cannot be batched over nodes."""
        check_batchable(self, self._own_module(True))

    def _named(self, params: Tensor, buffers: Tensor) -> dict[str, Tensor]:
        """All tensors of the module: of `params`, views; of `buffers`, copies that may be changed.

        One split rather than a slice per tensor: its backward is a single concatenation, where
        each slice would add a vector of P zeros.
        """
        named = dict(self._constants_on(params.device))
        for layout, flat in ((self.layout, params), (self.buffers, buffers)):
            pieces = flat.split([part.stop - part.start for part in layout.slices.values()])
            for (name, shape), piece in zip(layout.shapes.items(), pieces):
                named[name] = piece.view(shape)
        for name, dtype in self._types.items():
            exact = named[name] if dtype.is_floating_point else named[name].round()
            named[name] = exact.to(dtype, copy=True)
        return named

    def _constants_on(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._constants:
            constants = self._constants[torch.device("cpu")]
            self._constants[device] = {name: x.to(device) for name, x in constants.items()}
        return self._constants[device]

    def _own_module(self, training: bool) -> nn.Module:
        """This thread's copy: `functional_call` swaps tensors inside the module it is given.

        The copies share their (never read) tensors, so that making one runs no torch operation,
        which a transform that is active would capture.
        """
        key = (threading.get_ident(), training)
        if key not in self._copies:
            own = [*self._module.parameters(), *self._module.buffers()]
            module = copy.deepcopy(self._module, {id(tensor): tensor for tensor in own})
            self._copies[key] = module.train(training)
        return self._copies[key]


class TrainingPass:
    """The module of one node while its loss is computed; each call updates `buffers` [Pb]."""

    def __init__(
        self, task: ModuleTask, params: Tensor, buffers: Tensor, words: Tensor | None
    ) -> None:
        self._task, self._params, self.buffers = task, params, buffers
        self._mode = Interception(words)

    def __call__(self, *inputs: Tensor) -> Tensor:
        task = self._task
        named = task._named(self._params, self.buffers)
        module = task._own_module(True)
        if not task._intercepts:
            result = functional_call(module, named, inputs)
        else:
            with self._mode:
                result = functional_call(module, named, inputs)
        if task.buffers.numel:
            self.buffers = _flat([named[name].detach() for name in task.buffers.shapes])
        return result


def _built(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A module whose constructor draws from torch's global generator, which is left as it was."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        module = build()
    if not isinstance(module, nn.Module):
        raise ValueError(f"model: {build!r} returns {module!r}; it must return a torch module")
    return module


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers; one of each that has several names."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in own.items()}


def _flat(tensors: list[Tensor]) -> Tensor:
    """One float32 vector of all values."""
    return torch.cat([torch.empty(0)] * (not tensors) + [x.float().flatten() for x in tensors])


def _check_parameters(module: nn.Module) -> None:
    """Raise ValueError unless there is something to train, all of it float32 and of known shape."""
    trainable = 0
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ValueError(
                f"model: {name} has no shape yet; run a lazy module once on an example before it "
                "is given, or state its sizes"
            )
        if tensor.requires_grad and tensor.dtype != torch.float32:
            raise ValueError(
                f"model: {name} is {tensor.dtype}; parameters must be float32: call .float()"
            )
        trainable += tensor.requires_grad
    if not trainable:
        raise ValueError("model: has no parameter with requires_grad=True; one at least is needed")


def _check_output(result: Any, shape: tuple[int, ...] | None) -> None:
    got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
    if not isinstance(result, Tensor) or (shape is not None and got != shape):
        wanted = "a tensor" if shape is None else f"a tensor of shape {shape}"
        raise ValueError(f"model: returns {got} for the example; it must return {wanted}")
