"""From command-line overrides to cells: the runs of a sweep, composed before the first one runs.

Hydra's parser and `compose` do the work; this is what its basic sweeper does, apart from running.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from experiments import manifest
from experiments.derive import configurations
from experiments.errors import ConfigError

CONF = str(Path(__file__).resolve().parents[1] / "conf")
_UNNAMED = "runs/sweep"


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        number: its place in the sweep, from 0.
        name: the values of what differs between the cells, for a reader.
        cfg: the composed configuration, interpolations resolved.
        overrides: what differs from the defaults, as `key=value`.
        choices: slot -> the choice in it.
        folder: where its results go.
        hydra: Hydra's own configuration of the job.
    """

    number: int
    name: str
    cfg: DictConfig
    overrides: list[str]
    choices: dict[str, Any]
    folder: Path
    hydra: DictConfig

    @property
    def config_sha256(self) -> str:
        """The hash of the configuration, as its manifest has it."""
        return manifest.config_hash(manifest.resolved(self.cfg))


@dataclass(frozen=True)
class Sweep:
    """What a command line asks for.

    Attributes:
        multirun: several cells in subfolders of `folder`, or one run.
        local: nothing but this machine is needed: Hydra's own sweeper and launcher.
    """

    cells: list[Cell]
    folder: Path
    multirun: bool
    local: bool


def read(overrides: Sequence[str], multirun: bool = False, config_dir: str | None = None) -> Sweep:
    """Compose all cells of a command line.

    Args:
        overrides: Hydra's `key=value` and `key=a,b`.
        multirun: whether `-m` was given; an experiment's `hydra.mode` may say so too.
        config_dir: a further folder of choices.

    Raises:
        ConfigError, HydraException, OmegaConfBaseException: a mistake; see `experiments.errors`.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir={config_dir}: not a folder")
    more = [] if config_dir is None else [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"]
    with initialize_config_dir(CONF, version_base="1.3"):
        parsed = OverridesParser.create().parse_overrides([*overrides])
        fixed = [o for o in parsed if not o.is_sweep_override()]
        base = _composed([*more, *(str(o.input_line) for o in fixed)])
        multirun = multirun or base.hydra.mode == RunMode.MULTIRUN
        if not multirun:
            lines = [str(o.input_line) for o in parsed]
            base = _composed([*more, *lines]) if len(fixed) < len(parsed) else base
            return Sweep([_cell(base, 0, "", Path(base.hydra.run.dir))], Path(), False, True)
        folder = Path(_folder(base, overrides))
        swept = _expanded(base, parsed)
        composed = configurations([[*more, *line] for line in swept], _composed, _is_slot)
        names = _names(swept, base.hydra.runtime.choices)
        cells = [_cell(c, i, names[i], folder / str(i)) for i, c in enumerate(composed)]
    return Sweep(cells, folder, True, _is_local(base))


def known_keys(overrides: Sequence[str] = ()) -> list[str]:
    """The slots, and all keys that a run has by default, with dots between levels.

    Args:
        overrides: of a command line; the keys are those of the choices that it makes.
    """
    with initialize_config_dir(CONF, version_base="1.3"):
        made = [o for o in overrides if _is_slot(o.partition("=")[0]) and "," not in o]
        try:
            base = compose("config", overrides=made)
        except (HydraException, ValueError):  # the mistake may be in the choices
            base = compose("config")
    keys = [*base, *(key for name in base for key in _below(base, str(name)))]
    return [key for key in map(str, keys) if not key.rpartition(".")[2].startswith("_")]


def claimed(cell: Cell) -> Cell:
    """The cell in a folder of its own, if its folder is named after the time.

    Raises:
        OSError: the folder cannot be made.
    """
    written = OmegaConf.to_container(cell.hydra, resolve=False)
    assert isinstance(written, dict)
    if "${now:" not in written["run"]["dir"]:
        return cell
    for count in itertools.count(1):  # another run may have begun in the same second
        name = cell.folder.name if count == 1 else f"{cell.folder.name}-{count}"
        folder = cell.folder.with_name(name)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        break
    with read_write(cell.hydra):
        cell.hydra.runtime.output_dir = str(folder.resolve())
    return replace(cell, folder=folder)


def _below(cfg: DictConfig, path: str) -> list[str]:
    node = OmegaConf.select(cfg, path, throw_on_resolution_failure=False)
    keys = [f"{path}.{key!s}" for key in node] if isinstance(node, DictConfig) else []
    return [*keys, *(inner for key in keys for inner in _below(cfg, key))]


def _is_slot(key: str) -> bool:
    return bool(key) and (Path(CONF) / key).is_dir()


def _composed(overrides: list[str]) -> DictConfig:
    for parsed in OverridesParser.create().parse_overrides(overrides):
        key = parsed.key_or_group
        if (
            _is_slot(key)
            and isinstance(parsed.value(), int | float | None)
            and not parsed.is_delete()
        ):
            raise ConfigError(
                f"{parsed.input_line}: must name a choice; `archipelago list {key}` shows them"
            )
    return compose("config", overrides=overrides, return_hydra_config=True)


def _expanded(base: DictConfig, parsed: list[Override]) -> list[list[str]]:
    """The product of all sweeps, those of the experiment first; the command line wins."""
    params = base.hydra.sweeper.params or {}
    own = OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in params.items()])
    return BasicSweeper.split_arguments([*own, *parsed], None)[0]


def _is_local(base: DictConfig) -> bool:
    return all("BasicSweeper" in s or "BasicLauncher" in s for s in _machinery(base))


def _machinery(base: DictConfig) -> list[str]:
    return [base.hydra.sweeper["_target_"], base.hydra.launcher["_target_"]]


def _folder(base: DictConfig, overrides: Sequence[str]) -> str:
    """The sweep's folder; the same command has the same one, so repeating it resumes."""
    if base.hydra.sweep.dir != _UNNAMED:
        return str(base.hydra.sweep.dir)
    digest = hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()
    return f"{_UNNAMED}-{digest[:6]}"


def _names(lines: list[list[str]], slots: Container[str]) -> list[str]:
    """What distinguishes the cells: overrides that not all of them have; of slots the choice."""
    shared = set(lines[0]).intersection(*lines)
    differ = [[o.split("=", 1) for o in line if o not in shared] for line in lines]
    return [" ".join(v if k in slots else f"{k}={v}" for k, v in line) for line in differ]


def _cell(composed: DictConfig, number: int, name: str, folder: Path) -> Cell:
    with open_dict(composed):
        composed.hydra.job.num, composed.hydra.job.id = number, str(number)
        composed.hydra.runtime.output_dir = str(folder.resolve())
    HydraConfig.instance().set_config(composed)
    cfg = composed.copy()
    with open_dict(cfg):
        del cfg["hydra"]
    OmegaConf.resolve(cfg)
    hydra = composed.hydra
    choices = {str(k): v for k, v in hydra.runtime.choices.items()}
    return Cell(number, name, cfg, list(hydra.overrides.task), choices, folder, hydra)
