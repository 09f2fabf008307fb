"""Node-steps per second against the number of nodes: a figure from a benchmark's JSON.

`python -m experiments.bench.fleets.figure NUMBERS.json [MORE.json ...] FIGURE`, where the numbers
come from `python -m experiments.bench fleet --json NUMBERS.json`, of one device or of several.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

_ROW = re.compile(r"(?P<model>.+): any N, (?P<nodes>[\d,]+) nodes$")


def rates(report: Mapping[str, Any]) -> dict[str, list[tuple[int, float, float | None]]]:
    """By model: nodes, node-steps per second, and the loop's where it was measured.

    Raises:
        ValueError: the report has no such rows.
    """
    found: dict[str, list[tuple[int, float, float | None]]] = {}
    for row in report["rows"]:
        if match := _ROW.match(row["name"]):
            nodes = int(match["nodes"].replace(",", ""))
            found.setdefault(match["model"], []).append((nodes, row["ours"], row["baseline"]))
    if not found:
        raise ValueError("no rows named '...: any N, ... nodes': is it a report of `bench fleet`?")
    return {model: sorted(points) for model, points in found.items()}


def draw(reports: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """One line per model and device; the loop's rate, in the same colour, dotted."""
    figure, axes = plt.subplots(figsize=(8, 4.5), constrained_layout=True)
    devices = []
    for report in reports:
        devices.append(report["device"])
        for model, points in rates(report).items():
            nodes, ours, loops = zip(*points)
            (line,) = axes.loglog(nodes, ours, "o-", label=model)
            if all(rate is not None for rate in loops):
                axes.loglog(nodes, loops, ":", color=line.get_color())
    axes.set(xlabel="nodes", ylabel="node-steps per second (CPU: one thread)")
    axes.set_title(f"{'; '.join(dict.fromkeys(devices))}\ndotted: a loop over torch modules")
    axes.grid(alpha=0.3, which="both")
    figure.legend(fontsize="small", loc="outside right upper")
    figure.savefig(path)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Read JSON, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("numbers", metavar="NUMBERS.json", nargs="+")
    parser.add_argument("figure", metavar="FIGURE")
    options = parser.parse_args(argv)
    reports = [json.loads(Path(n).read_text(encoding="utf-8")) for n in options.numbers]
    draw(reports, options.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
