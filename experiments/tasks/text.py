"""Text: a transformer learns bytes of real text, from files or from Python's own documentation.

A `Source` says where the text is from; it is read at `bind`, and its hash is in the manifest.

Legend: n nodes of a batch, B sequences, T context, P parameters.
"""

from __future__ import annotations

import codecs
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.tasks.checks import at_least
from experiments.tasks.models import GPT
from experiments.tasks.module_task import Model, ModuleTask, OwnModel
from experiments.tasks.own_model import chosen, flops_per_token
from sim.streams import uniforms
from sim.units import Quantity, size

_BYTES = 256
"""The vocabulary."""


class Source(ABC):
    """Where text is from; implementations are frozen dataclasses."""

    @abstractmethod
    def read(self) -> bytes:
        """The text, UTF-8; the same at each call."""


@dataclass(frozen=True)
class Files(Source):
    """Text files, one after the other.

    Args:
        paths: one path or several; relative ones start at the working directory.
        limit: bytes read at most, over all files ("16MB").
    """

    paths: str | Sequence[str]
    limit: Quantity = "16MB"

    def __post_init__(self) -> None:
        size(self.limit, "limit", positive=True)
        paths = [self.paths] if isinstance(self.paths, str) else list(self.paths)
        if not paths:
            raise ValueError(f"paths={self.paths!r}: must name at least one file")
        object.__setattr__(self, "paths", tuple(str(path) for path in paths))

    def read(self) -> bytes:
        """Raises ValueError for a file that is missing, a folder, or not UTF-8."""
        text, limit = b"", int(size(self.limit))
        for name in self.paths:
            path = Path(name)
            if not path.is_file():
                raise ValueError(f"paths={name!r}: no such file from {Path.cwd()}")
            with path.open("rb") as file:
                part = file.read(limit - len(text))
                whole = not file.read(1)
            _check_utf8(name, part, whole)
            text += part
        return text


def _check_utf8(name: str, part: bytes, whole: bool) -> None:
    """Raise ValueError unless the bytes are UTF-8; a file cut short may end in mid-character."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(part, final=whole)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"paths={name!r}: byte {error.start} is not UTF-8 text ({error.reason}); "
            "convert the file to UTF-8 first"
        ) from error


@dataclass(frozen=True)
class PythonDocs(Source):
    """The prose of the running Python's language reference (`pydoc_data.topics`), 0.4-0.5 MB.

    It differs between versions of Python: compare runs by the hash in their manifests.
    """

    def read(self) -> bytes:
        """Raises ValueError if this Python came without its documentation."""
        try:
            from pydoc_data.topics import topics
        except ModuleNotFoundError as error:
            raise ValueError(
                "this Python has no pydoc_data; name a file of your own: task=text "
                "task.source.paths=book.txt"
            ) from error
        return "\n\n".join(topics[name] for name in sorted(topics)).encode()


@dataclass(eq=False)
class Text(ModuleTask):
    """Prediction of the next byte of a text.

    The last part of the text is held out: evaluation reads windows of it at equal distances, the
    same for every seed. `floor` is None: nobody knows the entropy of prose.

    Args:
        source: where the text is from.
        context: T, bytes that the model sees.
        sequences: B, sequences per node and step; `tokens_per_step` is B * T.
        sharded: cut the training text into one stretch per node, in order, so that nodes read
            different texts; otherwise every node reads everywhere.
        model: "gpt", a transformer, or a module of yours, bytes [B, T] (int64) to logits
            [B, T, 256]: the module, or what makes it when called without arguments.
        layers, width, heads: of "gpt".
        held_out: part of the text that is held out, between 0 and 1.
        evaluation_sequences: windows of T bytes that are evaluated.
    """

    source: Source
    context: int = 64
    sequences: int = 4
    sharded: bool = False
    model: str | OwnModel = "gpt"
    layers: int = 2
    width: int = 64
    heads: int = 4
    held_out: float = 0.1
    evaluation_sequences: int = 128

    def __post_init__(self) -> None:
        at_least(1, {"context": self.context, "sequences": self.sequences})
        at_least(1, {"evaluation_sequences": self.evaluation_sequences})
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out}: must be between 0 and 1; try 0.1")
        shape = (_BYTES, self.context, self.layers, self.heads, self.width)
        example = torch.arange(2 * self.context).view(2, -1) % _BYTES
        build = chosen(self.model, {"gpt": lambda: GPT(*shape)})
        module = self.attach(build, example, output=(*example.shape, _BYTES))
        self.flops_per_token = flops_per_token(self, module, example, example.numel())
        self.tokens_per_step = self.sequences * self.context

    def bind(self, seed: int, n_nodes: int) -> None:
        """Read the text and give each node its stretch.

        Raises:
            ValueError: if the text cannot be read, or is too short for that many nodes.
        """
        at_least(1, {"n_nodes": n_nodes})
        self._seed, self._text = seed, np.frombuffer(self.source.read(), np.uint8)
        train = int(len(self._text) * (1 - self.held_out))
        stretches = n_nodes if self.sharded else 1
        needed = self.context + 1
        if train // stretches < needed or len(self._text) - train < needed:
            parts = stretches / (1 - self.held_out), 1 / self.held_out
            least = math.ceil((needed + 1) * max(parts))  # 1 more, as the parts are rounded down
            raise ValueError(
                f"source={self.source!r}: {len(self._text)} bytes are too few for {stretches} "
                f"stretches and a held-out part of at least {needed} each; give {least} or more"
            )
        bounds = np.arange(stretches + 1) * train // stretches
        self._first = np.broadcast_to(bounds[:-1], n_nodes)
        self._starts = np.broadcast_to(np.diff(bounds) - self.context, n_nodes)  # how many
        last = len(self._text) - needed
        held_out = np.linspace(train, last, self.evaluation_sequences).astype(np.int64)
        self._held_out = self._windows(held_out)

    def _windows(self, starts: np.ndarray) -> Tensor:
        """The T + 1 bytes from each start, int64 [..., T + 1]."""
        places = starts[..., None] + np.arange(self.context + 1)
        return torch.from_numpy(self._text[places].astype(np.int64))

    def batch(self, nodes: np.ndarray, steps: np.ndarray) -> Tensor:
        """Windows of the nodes' stretches, int64 [n, B, T + 1]."""
        draws = uniforms(self._seed, "text batch", nodes, steps, self.sequences)
        nodes = np.asarray(nodes)
        offsets = (draws * self._starts[nodes, None]).astype(np.int64)
        return self._windows(self._first[nodes, None] + offsets)

    def objective(self, model: Model, batch: Tensor) -> Tensor:
        """Mean cross-entropy of one node's windows [B, T + 1], in nats per byte."""
        logits = model(batch[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def labelled(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Bytes [n, B, T], and the next ones."""
        return batch[..., :-1], batch[..., 1:]

    @torch.no_grad()
    def evaluate(self, params: Tensor, buffers: Tensor | None = None) -> dict[str, float]:
        """`"loss"` in nats per byte and `"bits_per_byte"`, on the held-out windows."""
        model = partial(self.forward, params, buffers=buffers)
        loss = self.objective(model, self._held_out.to(params.device)).item()
        return {"loss": loss, "bits_per_byte": loss / math.log(2)}

    def describe(self) -> dict[str, Any]:
        """Where the text is from, its length in bytes and its hash."""
        digest = hashlib.sha256(self._text.tobytes()).hexdigest()
        return {"data": repr(self.source), "bytes": len(self._text), "sha256": digest}
