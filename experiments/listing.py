"""`archipelago list`: the slots and their choices, each with a line of description."""

from __future__ import annotations

import importlib.resources
import inspect
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_object

from experiments.cells import CONF
from experiments.errors import unknown
from experiments.plugins import config_packages, register
from experiments.table import table

_PLURALS = {"strategies": "strategy", "topologies": "topology", "churns": "churn"}


def listing(slots: Sequence[str] = ()) -> str:
    """The choices of some slots, or of all.

    Raises:
        ValueError: there is no such slot.
    """
    register()
    known = _choices()
    wanted = [_slot(name, list(known)) for name in slots] or list(known)
    return "\n\n".join(_section(slot, known[slot], bool(slots)) for slot in wanted)


def describe(path: Any) -> str:
    """The first sentence of a YAML file's comment; else the first line of what it names."""
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "@package" not in line]
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    sentence, dot, _ = " ".join(line.lstrip("# ") for line in comment).partition(". ")
    if sentence:
        return f"{sentence}." if dot else sentence
    target = (yaml.safe_load(text) or {}).get("_target_")
    if target is None:
        return ""
    return (inspect.getdoc(get_object(target)) or "").partition("\n")[0]


def _choices() -> dict[str, dict[str, Any]]:
    """slot -> choice -> its file, ours first."""
    found: dict[str, dict[str, Any]] = {}
    for folder in _folders():
        for slot in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if not slot.is_dir() or slot.name.startswith("_"):
                continue
            for file in sorted(slot.iterdir(), key=lambda entry: entry.name):
                if file.name.endswith(".yaml"):
                    choice = file.name.removesuffix(".yaml")
                    found.setdefault(slot.name, {}).setdefault(choice, file)
    return found


def _folders() -> Iterator[Any]:
    yield Path(CONF)
    for point in config_packages():
        yield importlib.resources.files(point.value)


def _slot(name: str, known: list[str]) -> str:
    slot = _PLURALS.get(name, name if name in known else name.removesuffix("s"))
    if slot not in known:
        raise ValueError(unknown(name, "slot", name, known))
    return slot


def _section(slot: str, choices: dict[str, Any], at_length: bool) -> str:
    rows = [{slot: name, "": describe(file)} for name, file in choices.items()]
    if slot != "strategy" or not at_length:
        return table(rows)
    from experiments.algorithms import rows as algorithms  # composes each: some seconds

    known = algorithms(measured=False)
    others = {name: {"strategy": name, "algorithm": describe(choices[name])} for name in choices}
    columns = list(next(iter(known.values())))
    return table([known.get(name, other) for name, other in others.items()], columns)
