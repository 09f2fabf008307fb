"""`archipelago timeline`: what a run did, as trace events, as a Gantt chart, as a heat map."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from experiments import timeline as trace_events
from experiments.records import Window
from sim import units


def timeline(argv: Sequence[str]) -> None:
    """Write what the command line asks for, and print the paths.

    Raises:
        ValueError: an option, or the run, is wrong.
    """
    options = _parser().parse_args(argv)
    window = Window(
        nodes=None if options.nodes is None else _nodes(options.nodes),
        start=units.seconds(options.start, "--from"),
        end=math.inf if options.end is None else units.seconds(options.end, "--to"),
        limit=options.limit,
    )
    run = Path(options.run)
    if options.gantt is not None:
        from experiments import gantt

        print(gantt.save(run, options.gantt, window))
    if options.heat is not None:
        from experiments import heat

        print(heat.save(run, options.heat, window, options.links))
    if options.json is not None or (options.gantt is None and options.heat is None):
        print(trace_events.write(run, options.json or run / trace_events.NAME, window))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("archipelago timeline", description=__doc__)
    parser.add_argument("run", help="a run folder, such as runs/first_light/0")
    parser.add_argument(
        "--json",
        metavar="FILE",
        help=f"trace events, .json or .json.gz; {trace_events.NAME} in the run folder by default, "
        "if no picture is wanted",
    )
    parser.add_argument("--gantt", metavar="FILE", help="a Gantt chart of nodes, .png or .svg")
    parser.add_argument("--heat", metavar="FILE", help="the utilisation of links, .png or .svg")
    parser.add_argument("--links", type=int, default=40, help="so many links, the busiest ones")
    parser.add_argument("--nodes", metavar="0,3,7", help="these nodes only, and links at them")
    parser.add_argument("--from", dest="start", metavar="TIME", default="0s", help="such as 90s")
    parser.add_argument("--to", dest="end", metavar="TIME", help="such as 2h")
    parser.add_argument("--limit", type=int, default=Window.limit, help="most pieces in a file")
    return parser


def _nodes(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--nodes {text}: expected ids with commas between them, such as 0,3,7")
    return tuple(sorted({int(part) for part in parts}))
