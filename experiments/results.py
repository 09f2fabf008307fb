"""Run folders -> DataFrames, with the keys that were overridden as columns.

    df = results.load("runs/first_light")        # all evaluations of all runs
    df = results.summary("runs/first_light")     # one row per run

Files are taken for what they are, other people's: sizes are bounded, nothing is unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from experiments import manifest
from sim.trace import MAX_TABLE_BYTES, Trace

if TYPE_CHECKING:
    import pandas as pd

_MAX_YAML = 1 << 20
_MAX_RUNS = 100_000


def load(folder: str | Path, only: Sequence[Path] | None = None) -> pd.DataFrame:
    """The evaluations of all runs below a folder: `run`, `status`, overridden keys, metrics.

    Runs that were cut off are there as far as they came. Of runs of one configuration there is one,
    the last that ended well.

    Args:
        only: the folders of the runs that are wanted, in their order; all if None.

    Raises:
        ValueError: there is no run with an evaluation, or a file is too large or broken.
    """
    import pandas as pd

    tables = []
    for run, facts in _runs(folder, only):
        metrics = _metrics(run)
        if metrics.empty:
            continue
        for position, (key, value) in enumerate(facts.items()):
            metrics.insert(position, key, value)
        tables.append(metrics)
    if not tables:
        raise ValueError(f"{folder}: no run came as far as its first evaluation")
    return pd.concat(tables, ignore_index=True)


def summary(folder: str | Path, only: Sequence[Path] | None = None) -> pd.DataFrame:
    """One row per run: `run`, `status`, overridden keys, and the totals of its manifest.

    Arguments and errors are those of `load`; a run without an evaluation has a row without numbers.
    """
    import pandas as pd

    rows = []
    for run, facts in _runs(folder, only):
        found = manifest.read(run) or {}
        totals = found.get("totals") or _last(_metrics(run))
        time = {"time": None}  # the first metric, whatever came of the run
        rows.append({**facts, **time, **totals, "wall_seconds": found.get("wall_seconds")})
    if not rows:
        raise ValueError(f"{folder}: no run has begun")
    return pd.DataFrame(rows)


def save_csv(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as CSV, by rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".tmp-{path.name}")
    table.to_csv(beside, index=False)
    os.replace(beside, path)


def axes(table: pd.DataFrame) -> list[str]:
    """The overridden keys that differ between the runs of a table, in the order of its columns."""
    columns = list(table.columns)  # they stand between `status` and the first metric, `time`
    keys = columns[columns.index("status") + 1 : columns.index("time")]
    return [key for key in keys if table[key].astype(str).nunique() > 1]


def run_folders(folder: str | Path) -> list[Path]:
    """The folders of runs at or below a folder, those with numbers as names in their order.

    Raises:
        ValueError: there is none, or far too many.
    """
    folder = Path(folder)
    found = {path.parent for name in (manifest.NAME, "events.jsonl") for path in folder.rglob(name)}
    if not found:
        raise ValueError(f"{folder}: holds no run; results of `archipelago run` are below runs/")
    if len(found) > _MAX_RUNS:
        raise ValueError(f"{folder}: {len(found)} runs; at most {_MAX_RUNS}")
    return sorted(found, key=lambda path: [_order(part) for part in path.parts])


def _order(part: str) -> tuple[int, int, str]:
    return (0, int(part), "") if part.isdecimal() else (1, 0, part)


def _last(metrics: pd.DataFrame) -> dict[Any, Any]:
    return {} if metrics.empty else metrics.tail(1).to_dict("records")[0]


def _runs(folder: str | Path, only: Sequence[Path] | None) -> Iterable[tuple[Path, dict[str, Any]]]:
    """Each run with its name, its status and the value of every key that any run overrides."""
    there = run_folders(folder)
    wanted = there if only is None else [run for run in only if run in there]
    runs = _distinct({run: _facts(run) for run in wanted})
    keys = list(dict.fromkeys(key for facts in runs.values() for key in facts["keys"]))
    for run, facts in runs.items():
        if facts["status"] == "unfinished" and not (run / "events.jsonl").stat().st_size:
            continue
        values = {key: _value(facts, key) for key in keys}
        name = str(run.relative_to(folder)) if run != Path(folder) else run.name
        yield run, {"run": name, "status": facts["status"], **values}


def _distinct(runs: Mapping[Path, dict[str, Any]]) -> dict[Path, dict[str, Any]]:
    """Of runs of one configuration the last that ended well; one not over has no equal."""
    kept = {facts.get("config_sha256", run): run for run, facts in sorted(runs.items(), key=_worth)}
    return {run: facts for run, facts in runs.items() if run in kept.values()}


def _worth(run: tuple[Path, Mapping[str, Any]]) -> tuple[bool, str]:
    return run[1]["status"] == "ok", run[1].get("started", "")


def _facts(run: Path) -> dict[str, Any]:
    found = manifest.read(run)
    if found is None:  # under way, or killed: what Hydra wrote when it began
        overrides = _yaml(run / ".hydra" / "overrides.yaml") or []
        config = _yaml(run / ".hydra" / "config.yaml") or {}
        choices = ((_yaml(run / ".hydra" / "hydra.yaml") or {}).get("hydra") or {}).get("runtime")
        found = {"status": "unfinished", "overrides": overrides, "config": config}
        found["choices"] = (choices or {}).get("choices") or {}
    keys = [override.split("=", 1)[0].lstrip("+~") for override in found["overrides"]]
    return {**found, "keys": [key for key in keys if not key.startswith("hydra.")]}


def _value(facts: Mapping[str, Any], key: str) -> Any:
    """The value that a run has for a key: a choice, or what its configuration says."""
    if key in facts["choices"]:
        return facts["choices"][key]
    value: Any = facts["config"]
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if not isinstance(value, Mapping | list) else str(value)


def _metrics(run: Path) -> pd.DataFrame:
    import pandas as pd

    path = run / "metric.parquet"
    if not path.exists():
        return Trace.load(run)["metric"]
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes; at most {MAX_TABLE_BYTES}")
    return pd.read_parquet(path)


def _yaml(path: Path) -> Any:
    if not path.exists():
        return None
    if path.stat().st_size > _MAX_YAML:
        raise ValueError(f"{path}: {path.stat().st_size} bytes; at most {_MAX_YAML}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))
