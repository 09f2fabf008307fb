"""`python -m experiments.run`, the same as `archipelago run`: compose, check, run, save.

Everything of one run is in one folder: `.hydra/` (the composed configuration), `events.jsonl` while
it runs, one Parquet table per kind of record and `manifest.json` at the end, and with
`timeline=true` the trace events of `experiments.timeline`.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
import warnings
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments import machine, manifest, timeline
from experiments.assemble import assemble, check
from experiments.cells import CONF
from experiments.errors import ConfigError
from experiments.experiment import Experiment
from experiments.records import TooManyError
from experiments.summary import totals
from sim.compute.joint import Joint
from sim.compute.processes import here
from sim.trace import Trace


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Run what Hydra composed; the final loss, for sweepers."""
    job = HydraConfig.get()
    choices = {str(slot): choice for slot, choice in job.runtime.choices.items()}
    try:
        check(assemble(cfg))
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    return run(cfg, Path(job.runtime.output_dir), list(job.overrides.task), choices)


def run(
    cfg: DictConfig,
    folder: Path,
    overrides: list[str],
    choices: dict[str, Any],
    joint: Joint | None = None,
) -> float | None:
    """Run a configuration that was checked in a folder, unless its results are there.

    Of several processes that compute it the first one writes.

    Args:
        overrides, choices: how the configuration came about, for the manifest.
        joint: runs that compute together with this one. The wall time of its manifest is then
            mostly waiting for the others, and the split has neither gradients nor a total.

    Returns:
        The final loss; None if nothing is learnt (`compute=meta`).
    """
    record, group = _begin(cfg) | {"overrides": overrides, "choices": choices}, here()
    done = group.from_first(lambda: finished(folder, record["config_sha256"]))
    if done is not None and not cfg.fresh:
        return done["totals"].get("loss")
    experiment = assemble(cfg)
    if not group.is_first:
        return experiment.run().rows("metric")[-1].get("loss")
    set_aside(folder, record["config_sha256"])
    started = time.perf_counter()
    ended: dict[str, Any] = {}
    try:
        trace = experiment.run(folder / "events.jsonl", joint, _kind(record["config"]))
        trace.save(folder)
        if cfg.timeline:
            _write_timeline(trace, folder)
        assert experiment.sim is not None
        reached = totals(experiment, experiment.sim, cfg.target_loss)
        engine = experiment.sim.fleet.crew.engine
        ended = {"status": "ok", "totals": reached, "engine": engine and asdict(engine)}
    except BaseException:  # recorded at once, and raised
        ended = {"status": "failed", "traceback": traceback.format_exc()}
        raise
    finally:
        facts = {"wall_seconds": time.perf_counter() - started, "together": joint is not None}
        record |= {"profile": _own_seconds(experiment) if joint else experiment.profile}
        record |= {"device": machine.device_name(experiment.compute.device)}
        record |= {"task": experiment.task.describe()}
        manifest.write(folder, record | facts | ended)
    return reached.get("loss")


def _kind(config: dict[str, Any]) -> str:
    """Equal for runs that compute the same losses; of a resolved configuration."""
    return json.dumps([config["task"], config["compute"]], sort_keys=True)


def _own_seconds(experiment: Experiment) -> dict[str, float]:
    """Wall seconds by cause of what a run does while no other one moves."""
    return {k: v for k, v in experiment.profile.items() if k not in ("gradients", "total")}


def finished(folder: Path, config_sha256: str) -> dict[str, Any] | None:
    """The manifest of a run of this configuration that ended well, or None.

    It is in this folder, or beside it if it was set aside for another one.
    """
    for place in (folder, _beside(folder, config_sha256)):
        found = manifest.read(place)
        if found and found["config_sha256"] == config_sha256 and found["status"] == "ok":
            return found
    return None


def set_aside(folder: Path, config_sha256: str) -> None:
    """Keep the results of another configuration that the folder holds: nothing computed is lost.

    They move to a folder beside it whose name ends in the beginning of their hash. The manifest of
    a failure goes: the run that begins now may be killed, and must not look like that one.
    """
    found = manifest.read(folder)
    if found is not None and found["status"] != "ok":
        (folder / manifest.NAME).unlink()
        return
    if found is None or found["config_sha256"] == config_sha256:
        return
    beside = _beside(folder, found["config_sha256"])
    beside.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.is_file():
            path.replace(beside / path.name)


def _write_timeline(trace: Trace, folder: Path) -> None:
    """The run as trace events; of one that is too long only a hint, its records are there."""
    try:
        timeline.write(trace, folder / timeline.NAME)
    except TooManyError as error:
        text = f"{timeline.NAME} was not written: {error}; `archipelago timeline {folder}`"
        warnings.warn(text, RuntimeWarning, stacklevel=2)


def _beside(folder: Path, config_sha256: str) -> Path:
    return folder.with_name(f"{folder.name}-{config_sha256[:8]}")


def _begin(cfg: DictConfig) -> dict[str, Any]:
    """What is known of a run before it begins."""
    config = manifest.resolved(cfg)
    return {
        "config_sha256": manifest.config_hash(config),
        "config": config,
        "seed": cfg.seed,
        "processes": here().size,
        "versions": machine.versions(),
        "git": machine.git_commit(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


if __name__ == "__main__":
    from experiments.cli import main as command

    sys.exit(command(["run", *sys.argv[1:]]))
