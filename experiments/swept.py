"""Swept: what a sweep over a number says: which of its values is best, beside what else differs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from experiments import results
from experiments.table import number, table

if TYPE_CHECKING:
    import pandas as pd

_LEAST = 4
"""Values that make a key worth a figure of its own."""


def swept_number(df: pd.DataFrame) -> str | None:
    """The key with the most numbers, at least four, of a table of `results`; None if there is none.

    Seeds are no such key.
    """
    import pandas as pd

    counts = {
        key: df[key].nunique()
        for key in other_keys(df, None)
        if pd.api.types.is_numeric_dtype(df[key]) and not pd.api.types.is_bool_dtype(df[key])
    }
    key = max(counts, key=lambda name: counts[name], default=None)
    return key if key is not None and counts[key] >= _LEAST else None


def other_keys(df: pd.DataFrame, key: str | None) -> list[str]:
    """What else differs between the runs of a table, apart from their seeds."""
    return [name for name in results.axes(df) if name not in ("experiment", "seed", key)]


def final_losses(summary: pd.DataFrame) -> pd.DataFrame:
    """The same runs, with an infinite loss where there is none: diverged, failed, or cut off."""
    ended = summary["loss"].where(summary["status"] == "ok").astype(float)
    return summary.assign(loss=ended.fillna(math.inf))


def best(summary: pd.DataFrame, key: str) -> pd.DataFrame:
    """For each combination of the other keys the value of `key` whose median loss is lowest.

    Returns:
        The other keys, `key`, then of the loss over seeds `median`, `min`, `max`, how many there
        are in `count`, and `at_edge`: whether no value beyond this one was tried.
    """
    others = other_keys(summary, key)
    groups = final_losses(summary).groupby([*others, key], sort=False, dropna=False)["loss"]
    stats = groups.agg(["median", "min", "max", "count"]).reset_index()
    if not others:
        return _lowest(stats, key)
    import pandas as pd

    parts = stats.groupby(others, sort=False, dropna=False)
    return pd.concat([_lowest(part, key) for _, part in parts], ignore_index=True)


def best_table(summary: pd.DataFrame, key: str) -> str:
    """The same for a reader, one line per combination."""
    found = best(summary, key)
    rows = [_row(record, other_keys(summary, key), key) for record in found.to_dict("records")]
    lines = [
        table(rows),
        f"\nOf each line the {key} whose loss is lowest in the median over seeds; a run that did "
        "not end well counts as infinite.",
    ]
    if found["at_edge"].any():
        lines.append(f"edge: no {key} beyond it was tried.")
    return "\n".join(lines)


def _lowest(stats: pd.DataFrame, key: str) -> pd.DataFrame:
    line = stats.loc[[stats["median"].idxmin()]]
    return line.assign(at_edge=line[key].isin([stats[key].min(), stats[key].max()]))


def _row(record: dict[Any, Any], others: Sequence[str], key: str) -> dict[str, str]:
    edge = " (edge)" if record["at_edge"] else ""
    return {
        **{name: str(record[name]) for name in others},
        f"best {key}": f"{number(record[key])}{edge}",
        "median loss": number(record["median"], 4),
        "least": number(record["min"], 4),
        "most": number(record["max"], 4),
        "seeds": str(record["count"]),
    }
