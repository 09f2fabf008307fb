"""What a sweep says: the closed forms before it runs, one table and two figures after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import manifest, results
from experiments.closed_forms import Exchange, LinkTime, link_time
from experiments.experiment import Experiment
from experiments.progress import duration
from experiments.table import number, size, table
from experiments.validate.closed_forms import equal_homes
from sim.workload import Workload

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 0.01
"""A simulated link time this far from its closed form, relative, is marked."""


def closed_forms(named: Sequence[tuple[str, Experiment]]) -> str:
    """Link time per step of each cell's exchange alone, in closed form and simulated; or ""."""
    rows = [row for name, experiment in named if (row := _closed_form_row(name, experiment))]
    if not rows:
        return ""
    head = "Seconds of link time per local step, all nodes ready at once, nothing else on the links"
    homes = "; ".join(f"{check.name} {number(check.closed_form)}" for check in equal_homes())
    return f"{head}:\n\n{table(rows)}\n\nThe same by hand, in seconds: {homes}.\n"


def final_table(summary: pd.DataFrame) -> str:
    """One line per run."""
    keys = [key for key in results.axes(summary) if key != "experiment"]
    lines = [_row(record, keys) for record in summary.to_dict("records")]
    filled = [c for c in lines[0] if any(line[c] != "-" for line in lines)]
    notes = (
        "distance: above the floor. to target: simulated time. use: share of online time spent on "
        "gradients. kept: share of\ncoefficients sent, of the trained and of the charged model. "
        f"link s/step: closed form, simulated alone (! if over {TOLERANCE:.0%} apart),\nand in "
        "this run, where nodes come and go: rings change, and each loss costs the time to see it."
    )
    return f"{table(lines, filled)}\n\n{notes}"


def save_figures(folder: Path) -> list[Path]:
    """Loss against time and against bytes, as PNG and SVG; nothing if nothing was learnt."""
    from experiments import figures

    df = results.load(folder)
    if "loss" not in df:
        return []
    keys = [key for key in results.axes(df) if key not in ("experiment", "seed")]
    hue = "strategy" if "strategy" in keys else next(iter(keys), None)
    col = next((key for key in keys if key != hue), None)
    paths = []
    for draw in (figures.loss_against_time, figures.loss_against_bytes):
        fig = figures.panels(df, draw, hue, col, _title(folder))
        paths += figures.save(fig, folder / "figures" / draw.__name__)
    return paths


def _closed_form_row(name: str, experiment: Experiment) -> dict[str, Any] | None:
    exchange = Exchange.of(experiment.strategy)
    workload = experiment.workload
    if exchange is None or exchange.codec.sized_by_data:
        return None
    assert isinstance(workload, Workload)  # as assembled
    time = link_time(experiment.topology, workload, exchange)
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


def _crossing(time: LinkTime) -> str:
    return f"{time.crossing:.0f} nodes" if time.op == "all_gather" else "-"


def _title(folder: Path) -> str:
    """How far the figure may be trusted: how many seeds, and what the clock charged for."""
    found = [m for run in results.run_folders(folder) if (m := manifest.read(run))]
    seeds = {m["seed"] for m in found}
    timed = sorted({m["totals"]["workload"] for m in found if "totals" in m})
    what = "" if timed == ["proxy"] else f", tiny model learns, {' and '.join(timed)} timed"
    return f"{'one seed' if len(seeds) == 1 else f'{len(seeds)} seeds'}{what}"


def _mark(time: LinkTime) -> str:
    return "!" if abs(time.deviation) > TOLERANCE else ""


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
        "time": duration(record["time"]),
        "steps": str(int(record["step"])),
        "tokens": f"{record['tokens']:.2g}",
        "sent/node": size(get("nbytes_per_node")),
        "use": f"{record['utilization']:.1%}",
        "left": str(int(record["left"])),
        "joined": str(int(record["joined"])),
        "kept": "-" if kept[0] is None else " / ".join(f"{number(100 * x)}%" for x in kept),
        "link s/step": "-"
        if link[0] is None
        else f"{number(link[0])}, {number(link[1])}{mark}, {number(link[2])}",
    }
