"""Ours beside references that are not ours, as one table; exit code 1 if a judged row fails.

Without a subcommand the built-in table: closed forms, properties that must hold, another
simulator, measurements, published tables. With one, your own data:

  network FILE.npz ...   flows with the times of another simulator, replayed on the engine
  papers FILE.csv ...    published tables, told apart by their columns
  measured FILE.csv ...  training runs, or gloo transfers, on shaped links
  golden FILE.npz ...    what an algorithm's authors' own program computed, step by step
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from experiments.validate import sections
from experiments.validate.report import as_table, save, summary
from experiments.validate.row import Row

_FILES = {"network": ".npz", "papers": ".csv", "measured": ".csv", "golden": ".npz"}
Part = tuple[str, Callable[[], list[Row]]]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a judged row fails, 2 if a file is wrong (or the command: exits)."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.command and options.only:
        parser.error("--only is for the built-in table, not for files")
    if options.command is None:
        try:
            names = sections.chosen(options.only)
        except ValueError as error:
            return _complain(error)
        rows = _measure([(name, partial(sections.rows, name)) for name in names])
    else:
        try:
            rows = _measure([(path, partial(_judge, options, path)) for path in options.files])
        except (ValueError, OSError) as error:
            return _complain(error)
    print(as_table(rows))
    print(f"\n{summary(rows)}")
    if options.json is not None:
        try:
            save(options.json, rows)
        except OSError as error:
            return _complain(error)
    return 0 if all(row.holds for row in rows if row.judged) else 1


def _complain(error: Exception) -> int:
    print(error, file=sys.stderr)
    return 2


def _judge(options: argparse.Namespace, path: str) -> list[Row]:
    if options.command == "network":
        from experiments.validate.replay import judge as network

        return network(path)
    if options.command == "papers":
        from experiments.validate.papers import judge as papers

        return papers(path)
    if options.command == "golden":
        from experiments.validate.golden.judge import judge as golden

        return golden(path)
    from experiments.validate.shaped import judge as measured

    return measured(path, tcp=options.tcp)


def _measure(parts: Iterable[Part]) -> list[Row]:
    """The rows of all parts; says on stderr how far it is."""
    parts, rows = list(parts), []
    live = sys.stderr.isatty()
    for number, (name, make) in enumerate(parts, 1):
        began, head = time.perf_counter(), f"[{number}/{len(parts)}] {name}"
        if live:
            print(f"{head} ...", end="", file=sys.stderr, flush=True)
        found = make()
        failed = sum(row.judged and not row.holds for row in found)
        said = f"{len(found)} rows" + (f", {failed} FAIL" if failed else "")
        lead = "\r\x1b[K" if live else ""
        seconds = time.perf_counter() - began
        print(f"{lead}{head}: {said}, {seconds:.1f} s", file=sys.stderr, flush=True)
        rows += found
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "archipelago validate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        help=f"sections of the built-in table: {', '.join(sections.SECTIONS)}",
    )
    verbs = parser.add_subparsers(dest="command", metavar="network | papers | measured | golden")
    for name, what in _FILES.items():
        verb = verbs.add_parser(name, help=f"your own {what} files")
        verb.add_argument("--json", type=Path, default=argparse.SUPPRESS, metavar="FILE")
        verb.add_argument("files", nargs="+", metavar=f"FILE{what}")
    verbs.choices["measured"].add_argument(
        "--tcp",
        action="store_true",
        help="predict training runs with what TCP leaves of slow links",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
