"""Room: how much memory is free, on the machine or on the GPU."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

_ROOT = Path("/")


def free_nbytes(device: torch.device, root: Path = _ROOT) -> float:
    """Bytes that may still be taken on a device; infinite where the system does not tell.

    Args:
        device: "cpu" is what the machine has available, or the control groups of this process
            leave it, if that is less.
        root: where `proc` and `sys` are.
    """
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    machine = root / "proc" / "meminfo"
    if machine.exists():
        available = _fields(machine, ":?")["MemAvailable"] * 1024.0
        return min([available, *_left_by_groups(root)])
    names = os.sysconf_names
    if "SC_PHYS_PAGES" in names:  # all that there is: free pages would not count caches
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return math.inf


def _left_by_groups(root: Path) -> Iterator[float]:
    """Bytes that each control group above this process leaves it, in either version."""
    listed = root / "proc" / "self" / "cgroup"
    lines = listed.read_text().splitlines() if listed.exists() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers == "":
            yield from _left(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            yield from _left(top, path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def _left(top: Path, path: str, limit: str, usage: str, prefix: str) -> Iterator[float]:
    """The same of a group and those above it; caches that can be dropped count as free."""
    inside = Path(path.lstrip("/"))
    for folder in (top / inside, *(top / parent for parent in inside.parents)):
        if not all((folder / name).exists() for name in (limit, usage, "memory.stat")):
            continue
        most = (folder / limit).read_text().strip()
        if most == "max":
            continue
        cache = _fields(folder / "memory.stat").get(f"{prefix}inactive_file", 0)
        yield max(0.0, float(most) - float((folder / usage).read_text()) + cache)


def _fields(path: Path, end: str = "") -> dict[str, int]:
    """Lines of a name and a number."""
    found = re.findall(rf"^(\w+){end}\s+(\d+)", path.read_text(), re.MULTILINE)
    return {name: int(value) for name, value in found}
