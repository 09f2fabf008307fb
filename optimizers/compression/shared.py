"""Codecs of coefficients that all nodes draw alike: RandomK, RandomBlocks, SharedMask.

What is drawn is a function of a seed that everybody has, so no index is sent, and payloads can be
summed on the way. None of them is scaled for what it leaves out unless it says so.

Legend: b rows of a block, k values sent of the P in a row.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from optimizers.compression.amounts import amount, check_amount, check_choice, check_fraction
from optimizers.compression.scattered import scattered_mean
from sim.payload import Compressor, Context, Payload, State, Wire
from sim.streams import Streams, hashes

SELECTS = ("bernoulli", "shuffled", "partition")
"""How a `SharedMask` may choose."""


class SharedSupport(Compressor):
    """The values at indices that follow from a word of 64 bits, which everybody has."""

    summable = True
    shared_support = True
    deterministic = False
    linear = True

    value_dtype: str

    @abstractmethod
    def words(self, size: int, ctx: Context) -> Tensor:
        """The word of each of the context's rows, int64 [b], for rows of `size` values."""

    @abstractmethod
    def support(self, word: int, size: int) -> np.ndarray:
        """The indices below `size` that belong to a word: int64 [k], ascending."""

    @abstractmethod
    def amount(self, size: int) -> int | None:
        """k; None if that is drawn too."""

    def factor(self, size: int) -> float:
        """What the values are multiplied by."""
        return 1.0

    def mask(self, size: int, ctx: Context) -> Tensor:
        """Which values are sent of a row, by the first row of the context: bool [size]."""
        mask = torch.zeros(size, dtype=torch.bool)
        mask[_support(self, int(self.words(size, ctx)[0]), size)] = True
        return mask

    def encode(self, x: Tensor, state: State, ctx: Context) -> tuple[Payload, State]:
        flat = x.flatten(1)
        words = self.words(flat.shape[1], ctx).to(x.device)
        index, counts = self._supports(words, flat.shape[1])
        values = flat.gather(1, index)
        if self.factor(flat.shape[1]) != 1:
            values = values * self.factor(flat.shape[1])
        side = {"seed": Wire(words)}
        if counts is not None:
            sent = torch.tensor(counts, device=x.device)[:, None]
            values = values * (torch.arange(values.shape[1], device=x.device) < sent)
            side["count"] = Wire(sent, dtype="int32")
        body = Wire(values, dtype=self.value_dtype, counts=counts)
        return Payload(self, x.shape[1:], body, **side, **self._more(flat, words)), state

    def decode(self, payload: Payload) -> Tensor:
        values, size = payload.body, math.prod(payload.shape)
        index = self._placed(payload["seed"], size, values.shape[1])
        flat = torch.zeros(values.shape[0], size, dtype=values.dtype, device=values.device)
        return flat.scatter_add_(1, index, values).reshape(payload.n, *payload.shape)

    def aggregate(
        self, payload: Payload, over: str, weights: Tensor | None, runs: int = 1
    ) -> Tensor:
        words = payload["seed"].unflatten(0, (runs, -1))
        if words.is_meta or bool((words == words[:, :1]).all()):
            return super().aggregate(payload, over, weights, runs)
        values, size = payload.body, math.prod(payload.shape)
        index = self._placed(payload["seed"], size, values.shape[1])
        counts = payload["count"][:, 0] if "count" in payload.side else None
        mean = scattered_mean(values, index, size, over, weights, runs, counts)
        return mean.reshape(runs, *payload.shape)

    def _supports(self, words: Tensor, size: int) -> tuple[Tensor, list[int] | None]:
        """The indices of each row, int64 [b, k], and how many of them are meant, if not all."""
        if words.is_meta:
            return words.new_empty(len(words), self.amount(size) or 0), None
        each = {word: _support(self, word, size) for word in dict.fromkeys(words.tolist())}
        if len(each) == 1:
            (only,) = each.values()
            index = only.to(words.device).expand(len(words), -1)
        else:
            rows = [each[word] for word in words.tolist()]
            index = pad_sequence(rows, batch_first=True).to(words.device)
        if self.amount(size) is not None:
            return index, None
        return index, [len(each[word]) for word in words.tolist()]

    def _placed(self, words: Tensor, size: int, width: int) -> Tensor:
        """The indices of rows that were padded to a width; padding points at 0, and adds zero."""
        index, _ = self._supports(words, size)
        return F.pad(index, (0, width - index.shape[1])) if width > index.shape[1] else index

    def _more(self, flat: Tensor, words: Tensor) -> dict[str, Wire]:
        """Further side tensors."""
        return {}


@dataclass(frozen=True)
class RandomK(SharedSupport):
    """k coefficients of a row, drawn anew each step.

    Bytes: 4 k, and 8 for the seed of the draw. Never scale where an error is fed back.

    Args:
        k: coefficients kept.
        ratio: instead of k, a fraction of the row: k = max(1, round(ratio P)).
        scaled: multiply the values by P / k, which makes the codec unbiased.
        value_dtype: number type of the values sent; `"native"` for that of the input.
    """

    k: int | None = None
    ratio: float | None = None
    scaled: bool = False
    value_dtype: str = "float32"

    def __post_init__(self) -> None:
        check_amount(self.k, self.ratio)

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """Only if scaled."""
        return self.scaled

    def words(self, size: int, ctx: Context) -> Tensor:
        return ctx.shared_seeds("random_k")

    def support(self, word: int, size: int) -> np.ndarray:
        rng = Streams(word % (1 << 64)).rng("random_k")
        return np.sort(rng.choice(size, self.amount(size), replace=False, shuffle=False))

    def amount(self, size: int) -> int:
        return amount(self.k, self.ratio, size)

    def factor(self, size: int) -> float:
        return size / max(1, self.amount(size)) if self.scaled else 1.0


@dataclass(frozen=True)
class RandomBlocks(SharedSupport):
    """Blocks of neighbouring coefficients, drawn anew each step; memory is read in long pieces.

    A row is a circle that is cut into blocks from a random place on, and some of the blocks are
    sent: each coefficient with the same probability. Bytes: 4 k, and 8 for the seed of the draw,
    with k = block * max(1, round(ratio P / block)), of floor(P / block) blocks at most.

    Args:
        ratio: fraction of a row that is sent, above 0 and at most 1.
        block: coefficients of a block; a shorter row is one block.
        scaled: multiply the values by P / k, which makes the codec unbiased.
        value_dtype: number type of the values sent; `"native"` for that of the input.

    >>> from sim.compute.layout import Layout
    >>> RandomBlocks(0.1, block=64).nbytes(Layout.flat(1000))
    520
    """

    ratio: float
    block: int = 256
    scaled: bool = False
    value_dtype: str = "float32"

    def __post_init__(self) -> None:
        check_fraction("ratio", self.ratio)
        if isinstance(self.block, bool) or not isinstance(self.block, int) or self.block < 1:
            raise ValueError(f"block={self.block!r}: must be an integer >= 1, for example 256")

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """Only if scaled."""
        return self.scaled

    def words(self, size: int, ctx: Context) -> Tensor:
        return ctx.shared_seeds("random_blocks")

    def support(self, word: int, size: int) -> np.ndarray:
        rng, block = Streams(word % (1 << 64)).rng("random_blocks"), self._block(size)
        start = rng.integers(max(1, size))
        chosen = rng.choice(size // block, self.amount(size) // block, replace=False)
        return np.sort((start + chosen[:, None] * block + np.arange(block)).ravel() % size)

    def amount(self, size: int) -> int:
        block = self._block(size)
        return block * min(max(1, round(self.ratio * size / block)), size // block)

    def factor(self, size: int) -> float:
        return size / max(1, self.amount(size)) if self.scaled else 1.0

    def _block(self, size: int) -> int:
        return max(1, min(self.block, size))


@dataclass(frozen=True)
class SharedMask(SharedSupport):
    """SPARTA's fraction p of the coefficients: the mask follows from a seed and is not sent.

    Bytes: 4 k, 8 for the seed, and 4 for k where that is drawn. Unscaled, since parameters are
    what is averaged.

    Args:
        p: fraction of a row.
        select: `"bernoulli"`, each coefficient by itself with probability p, so k varies from
            step to step (and `compute=meta`, which has no steps, cannot tell it); `"shuffled"`,
            the next k = max(1, round(p P)) of one random order, round and round; `"partition"`,
            in turn the parts of k of a random order, a new one when all had their turn.
        faithful: send the mask too, a byte per element, as exo-explore/gym does.
        value_dtype: number type of the values sent; `"native"` for that of the input.

    >>> from sim.compute.layout import Layout
    >>> SharedMask(0.05, "shuffled").nbytes(Layout.flat(1000))
    208
    """

    p: float = 0.005
    select: str = "bernoulli"
    faithful: bool = False
    value_dtype: str = "float32"

    def __post_init__(self) -> None:
        check_fraction("p", self.p)
        check_choice("select", self.select, SELECTS)

    @property
    def sized_by_data(self) -> bool:  # type: ignore[override]
        """Only where the number of coefficients is drawn."""
        return self.select == "bernoulli"

    def words(self, size: int, ctx: Context) -> Tensor:
        """Bits from 32 on are a seed; those below are the turn, in selections that take turns."""
        if self.select == "bernoulli":
            return ctx.shared_seeds("mask")
        step = np.broadcast_to(np.asarray(ctx.step, np.int64), len(ctx.nodes))
        k = self.amount(size) or 1
        turns = max(1, math.ceil(size / k))
        cycle = step // turns if self.select == "partition" else np.zeros_like(step)
        turn = step % turns if self.select == "partition" else step * k % max(1, size)
        seeds = replace(ctx, step=cycle).shared_seeds("mask")
        return (seeds >> 32 << 32) | torch.from_numpy(turn)

    def support(self, word: int, size: int) -> np.ndarray:
        if self.select == "bernoulli":
            draws = Streams(word % (1 << 64)).rng("mask").random(size)
            return np.flatnonzero(draws < self.p)
        k = self.amount(size) or 0
        seed, turn = word >> 32, word & 0xFFFFFFFF
        first = min(turn * k, size - k) if self.select == "partition" else turn
        return np.sort(permuted((first + np.arange(k)) % max(1, size), size, seed))

    def amount(self, size: int) -> int | None:
        return None if self.select == "bernoulli" else amount(None, self.p, size)

    def _more(self, flat: Tensor, words: Tensor) -> dict[str, Wire]:
        if not self.faithful:
            return {}
        mask = torch.zeros(flat.shape, dtype=torch.uint8, device=flat.device)
        if not flat.is_meta:
            for word in dict.fromkeys(words.tolist()):
                rows = torch.nonzero(words == word)
                mask[rows, _support(self, word, flat.shape[1]).to(flat.device)] = 1
        return {"mask": Wire(mask, dtype="uint8")}


def permuted(numbers: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Where a random order of range(size) has these numbers: int64 of their shape.

    Each is found by itself, without making the order: a Feistel network of four rounds permutes
    the numbers of the next even count of bits, and goes on from what lies outside (Black and
    Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
    """
    found = _mixed(numbers.astype(np.uint64), size, seed)
    while (outside := found >= size).any():
        found[outside] = _mixed(found[outside], size, seed)
    return found.astype(np.int64)


def _mixed(numbers: np.ndarray, size: int, seed: int) -> np.ndarray:
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    left, right = numbers >> half, numbers & low
    for turn in range(4):
        words = hashes(seed, "permuted", right, np.uint64(turn), 1)[:, 0]
        left, right = right, left ^ (words & low)
    return left << half | right


@lru_cache(maxsize=128)
def _support(codec: SharedSupport, word: int, size: int) -> Tensor:
    return torch.from_numpy(codec.support(word, size))
