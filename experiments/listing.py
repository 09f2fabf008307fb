"""`archipelago list`: the slots and their choices, each with a line of description.

Slots that are asked for by name have more to say if they hold algorithms: tables of their own.
"""

from __future__ import annotations

import importlib
import importlib.resources
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from experiments.cells import CONF, read
from experiments.errors import unknown
from experiments.plugins import config_packages, register
from experiments.table import number, table
from sim.workload import one_billion

Table: TypeAlias = dict[str, dict[str, str]]
"""Choice -> its row: column -> text."""
_OUTER = "strategy/outer"
_PLURALS = {
    "strategies": "strategy",
    "topologies": "topology",
    "churns": "churn",
    "outer": _OUTER,
    "outers": _OUTER,
}


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
        for slot, entries in _slots(folder):
            for file in entries:
                if file.name.endswith(".yaml"):
                    choice = file.name.removesuffix(".yaml")
                    found.setdefault(slot, {}).setdefault(choice, file)
    return found


def _slots(folder: Any, above: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Folders of choices below a folder, by the names that Hydra has for them."""
    for slot in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if slot.is_dir() and not slot.name.startswith("_"):
            yield above + slot.name, sorted(slot.iterdir(), key=lambda entry: entry.name)
            yield from _slots(slot, f"{above}{slot.name}/")


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
    described = {name: describe(file) for name, file in choices.items()}
    known = _DETAILS[slot](described) if at_length and slot in _DETAILS else {}
    if not known:
        return table([{slot: name, "what it is": text} for name, text in described.items()])
    columns = list(next(iter(known.values())))
    others = {name: {slot: name, columns[1]: text} for name, text in described.items()}
    return table([known.get(name, other) for name, other in others.items()], columns)


def _strategies(_: dict[str, str]) -> Table:
    """The table of `docs/algorithms.md`; each is composed, which takes some seconds."""
    return importlib.import_module("experiments.algorithms").rows()


def _compressors(_: dict[str, str]) -> Table:
    """The table of `docs/compressors.md`."""
    return importlib.import_module("experiments.codecs").rows()


def _rules(described: dict[str, str]) -> Table:
    """How many members may send anything, and what carries the rows."""
    made = {}
    for name in _own("aggregation"):
        rule = instantiate(read([f"aggregation={name}"]).cells[0].cfg.aggregation)
        made[name] = {
            "aggregation": name,
            "what it is": described[name],
            "liars of 16": str(rule.tolerates(16)),
            "carried by": "all-reduce, gather" if rule.summable else "gather",
            "weights": "yes" if rule.weighted else "no",
        }
    return made


def _optimizers(slot: str, key: str, described: dict[str, str]) -> Table:
    """Schedule, and rows of state beside the parameters of a model of 10^9."""
    made, layout = {}, one_billion().layout
    for name in _own(slot):
        cfg = read([f"{slot}={name}"]).cells[0].cfg
        optimizer = instantiate(OmegaConf.select(cfg, key)).bind(layout)
        made[name] = {
            slot: name,
            "what it is": described[name],
            "schedule": type(optimizer.schedule).__name__,
            "rows of state": number(float(optimizer.state_rows)),
        }
    return made


def _own(slot: str) -> list[str]:
    return sorted(path.stem for path in Path(CONF, slot).glob("*.yaml"))


_DETAILS: dict[str, Callable[[dict[str, str]], Table]] = {
    "strategy": _strategies,
    "compressor": _compressors,
    "aggregation": _rules,
    "local": partial(_optimizers, "local", "local"),
    _OUTER: partial(_optimizers, _OUTER, "strategy.outer"),
}
"""What is known of the choices of a slot beside a line, if the slot is asked for by name."""
