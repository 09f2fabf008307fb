"""`python -m experiments.bench NAME ...`: ours beside a baseline, measured in the same run.

A benchmark is a module of this package with a function `rows(quick: bool) -> list[Row]`. It
measures both sides alternately, repeats, and gives medians; `quick` makes everything tiny, to see
that it runs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import experiments.bench as package
from experiments.bench.row import Row
from experiments.errors import unknown
from experiments.machine import device_name, versions
from experiments.table import number, table


def main(argv: Sequence[str] | None = None) -> int:
    """Run benchmarks by name; 1 if `--check` was given and a target is missed."""
    options = _options(argv)
    known = names()
    for name in options.names:
        if name not in known:
            print(unknown(name, "benchmark", name, known), file=sys.stderr)
            return 2
    reports = [measure(name, options.quick) for name in options.names or known]
    for report in reports:
        print(f"{report['benchmark']} on {report['device']}\n\n{as_table(report['rows'])}\n")
    if options.json is not None:
        save(options.json, reports[0] if len(reports) == 1 else reports)
    missed = [row for report in reports for row in report["rows"] if row["holds"] is False]
    return 1 if options.check and missed else 0


def names() -> list[str]:
    """The benchmarks there are: modules of this package that are not part of the machinery."""
    found = [module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg]
    return [name for name in found if name not in ("__main__", "row")]


def measure(name: str, quick: bool = False) -> dict[str, Any]:
    """Run a benchmark, with what a reader needs to compare its numbers with others."""
    rows: list[Row] = importlib.import_module(f"experiments.bench.{name}").rows(quick)
    return {
        "benchmark": name,
        "quick": quick,
        "device": device_name(),
        "versions": versions(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rows": [asdict(row) | {"ratio": row.ratio, "holds": row.holds} for row in rows],
    }


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as plain text."""
    lines = [
        {
            "name": row["name"],
            "unit": row["unit"],
            "ours": number(row["ours"]),
            "baseline": number(row["baseline"]),
            "ratio": number(row["ratio"]),
            "spread": number(row["spread"]),
            "target": row["target"] or "-",
            "holds": {True: "yes", False: "NO", None: "-"}[row["holds"]],
            "baseline is": row["baseline_name"] or "-",
        }
        for row in rows
    ]
    return table(lines)


def save(path: str | Path, report: Any) -> None:
    """Write JSON by rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".tmp-{path.name}")
    beside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("archipelago bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="all if none is given")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
