"""Workload: the model that the clock charges for, when it is not the tiny one that is trained.

A run learns with a small model and may be timed as a large one. The workload holds the large
model's named shapes (no memory), its FLOP and its tokens per step. The bytes of a payload come
from encoding these shapes on torch's meta device, never from a ratio of model sizes: a block
codec keeps another share of a narrow matrix than of a wide one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

from sim.compute.device import GPUS
from sim.compute.layers import Layer, Timeline, check_layers, layers_of
from sim.compute.layout import Layout
from sim.compute.task import Task

_ROW = 4
"""Bytes per value of optimizer state, master weights and a strategy's rows: all are float32."""


class Codec(Protocol):
    """The part of a compressor that a workload needs."""

    sized_by_data: bool

    def nbytes(self, layout: Layout) -> int: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Workload:
    """What one local step and one payload cost.

    Args:
        name: for messages and figures.
        layout: the named tensors of the model; its `numel` is P.
        flops_per_token: FLOP of forward and backward for one token.
        tokens_per_step: tokens of one local step of one node.
        bytes_per_value: width of weights and gradients on the device; below 4, a float32
            master copy is kept beside them.
        activation_bytes_per_token, microbatch_tokens: their product is the memory of activations.
        layers: in the order of the forward pass, with their shares of the FLOP; by default those
            that the names of the tensors tell apart, with FLOP in proportion to their parameters.
    """

    name: str
    layout: Layout
    flops_per_token: float
    tokens_per_step: int = 65_536
    bytes_per_value: int = 2
    activation_bytes_per_token: float = 0.0
    microbatch_tokens: int = 0
    layers: tuple[Layer, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers) or layers_of(self.layout))
        check_layers(self.layers, self.layout)
        for name in ("flops_per_token", "tokens_per_step", "bytes_per_value"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be > 0")

    @classmethod
    def of_task(cls, task: Task) -> Workload:
        """The trained model itself: its own shapes in float32, its own FLOP and tokens.

        Activations are not counted: at this size they decide nothing.
        """
        return cls("proxy", task.layout, task.flops_per_token, task.tokens_per_step, 4)

    @property
    def flops_per_step(self) -> float:
        """FLOP of one local step of one node."""
        return self.flops_per_token * self.tokens_per_step

    @cached_property
    def timeline(self) -> Timeline:
        """Where in a step the layers are."""
        return Timeline(self.layers)

    def nbytes(self, codec: Codec, layout: Layout | None = None) -> int:
        """Exact bytes of one node's payload, computed once per codec and layout.

        Args:
            codec: must be hashable, such as a frozen dataclass.
            layout: a fragment of this workload; by default all of it.

        Raises:
            ValueError: the codec's size depends on the values that it encodes.
        """
        if codec.sized_by_data:
            raise ValueError(
                f"{codec}: its size depends on values, which shapes alone do not have; full runs "
                "charge it by the density that the trained model shows (density_nbytes), "
                "timing-only runs cannot: choose a codec of fixed size, such as TopK"
            )
        return _nbytes(codec, self.layout if layout is None else layout)

    def density_nbytes(
        self, codec: Codec, bits_per_value: float, layout: Layout | None = None
    ) -> int:
        """Bytes of one node's payload of a codec that is sized by data.

        Args:
            bits_per_value: bits sent per coefficient, as measured on the trained model.
            layout: a fragment of this workload; by default all of it.
        """
        if not codec.sized_by_data:
            raise ValueError(f"{codec}: has a fixed size; use nbytes, which is exact")
        if not bits_per_value >= 0:
            raise ValueError(f"bits_per_value={bits_per_value}: must be >= 0")
        return math.ceil((self.layout if layout is None else layout).numel * bits_per_value / 8)

    def state_nbytes(self, copies: float) -> int:
        """Bytes of `copies` parameter-sized float32 tensors: what a joiner downloads."""
        return math.ceil(copies * self.layout.numel * _ROW)

    def memory_needed(self, state_rows: float = 2.0) -> dict[str, float]:
        """Bytes of device memory of one replica, by what they hold; their sum is the need.

        Args:
            state_rows: parameter-sized float32 rows beside the weights: 2 for AdamW's moments; see
                `Strategy.state_rows`.
        """
        values = self.layout.numel
        parts = {
            "weights": values * self.bytes_per_value,
            "gradients": values * self.bytes_per_value,
            "master weights": values * _ROW if self.bytes_per_value < _ROW else 0,
            "optimizer state": values * _ROW * state_rows,
            "activations": self.activation_bytes_per_token * self.microbatch_tokens,
        }
        return {name: float(nbytes) for name, nbytes in parts.items() if nbytes}

    def check_fits(self, memory: float, owner: str = "the device", state_rows: float = 2.0) -> None:
        """Raise ValueError, with the sum written out, if a replica exceeds `memory` bytes."""
        parts = self.memory_needed(state_rows)
        need = sum(parts.values())
        if need > memory:
            terms = " + ".join(f"{_gb(nbytes)} {name}" for name, nbytes in parts.items())
            raise ValueError(
                f"workload {self.name} ({self.layout.numel / 1e9:.3g}B parameters) needs {terms} = "
                f"{_gb(need)}; {owner} has {_gb(memory)}; choose {_enough(need)}"
            )


def transformer(
    name: str,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    ffn: int,
    vocabulary: int,
    *,
    tied: bool = False,
    context: int = 2048,
    tokens_per_step: int = 65_536,
    bytes_per_value: int = 2,
) -> Workload:
    """A decoder in the style of Llama: grouped queries, gated feed-forward, RMS norms, no biases.

    FLOP per token are `6 M + 12 layers width context`: 6 for each of the M weights that multiply
    the token (all but the input table, which is only looked up; Kaplan et al., arXiv 2001.08361),
    and the attention term of appendix B of PaLM (arXiv 2204.02311), with no discount for the
    causal mask. Activations are those of one sequence with every layer recomputed: 2 bytes times
    width per layer boundary, 34 times width inside the layer at work (Korthikanti et al., arXiv
    2205.05198, with fused attention) and 6 per logit (bf16 and a float32 softmax).

    Args:
        ffn: inner width of the feed-forward layer.
        tied: the output head is the embedding table.
        context: tokens of a sequence, the micro-batch.
        tokens_per_step, bytes_per_value: as in `Workload`.
    """
    if width % heads or heads % kv_heads:
        raise ValueError(
            f"heads={heads}, kv_heads={kv_heads}: heads must divide width={width}, and kv_heads "
            f"must divide heads; for example heads={width // 64 or 1}, kv_heads=1"
        )
    kv_width, table = width // heads * kv_heads, (vocabulary, width)
    blocks = [_layer(f"layers.{i}.", width, kv_width, ffn) for i in range(layers)]
    head: dict[str, tuple[int, ...]] = {} if tied else {"head": table}
    shapes: dict[str, tuple[int, ...]] = {"embed": table}
    for block in blocks:
        shapes |= block
    layout = Layout(shapes | {"norm": (width,)} | head)
    multiplied = layout.numel - (0 if tied else vocabulary * width)
    return Workload(
        name,
        layout,
        flops_per_token=6.0 * multiplied + 12.0 * layers * width * context,
        tokens_per_step=tokens_per_step,
        bytes_per_value=bytes_per_value,
        activation_bytes_per_token=(2.0 * layers + 34) * width + 6 * vocabulary,
        microbatch_tokens=context,
        layers=(
            Layer("embed", ("embed",), 0.0),  # looked up
            *(_block(i, block, 4.0 * width * context) for i, block in enumerate(blocks)),
            Layer("norm", ("norm",), 2.0 * width),
            Layer("head", tuple(head), 2.0 * math.prod(table)),
        ),
    )


def uniform_layers(
    name: str,
    layers: int,
    parameters: int,
    *,
    step_seconds: float | None = None,
    flops_per_token: float | None = None,
    tokens_per_step: int = 65_536,
    bytes_per_value: int = 2,
) -> Workload:
    """A model of equal layers, `layers.0` to the last, and nothing else; each is one vector.

    For tables that print a model's parameters, layers and step time and no more. Where the layers
    do not divide the parameters, the first ones have one parameter more.

    Args:
        step_seconds: of one local step where a device reaches 1 PFLOP/s, such as
            `Device(speed="1PFLOPS", mfu=1, jitter=0)`.
        flops_per_token: instead of `step_seconds`; by default 6 per parameter.
        tokens_per_step, bytes_per_value: as in `Workload`.

    >>> uniform_layers("two", 2, 5).layout.shapes
    {'layers.0': (3,), 'layers.1': (2,)}
    >>> uniform_layers("1B", 24, 10**9, step_seconds=0.1).flops_per_step == 0.1e15
    True
    """
    if not 1 <= layers <= parameters:
        raise ValueError(f"layers={layers}: must be between 1 and parameters={parameters}")
    if step_seconds is not None and flops_per_token is not None:
        raise ValueError(f"{step_seconds=}, {flops_per_token=}: give one of them")
    if step_seconds is not None and not step_seconds > 0:
        raise ValueError(f"step_seconds={step_seconds}: must be > 0")
    flops = 6.0 * parameters if flops_per_token is None else flops_per_token
    if step_seconds is not None:
        flops = step_seconds * 1e15 / tokens_per_step
    size, more = divmod(parameters, layers)
    shapes = {f"layers.{i}": (size + (i < more),) for i in range(layers)}
    equal = tuple(Layer(name, (name,), 1.0) for name in shapes)
    return Workload(name, Layout(shapes), flops, tokens_per_step, bytes_per_value, layers=equal)


def one_billion(tokens_per_step: int = 65_536) -> Workload:
    """1.056e9 parameters: the 1B of PRIME (PrimeIntellect-ai/prime, `llama2_configs`), with the
    Llama 2 shape rule (ffn 5632) and the Llama 2 vocabulary of 32,000.
    """
    return transformer("1B", 18, 2048, 16, 16, 5632, 32_000, tokens_per_step=tokens_per_step)


def ten_billion(tokens_per_step: int = 65_536) -> Workload:
    """1.021e10 parameters: INTELLECT-1 (arXiv 2412.01152; prime's `llama3_configs`, Llama 3 shape
    rule), which ran 1,048,576 tokens per local step on nodes of eight H100.
    """
    return transformer(
        "10B", 42, 4096, 32, 8, 14_336, 128_256, context=8192, tokens_per_step=tokens_per_step
    )


def llama3_405b(tokens_per_step: int = 65_536) -> Workload:
    """4.0585e11 parameters: Llama 3 405B (arXiv 2407.21783, table 3)."""
    return transformer(
        "405B", 126, 16_384, 128, 8, 53_248, 128_256, context=8192, tokens_per_step=tokens_per_step
    )


def _layer(prefix: str, width: int, kv_width: int, ffn: int) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer, (out, in) as in `torch.nn.Linear`."""
    shapes = {
        "attention_norm": (width,),
        "q": (width, width),
        "k": (kv_width, width),
        "v": (kv_width, width),
        "o": (width, width),
        "ffn_norm": (width,),
        "gate": (ffn, width),
        "up": (ffn, width),
        "down": (width, ffn),
    }
    return {prefix + name: shape for name, shape in shapes.items()}


def _block(i: int, shapes: dict[str, tuple[int, ...]], attention: float) -> Layer:
    """A layer of a decoder; `attention` is the FLOP per token of its scores and their use."""
    return Layer(str(i), tuple(shapes), 2.0 * Layout(shapes).numel + attention)


@lru_cache(maxsize=1024)
def _nbytes(codec: Codec, layout: Layout) -> int:
    return codec.nbytes(layout)


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:,.1f} GB"


def _enough(need: float) -> str:
    """The smallest known accelerator that holds `need` bytes, or how many of the largest."""
    kinds = sorted(GPUS, key=lambda kind: GPUS[kind].memory)
    for kind in kinds:
        if GPUS[kind].memory >= need:
            return f"for example {kind} ({_gb(GPUS[kind].memory)}) or a smaller workload"
    count = math.ceil(need / GPUS[kinds[-1]].memory)
    return f"a smaller workload, or shard a replica: gpus={kinds[-1]}, gpus_per_node={count}"
