"""The rows of a validation as a table for a reader, a summary by kind, and a JSON file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from experiments.machine import device_name, versions
from experiments.table import number, table
from experiments.validate.row import KINDS, Row

_NAMES = {"simulator": "another simulator", "published": "published number or table"}


def as_table(rows: Sequence[Row]) -> str:
    """The rows as plain text; below it what is to be said of single ones."""
    text = table([_cells(row) for row in rows])
    notes = [f"  {row.what}: {row.note}" for row in rows if row.note and row.judged]
    return "\n".join([text, "", *notes]).rstrip() if notes else text


def summary(rows: Sequence[Row]) -> str:
    """How many rows of each kind of reference hold, and which fail."""
    lines = []
    for kind, (held, judged, shown) in counts(rows).items():
        more = f", {shown} printed, not judged" if shown else ""
        lines.append(f"{_NAMES.get(kind, kind)}: {held} of {judged} hold{more}")
    failing = [row for row in rows if row.judged and not row.holds]
    if failing:
        lines.append(f"{len(failing)} FAIL:")
        lines += [
            f"  {row.what}: {row.difference:+.2g}, accepted {row.tolerance:g}" for row in failing
        ]
    else:
        lines.append("all judged rows hold")
    return "\n".join(lines)


def counts(rows: Sequence[Row]) -> dict[str, tuple[int, int, int]]:
    """By kind: rows that hold, rows that are judged, rows that are only printed."""
    found = {}
    for kind in KINDS:
        mine = [row for row in rows if row.kind == kind]
        judged = [row for row in mine if row.judged]
        if mine:
            found[kind] = sum(row.holds for row in judged), len(judged), len(mine) - len(judged)
    return found


def save(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows as JSON by rename; what is not a number becomes null."""
    kinds = {
        kind: {"hold": held, "judged": judged, "printed": shown}
        for kind, (held, judged, shown) in counts(rows).items()
    }
    report = {
        "device": device_name(),
        "versions": versions(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "holds": all(row.holds for row in rows if row.judged),
        "kinds": kinds,
        "rows": [_plain(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".tmp-{path.name}")
    beside.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _plain(row: Row) -> dict[str, Any]:
    fields = asdict(row) | {"difference": row.difference, "holds": row.holds}
    unreal = [k for k, v in fields.items() if isinstance(v, float) and not math.isfinite(v)]
    return fields | dict.fromkeys(unreal)


def _cells(row: Row) -> dict[str, str]:
    known = math.isfinite(row.ours)
    unit = " rel." if row.relative and row.reference != 0.0 else ""
    held = ("yes" if row.holds else "NO") if row.judged else "-"
    return {
        "what": row.what,
        "ours": number(row.ours, 5),
        "reference": number(row.reference, 5),
        "difference": f"{row.difference:+.1e}" if known else "-",
        "tolerance": f"{row.tolerance:g}{unit}",
        "source": row.source,
        "kind": row.kind,
        "holds": held,
    }
