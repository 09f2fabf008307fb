"""LocalOptimizer (interface): one gradient step on stacked rows, for inner and outer steps alike.

Legend: P parameters, `...` leading dimensions: none for one model [P], n for a block [n, P].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from sim.compute.layout import Layout

State = dict[str, Tensor]
"""Tensors shaped like the parameters [..., P] or some columns of them, or one value per row
[..., 1] (such as `age`)."""


class LocalOptimizer(ABC):
    """What a step does to a block of rows; it holds configuration only, the state is the caller's.

    Rows never mix, so a block of rows of different ages gives each row what it would get alone.
    All zeros is a fresh state: a row that joins late starts from it. To write one, implement
    `init` and `step_`; `step` is the same without side effects.

    One that treats some tensors of the model differently also implements `bind`: fleets and
    strategies use what it gives them for their layout.
    """

    def bind(self, layout: Layout) -> LocalOptimizer:
        """The same for rows of this layout; itself if all columns are treated alike."""
        return self

    @property
    def flops(self) -> float:
        """FLOP of one step, where arithmetic and not memory limits it (matrix products)."""
        return 0.0

    @property
    @abstractmethod
    def passes(self) -> float:
        """Parameter-sized reads and writes of memory that one step costs on the device."""

    @property
    @abstractmethod
    def state_rows(self) -> float:
        """Number of parameter-sized tensors in the state; some columns are a part of one."""

    @abstractmethod
    def init(self, params: Tensor) -> State:
        """The state before the first step, on the device and in the dtype of `params` [..., P]."""

    @abstractmethod
    def step_(self, params: Tensor, grad: Tensor, state: State) -> None:
        """One step in place: `params` and the tensors of `state` change, `grad` does not.

        For blocks that fit the cache; new memory for every result would cost more than the maths.
        """

    @classmethod
    def step_each_(
        cls,
        optimizers: Sequence[tuple[LocalOptimizer, slice]],
        params: Tensor,
        grad: Tensor,
        state: State,
    ) -> None:
        """One step in place of rows [n, P] that several optimizers of this class share out.

        Hyperparameters are then a matter of the row; override it where one pass can do them all.
        """
        for optimizer, rows in optimizers:
            own = {name: value[rows] for name, value in state.items()}
            optimizer.step_(params[rows], grad[rows], own)

    def step(self, params: Tensor, grad: Tensor, state: State) -> tuple[Tensor, State]:
        """New parameters and state, in new tensors; the arguments are left as they are."""
        if params.is_meta:
            return params, state  # nothing changes where there are no values
        params, state = params.clone(), {name: rows.clone() for name, rows in state.items()}
        self.step_(params, grad, state)
        return params, state
