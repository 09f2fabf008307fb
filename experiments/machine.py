"""What a result was made with: versions, the machine, the state of the checkout."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from functools import cache
from pathlib import Path

import torch

from sim.compute.options import available_cores

_CPU = torch.device("cpu")
_PACKAGES = (
    "archipelago-sim",
    "torch",
    "numpy",
    "simpy",
    "networkx",
    "pandas",
    "hydra-core",
    "scikit-learn",
)


@cache
def versions() -> dict[str, str]:
    """Python and the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout, not installed
            continue
    return found


def device_name(device: torch.device = _CPU) -> str:
    """The processor and the cores that this process may use, and the GPU that tensors live on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    name = f"{model}, {available_cores()} cores"
    return f"{torch.cuda.get_device_name(device)}; {name}" if device.type == "cuda" else name


@cache
def git_commit() -> str | None:
    """The commit of the checkout that this file is in, with `+` if it was changed; or None.

    As this process found it when it first asked, which is the code that it runs.
    """
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):  # no git here, or no commit yet
        return None


def _git(root: Path, *args: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *args], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
