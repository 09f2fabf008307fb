"""The manifest of a run: what it was, what it was made with, how it ended; one JSON file.

It is written when a run has ended, well or badly, beside its name and renamed: a folder with a
manifest is a run that is over, and one whose hash and status fit need not be repeated.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

NAME = "manifest.json"
MAX_BYTES = 16 << 20
_NOT_A_RESULT = ("fresh", "profile", "together", "compute.workers", "compute.memory_limit")
"""Keys that say how to run, not what; two runs that differ in them only are the same."""


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, interpolations resolved, without keys of handling."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return _without(plain, _NOT_A_RESULT)


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a resolved configuration, independent of the order of keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write by rename; numbers that JSON does not have become null."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".tmp-{NAME}"
    beside.write_text(json.dumps(_plain(manifest), indent=1, allow_nan=False), encoding="utf-8")
    os.replace(beside, folder / NAME)


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None if the run is not over.

    Raises:
        ValueError: the file is too large, or is no manifest.
    """
    path = folder / NAME
    if not path.exists():
        return None
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes; a manifest has at most {MAX_BYTES}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); delete it to run again") from error
    if not isinstance(manifest, dict) or not {"status", "config_sha256"} <= set(manifest):
        raise ValueError(f"{path}: not a manifest of a run; delete it to run again")
    return manifest


def finished_in(folder: Path) -> dict[str, Path]:
    """Hash of a configuration -> where it ended well, of the runs directly below a folder.

    Raises:
        ValueError: a manifest there is too large, or is none.
    """
    found = [(path.parent, read(path.parent)) for path in sorted(folder.glob(f"*/{NAME}"))]
    good = [(run, each) for run, each in found if each and each["status"] == "ok"]
    good.sort(key=lambda pair: pair[1].get("started", ""))  # the last one wins
    return {each["config_sha256"]: run for run, each in good}


def _without(config: Mapping[Any, Any], paths: Sequence[str]) -> dict[str, Any]:
    """A copy without some keys, which may lie below others: `"compute.workers"`."""
    kept = {str(key): value for key, value in config.items() if key not in paths}
    for key, value in kept.items():
        below = [path.removeprefix(f"{key}.") for path in paths if path.startswith(f"{key}.")]
        if below and isinstance(value, Mapping):
            kept[key] = _without(value, below)
    return kept


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _plain(value.item())  # a number of numpy or torch
