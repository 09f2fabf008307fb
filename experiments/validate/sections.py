"""The parts of the built-in table, by name."""

from __future__ import annotations

import importlib
from fnmatch import fnmatch

from experiments.errors import unknown
from experiments.validate.row import Row

SECTIONS = {
    "closed_forms": "closed_forms",
    "properties": "properties",
    "simgrid": "replay",
    "gloo": "gloo",
    "training_runs": "measured",
    "utilisation": "utilisation",
    "wall_clock": "wallclock",
    "systems": "systems",
    "averaging": "averaging",
    "topologies": "topology",
}
"""Names, and the modules of this package whose `rows()` they are."""


def chosen(pattern: str | None = None) -> list[str]:
    """The parts that a pattern means: those that contain it, or match it as a glob; all if None.

    >>> chosen("runs"), chosen("*forms")
    (['training_runs'], ['closed_forms'])

    Raises:
        ValueError: there is none; names the nearest.
    """
    names = list(SECTIONS)
    if pattern is None:
        return names
    word = pattern.lower().replace(" ", "_").replace("-", "_")
    found = [name for name in names if word in name or fnmatch(name, word)]
    if not found:
        raise ValueError(unknown(f"--only {pattern}", "section", word, names))
    return found


def rows(name: str) -> list[Row]:
    """The rows of one part."""
    return importlib.import_module(f"experiments.validate.{SECTIONS[name]}").rows()
