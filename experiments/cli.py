"""The command `archipelago`: run, list, results, timeline, validate, bench.

Exit codes: 0 well, 1 something failed while it ran, 2 the command line or a configuration is wrong.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence

USAGE = """usage: archipelago VERB ...

  run [OVERRIDE ...]        run an experiment, or with -m (or experiment=NAME) a grid of them
      strategy=demo topology.n=16        overrides of the defaults (`archipelago list`)
      -m strategy=diloco,demo seed=0,1   all combinations, one per core
      -m together=true ...               all in this process, computing side by side
      --config-dir DIR                   a folder with choices of your own
      --fresh                            repeat what has results already
      --profile                          say where the wall time went, cell by cell
      --cfg job, --help                  as Hydra has them
  list [SLOT ...]           the slots and their choices
  results FOLDER [--csv F]  the table of a sweep; all its evaluations as CSV
  timeline RUN ...          a run folder as trace events for ui.perfetto.dev
      --gantt F, --heat F                pictures (.png, .svg): nodes over time, busiest links
      --nodes 0,3,7 --from 1h --to 2h    a part of the run
  validate                  simulated beside references; exit code 1 if a judged row is off
      --only PATTERN --json F            a part of it; the rows as JSON
      network F.npz ..., papers F.csv ..., measured F.csv ...      your own data
  bench [NAME ...]          benchmarks beside their baselines"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    verb = args.pop(0) if args else "--help"
    verbs = {
        "run": _run,
        "list": _list,
        "results": _results,
        "timeline": _timeline,
        "validate": _validate,
        "bench": _bench,
    }
    if verb in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if verb not in verbs:
        from experiments.errors import unknown

        print(unknown(verb, "verb", verb, list(verbs)), file=sys.stderr)
        return 2
    warnings.showwarning = _one_line
    return verbs[verb](args)


def _run(args: list[str]) -> int:
    from experiments.launch import launch

    return launch(args)


def _list(args: list[str]) -> int:
    from experiments.listing import listing

    return _user_errors(lambda: print(listing(args)))


def _results(args: list[str]) -> int:
    parser = argparse.ArgumentParser("archipelago results")
    parser.add_argument("folder")
    parser.add_argument("--csv", help="write all evaluations of all runs to this file")
    options = parser.parse_args(args)
    return _user_errors(lambda: _show_results(options.folder, options.csv))


def _show_results(folder: str, csv: str | None) -> None:
    from experiments import report, results

    print(report.final_table(results.summary(folder)))
    if csv is not None:
        results.save_csv(results.load(folder), csv)
        print(csv)


def _timeline(args: list[str]) -> int:
    from experiments.timeline_command import timeline

    return _user_errors(lambda: timeline(args))


def _validate(args: list[str]) -> int:
    from experiments.validate.__main__ import main as validate

    return validate(args)


def _bench(args: list[str]) -> int:
    from experiments.bench.__main__ import main as bench

    return bench(args)


def _user_errors(action: Callable[[], None]) -> int:
    try:
        action()
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """A warning without the line of code that gave it; for authors of libraries, nothing."""
    if issubclass(category, RuntimeWarning | UserWarning):
        print(f"warning: {message}", file=sys.stderr)
