"""HuggingFace: text from a dataset of the Hugging Face Hub, streamed; needs the extra `hf`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from experiments.tasks.text import Source
from sim.units import Quantity, size

_OFFLINE = (
    "Choices that need no network: task=markov (artificial language, the default), task=pydoc "
    "(Python's documentation), task=text task.source.paths=book.txt (your own file), task=digits"
)


@dataclass(frozen=True)
class HuggingFace(Source):
    """The first bytes of a dataset, as it streams; documents are separated by an empty line.

    Nothing replaces a dataset that cannot be had: `read` then raises, and names what works offline.

    Args:
        name: the dataset on the Hub, for example "roneneldan/TinyStories".
        subset: its configuration, if it has several.
        split: which part of it.
        field: the column that holds the text.
        revision: branch, tag or commit; name a commit if the data must never change.
        limit: bytes read at most ("16MB").
    """

    name: str = "roneneldan/TinyStories"
    subset: str | None = None
    split: str = "train"
    field: str = "text"
    revision: str | None = None
    limit: Quantity = "16MB"

    def __post_init__(self) -> None:
        size(self.limit, "limit", positive=True)

    def read(self) -> bytes:
        """Stream the dataset until `limit` bytes have come, or its end.

        Raises:
            ImportError: without the package `datasets`.
            ConnectionError: if the Hub cannot be reached or does not have the dataset.
            ValueError: if the column is missing or does not hold text.
        """
        try:
            import datasets
        except ImportError as error:
            raise ImportError(
                "reading from the Hugging Face Hub needs the package `datasets`: install "
                f"archipelago-sim[hf]. {_OFFLINE}"
            ) from error
        try:
            rows = datasets.load_dataset(
                self.name, self.subset, split=self.split, revision=self.revision, streaming=True
            )
            return self._join(rows)
        except OSError as error:
            raise ConnectionError(
                f"dataset {self.name!r} cannot be streamed ({type(error).__name__}: {error}). "
                f"{_OFFLINE}"
            ) from error

    def _join(self, rows: Iterable[dict[str, Any]]) -> bytes:
        parts, length, limit = [], 0, int(size(self.limit))
        for row in rows:
            text = row.get(self.field)
            if not isinstance(text, str):
                columns = [name for name, value in row.items() if isinstance(value, str)]
                raise ValueError(
                    f"field={self.field!r}: holds no text in {self.name}; those that do: {columns}"
                )
            parts.append(text.encode() + b"\n\n")
            length += len(parts[-1])
            if length >= limit:
                break
        return b"".join(parts)[:limit]
