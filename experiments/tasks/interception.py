"""Dropout by counter-based masks, and batchable forms of some functions, for modules as they are.

A module is run under a mode that sees each torch function before torch does:

- dropout in all its forms draws its mask from a hash of (word, call, element), where the word is
  the node's, a hash of (seed, node, step), and calls are counted within a loss. So a mask does not
  depend on who shares the batch, on chunks or on threads, and is the same on CPUs and GPUs;
- fused attention becomes matmuls and a softmax, as it has no rule under `vmap` on CPUs;
- `out=` becomes a copy, for the same reason;
- any other function that draws random numbers is refused.

Source of the mixer: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), the same
as in `sim.streams`, in signed words, whose products wrap.

Legend: T queries, S keys, D width of a head.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as a signed word
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_LANES = 4
"""Mask elements that one 64-bit word serves, 16 bits each."""

_ALPHA = 1.7580993408473766
"""Minus the value that a unit dropped by alpha dropout takes (Klambauer et al., 1706.02515)."""

_RANDOM = re.compile(
    "(native|feature|alpha)_dropout|feature_alpha_dropout|bernoulli|binomial|cauchy|"
    "exponential|fractional_max_pool[23]d(_with_indices)?|geometric|gumbel_softmax|log_normal|"
    "multinomial|normal|poisson|rand(n|int)?(_like)?|random|randperm|rrelu|uniform|"
    "_sample_dirichlet|_standard_gamma"
)
"""Functions that draw; in place, with an underscore at the end."""
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


def mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser of int64 words; equal to that of `sim.streams`, bit for bit."""
    z = (z ^ _shifted(z, 30)) * _MULTIPLIERS[0]
    z = (z ^ _shifted(z, 27)) * _MULTIPLIERS[1]
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """A logical shift to the right; torch's own keeps the sign."""
    return (z >> by) & (2 ** (64 - by) - 1)


def _signed(value: int) -> int:
    """An integer modulo 2^64, as an int64."""
    return (value + 2**63) % 2**64 - 2**63


def kept(word: Tensor, call: int, shape: torch.Size | tuple[int, ...], p: float) -> Tensor:
    """A mask of this shape, True with chance 1 - p up to 2^-17; int64 [1] -> bool."""
    numel = math.prod(shape)
    counter = torch.arange(1, -(-numel // _LANES) + 1, device=word.device)
    key = mix(word + _signed((call + 1) * _GOLDEN))
    draws = mix(key + counter * _GOLDEN).view(torch.int16)  # -2^15 to 2^15 - 1
    draws = draws[:numel].reshape(shape)
    return draws >= min(round(p * 2**16) - 2**15, 2**15 - 1)


class Interception(TorchFunctionMode):
    """The mode of the forward passes of one loss.

    Args:
        words: int64 [1], the node's word; None refuses dropout, as in evaluation.

    Attributes:
        calls: how many masks were drawn.
        needed: True once something was done otherwise than torch would.
    """

    def __init__(self, words: Tensor | None) -> None:
        super().__init__()
        self.words, self.calls, self.needed = words, 0, False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in _INSTEAD:
            self.needed = True
            return _INSTEAD[func](self, *args, **kwargs)
        if func is F.multi_head_attention_forward:
            self.needed = True
            with self:  # what it calls is seen too
                return _unguarded(func)(*args, **kwargs)
        if _RANDOM.fullmatch(name.removesuffix("_")):
            raise ValueError(
                f"{name} draws random numbers that would depend on who shares the batch; use "
                "dropout, or draw in the task's `batch` with `sim.streams` and pass them as input"
            )
        if name in _RECURRENT:
            _check_recurrent(name, args)
        if kwargs.get("out") is not None:
            self.needed = True
            return kwargs.pop("out").copy_(func(*args, **kwargs))
        return func(*args, **kwargs)

    def mask(self, shape: torch.Size | tuple[int, ...], p: float) -> Tensor:
        """The next mask, bool: True is kept."""
        if self.words is None:
            raise ValueError(
                "dropout draws random numbers and has no word to draw them from; it is for "
                "training mode alone (training=self.training), in `training_loss`"
            )
        self.calls += 1
        return kept(self.words, self.calls - 1, shape, p)


def _check_recurrent(name: str, args: tuple[Any, ...]) -> None:
    """Raise ValueError if a recurrent layer of torch drops between its layers, inside its kernel.

    Among the arguments are (..., number of layers, dropout, training, ...): one is a float.
    """
    at = next(i for i, value in enumerate(args) if isinstance(value, float))
    layers, p, training = args[at - 1 : at + 2]
    if layers > 1 and p > 0 and training:
        raise ValueError(
            f"{name} draws its dropout={p} inside; use dropout=0, and nn.Dropout between layers of "
            "one each"
        )


def _drop(mode: Interception, x: Tensor, shape: tuple[int, ...], p: float, inplace: bool) -> Tensor:
    """Dropout with one mask element per element of `shape`, which broadcasts to that of `x`."""
    _check_chance(p)
    factor = mode.mask(shape, p) * (1.0 / (1.0 - p) if p < 1 else 0.0)
    factor = factor.to(x.dtype)
    return x.mul_(factor) if inplace else x * factor


def _check_chance(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"dropout with p={p}: must be 0 to 1")


def _dropout(
    mode: Interception, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if not training or p == 0:
        return input
    return _drop(mode, input, tuple(input.shape), p, inplace)


def _dropout_of_features(unbatched: int | None) -> Callable[..., Tensor]:
    """Dropout of whole channels; an input of `unbatched` dimensions has no examples before them."""

    def dropout(
        mode: Interception,
        input: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> Tensor:
        if not training or p == 0:
            return input
        return _drop(mode, input, _features(input, unbatched), p, inplace)

    return dropout


def _features(x: Tensor, unbatched: int | None = None) -> tuple[int, ...]:
    """One mask element per example and channel."""
    lead = 1 if x.dim() == unbatched else 2
    return (*x.shape[:lead], *[1] * (x.dim() - lead))


def _alpha_dropout(by_feature: bool) -> Callable[..., Tensor]:
    """Dropout that keeps mean 0 and variance 1; of whole channels, or of elements."""

    def dropout(
        mode: Interception,
        input: Tensor,
        p: float = 0.5,
        training: bool = False,
        inplace: bool = False,
    ) -> Tensor:
        if not training or p == 0:
            return input
        _check_chance(p)
        mask = mode.mask(_features(input) if by_feature else tuple(input.shape), p)
        scale = 0.0 if p == 1 else ((_ALPHA**2 * p + 1) * (1 - p)) ** -0.5
        kept = mask.to(input.dtype)
        result = input * (kept * scale) + (kept + (p - 1)) * (_ALPHA * scale)
        return input.copy_(result) if inplace else result

    return dropout


def _attention(
    mode: Interception,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention, [..., T, D] and [..., S, D] twice -> [..., T, D]."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(groups, dim=-3) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * scale) @ key.transpose(-1, -2)  # [..., T, S]
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return _dropout(mode, torch.softmax(scores, dim=-1), dropout_p) @ value


_INSTEAD: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.dropout: _dropout,
    torch.dropout: _dropout,
    F.dropout1d: _dropout_of_features(2),
    F.dropout2d: _dropout_of_features(None),
    F.dropout3d: _dropout_of_features(4),
    F.alpha_dropout: _alpha_dropout(by_feature=False),
    F.feature_alpha_dropout: _alpha_dropout(by_feature=True),
    F.scaled_dot_product_attention: _attention,
}


@cache
def _unguarded(func: Callable[..., Any]) -> Callable[..., Any]:
    """A function of torch, minus its question whether a mode is active, which would never end."""
    assert isinstance(func, FunctionType)
    names = {**func.__globals__, "has_torch_function": lambda *tensors: False}
    copy = FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy
