"""How the cost of a flow grows with the number of nodes: a figure from a benchmark's JSON.

`python -m experiments.bench.networks.figure NUMBERS.json FIGURE`, where NUMBERS comes from
`python -m experiments.bench network --json NUMBERS.json`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.bench.network import COST

_NODES = re.compile(re.escape(COST) + r", ([\d,]+) nodes$")


def costs(report: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of nodes, and microseconds of wall time per flow, from a report.

    Raises:
        ValueError: the report has no such rows.
    """
    found = [
        (int(match[1].replace(",", "")), float(row["ours"]))
        for row in report["rows"]
        if (match := _NODES.match(row["name"]))
    ]
    if len(found) < 2:
        raise ValueError(f"rows named {COST!r}: {len(found)}: expected at least 2")
    nodes, micro = np.array(sorted(found)).T
    return nodes, micro


def draw(report: Mapping[str, Any], path: str | Path) -> None:
    """Wall time of one flow per node, log-log, beside n log n through its first point."""
    nodes, micro = costs(report)
    seconds = nodes * micro / 1e6
    ideal = seconds[0] * nodes * np.log(nodes) / (nodes[0] * np.log(nodes[0]))
    figure, axes = plt.subplots(figsize=(5, 4), constrained_layout=True)
    axes.loglog(nodes, seconds, "o-", label="every node sends again at once")
    axes.loglog(nodes, ideal, "--", color="grey", label="n log n")
    axes.set(xlabel="nodes", ylabel="wall time of one flow per node (s)")
    axes.set_title(f"{micro[0]:.0f} to {micro[-1]:.0f} us per flow")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Read JSON, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("numbers", metavar="NUMBERS.json")
    parser.add_argument("figure", metavar="FIGURE")
    options = parser.parse_args(argv)
    draw(json.loads(Path(options.numbers).read_text(encoding="utf-8")), options.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
