"""What a sweep says: the closed forms before it runs, one table and two figures after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import manifest, results
from experiments.cells import CONF
from experiments.closed_forms import Exchange, LinkTime, link_time
from experiments.experiment import Experiment
from experiments.progress import duration
from experiments.swept import best, best_table, final_losses, other_keys, swept_number
from experiments.table import number, size, table
from experiments.validate.closed_forms import equal_homes
from sim.profile import CAUSES
from sim.workload import Workload

if TYPE_CHECKING:
    import pandas as pd

_MANY = 30
"""Runs beyond which a table says what was found instead of naming each."""
_LINES = 12
"""Lines of a figure, over all of its panels, that a reader can tell apart."""

TOLERANCE = 0.01
"""A simulated link time this far from its closed form, relative, is marked."""

_UNITS = {
    "experiments.tasks.markov.MarkovLanguage": "nats per token",
    "experiments.tasks.text.Text": "nats per byte",
    "experiments.tasks.digits.Digits": "nats per image",
}
"""What the loss of a task is measured in; of others nothing is known."""


def closed_forms(named: Sequence[tuple[str, Experiment]]) -> str:
    """Link time per step of each cell's exchange alone, in closed form and simulated; or ""."""
    rows = [row for name, experiment in named if (row := _closed_form_row(name, experiment))]
    if not rows:
        return ""
    if len(rows) > _MANY:
        rows = _alike_once(rows)
    head = "Seconds of link time per local step, all nodes ready at once, nothing else on the links"
    homes = "; ".join(f"{row.what} {number(row.reference)}" for row in equal_homes())
    return f"{head}:\n\n{table(rows)}\n\nThe same by hand, in seconds: {homes}.\n"


def sweep_table(summary: pd.DataFrame) -> str:
    """One line per run; if they are many and a number was swept, what value of it is best."""
    key = swept_number(summary)
    if len(summary) <= _MANY or key is None or "loss" not in summary:
        return final_table(summary)
    told = f"Each of the {len(summary)} runs has its line in `archipelago results FOLDER`."
    return f"{best_table(summary, key)}\n{told}"


def final_table(summary: pd.DataFrame) -> str:
    """One line per run."""
    keys = [key for key in results.axes(summary) if key != "experiment"]
    lines = [_row(record, keys) for record in summary.to_dict("records")]
    filled = [c for c in lines[0] if any(line[c] != "-" for line in lines)]
    notes = (
        "distance: above the floor. to target: simulated time. use: share of online time spent on "
        "gradients. kept: share of\ncoefficients sent, of the trained and of the charged model. "
        f"link s/step: closed form, simulated alone (! if over {TOLERANCE:.0%} apart),\nand in "
        "this run, from when the last member is ready: shorter where payloads of earlier members "
        "are already under way\n(gathers), and different where nodes come and go: rings change, "
        "and each loss costs the time to see it."
    )
    if "empty" in filled:
        notes += "\nempty: exchanges to which nobody's share came, so that the step was lost."
    return f"{table(lines, filled)}\n\n{notes}"


def profile_table(runs: Mapping[str, Path]) -> str:
    """Where the wall time of runs went, one line each, of those that came to their end.

    Args:
        runs: name -> folder.
    """
    found = {name: manifest.read(folder) or {} for name, folder in runs.items()}
    ended = {name: m for name, m in found.items() if m.get("profile")}
    alone = [_shares(name, m["profile"]) for name, m in ended.items() if not m.get("together")]
    joint = [m["profile"] for m in ended.values() if m.get("together")]
    told = [table(alone)] if alone else []
    if joint:
        own = {cause: number(sum(seconds[cause] for seconds in joint)) for cause in joint[0]}
        told.append(
            f"{table([{'seconds': f'{len(joint)} runs together', **own}])}\n\nGradients were "
            "computed for all of these runs at once: they, assembling and writing took the rest."
        )
    return "\n".join(told) or "No run came to its end: there is no wall time to split."


def _shares(name: str, seconds: Mapping[str, float]) -> dict[str, str]:
    shares = {cause: seconds[cause] / seconds["total"] for cause in CAUSES}
    other = {"everything but gradients": 1.0 - shares["gradients"]}
    told = {cause: f"{share:.1%}" for cause, share in (shares | other).items()}
    return {"wall time": name, "seconds": number(seconds["total"]), **told}


def save_figures(folder: Path, only: Sequence[Path] | None = None) -> list[Path]:
    """Loss against time and against bytes, as PNG and SVG; nothing if nothing was learnt.

    Of the runs in `folder`, or of those named by `only`. If a number was swept there is the final
    loss against it too; if that would make too many lines, the others show the best value only.
    """
    from experiments import figures

    df = results.load(folder, only)
    if "loss" not in df:
        return []
    found = [m for run in only or results.run_folders(folder) if (m := manifest.read(run))]
    title, unit, key, paths = _title(found), _unit(found), swept_number(df), []
    shown: list[str] = []
    if key is not None:
        ends, keys = results.summary(folder, only), other_keys(df, key)
        drawn, hue, panel = _arranged(final_losses(ends), keys)
        told = f"{title}; line: median, band: least to most, dot: best"
        draw: figures.Draw = partial(figures.final_loss_against, key=key)
        fig = figures.panels(drawn, draw, hue, panel, told, unit)
        paths += figures.save(
            fig, folder / "figures" / f"final_loss_against_{key.replace('.', '_')}"
        )
        if len(df[[*keys, key]].drop_duplicates()) > _LINES:
            df, shown = df.merge(best(ends, key)[[*keys, key]]), [key]
            title += f"; of each line the best {key} of {ends[key].nunique()}"
    drawn, hue, panel = _arranged(df, other_keys(df, key if shown else None), shown)
    for draw in (figures.loss_against_time, figures.loss_against_bytes):
        fig = figures.panels(drawn, draw, hue, panel, title, unit)
        paths += figures.save(fig, folder / "figures" / draw.__name__)
    return paths


def _arranged(
    df: pd.DataFrame, keys: Sequence[str], shown: Sequence[str] = ()
) -> tuple[pd.DataFrame, str | None, str | None]:
    """The table with what tells lines and panels apart, and the names of these columns.

    Args:
        shown: keys that differ from line to line, and are said beside them.
    """
    first = "strategy" if "strategy" in keys else next(iter(keys), None)
    col = next((key for key in keys if key != first), None)
    hues = [key for key in (*keys, *shown) if key != col]
    df = df.assign(line=_values(df, hues), panel=_values(df, [] if col is None else [col]))
    return df, "line" if hues else None, "panel" if col else None


def _values(df: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """What each row has for some keys, for a reader: of slots the choice, else `key=value`."""
    starts = ["" if Path(CONF, key).is_dir() else f"{key}=" for key in keys]
    rows = df[list(keys)].to_numpy(dtype=object)
    return [", ".join(f"{start}{value}" for start, value in zip(starts, row)) for row in rows]


def _closed_form_row(name: str, experiment: Experiment) -> dict[str, Any] | None:
    exchange = Exchange.of(experiment.strategy)
    workload = experiment.workload
    if exchange is None or exchange.codec.sized_by_data:
        return None
    assert isinstance(workload, Workload)  # as assembled
    time = link_time(experiment.topology, workload, exchange, experiment.network)
    if time is None:
        return None
    return {
        "run": name,
        "collective": time.op,
        "payload": size(time.nbytes),
        "steps": str(time.steps),
        "closed form": number(time.closed_form / time.steps),
        "simulated": number(time.simulated / time.steps) + _mark(time),
        "loses to a dense ring beyond": _crossing(time),
    }


def _alike_once(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that differ in their names only as one, by what their names have in common."""
    names: dict[Any, list[list[str]]] = {}
    for row in rows:
        name, *values = row.values()
        names.setdefault(tuple(values), []).append(name.split())
    made = []
    for alike, those in names.items():
        common = [word for word in those[0] if all(word in name for name in those)]
        name = f"{' '.join(common)} ({len(those)} runs)" if len(those) > 1 else " ".join(common)
        made.append(dict(zip(rows[0], (name.strip(), *alike))))
    return made


def _crossing(time: LinkTime) -> str:
    return f"{time.crossing:.0f} nodes" if time.op == "all_gather" else "-"


def _title(found: Sequence[Mapping[str, Any]]) -> str:
    """How far the figure may be trusted: how many seeds, and what the clock charged for."""
    seeds = {m["seed"] for m in found}
    timed = sorted({m["totals"]["workload"] for m in found if "totals" in m})
    what = "" if timed == ["proxy"] else f", tiny model learns, {' and '.join(timed)} timed"
    return f"{'one seed' if len(seeds) == 1 else f'{len(seeds)} seeds'}{what}"


def _unit(found: Sequence[Mapping[str, Any]]) -> str:
    """The unit of the loss, if it is known and one for all runs."""
    units = {_UNITS.get(m["config"]["task"].get("_target_"), "") for m in found}
    return units.pop() if len(units) == 1 else ""


def _mark(time: LinkTime) -> str:
    return "!" if abs(time.deviation) > TOLERANCE else ""


def _count(value: float | None) -> str:
    return "-" if value is None else str(int(value))


def _row(record: dict[str, Any], keys: Sequence[str]) -> dict[str, str]:
    def get(key: str) -> Any:
        value = record.get(key)
        return None if value is None or value != value else value

    failed = {} if record["status"] == "ok" else {"status": record["status"]}
    mark = "!" if abs(get("deviation") or 0.0) > TOLERANCE else ""
    link = [get(f"{k}_per_step") for k in ("closed_form", "simulated_alone", "link_seconds")]
    kept = [get("kept_trained"), get("kept_charged")]
    return {
        **{key: str(record[key]) for key in keys},
        "status": failed.get("status", "-"),
        "loss": number(get("loss"), 4),
        "distance": number(get("distance")),
        "to target": "-" if get("time_to_target") is None else duration(get("time_to_target")),
        "time": "-" if get("time") is None else duration(get("time")),
        "steps": _count(get("step")),
        "tokens": "-" if get("tokens") is None else f"{get('tokens'):.2g}",
        "sent/node": size(get("nbytes_per_node")),
        "use": "-" if get("utilization") is None else f"{get('utilization'):.1%}",
        "left": _count(get("left")),
        "joined": _count(get("joined")),
        "empty": _count(get("empty_exchanges") or None),
        "kept": "-" if kept[0] is None else " / ".join(f"{number(100 * x)}%" for x in kept),
        "link s/step": "-"
        if link[0] is None
        else f"{number(link[0])}, {number(link[1])}{mark}, {number(link[2])}",
    }
