"""SimGrid in a process of its own, if some Python of this machine can import it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray

from experiments.bench.networks.loads import Load

MODES = ("Lazy", "Full")
"""SimGrid's `network/optim`: update what changed only, or everything at each event."""
_DRIVER = Path(__file__).with_name("simgrid_driver.py")
_VERSION = "import simgrid; print(simgrid.simgrid_version)"


@dataclass(frozen=True, eq=False)
class Timed:
    """A run of some load: seconds of wall time, and when its flows ended, float64 [F]."""

    seconds: float
    finish: ndarray


@dataclass(frozen=True)
class SimGrid:
    """A Python that can import SimGrid, and the version that it has."""

    python: str
    version: str

    def run(self, load: Load, mode: str, limit: float) -> Timed | None:
        """Run a load in a mode; None if `limit` seconds of wall time were not enough."""
        names = ("capacity", "out", "into", "src", "dst", "nbytes")
        given = json.dumps({name: getattr(load, name).tolist() for name in names})
        command = [self.python, str(_DRIVER), mode]
        try:
            done = subprocess.run(
                command, input=given, capture_output=True, text=True, timeout=limit, check=True
            )
        except subprocess.TimeoutExpired:
            return None
        result = json.loads(done.stdout)
        return Timed(result["seconds"], np.array(result["finish"]))


def find() -> SimGrid | None:
    """The first Python that can import SimGrid: this one, the one on the path, the system's."""
    for python in dict.fromkeys([sys.executable, shutil.which("python3"), "/usr/bin/python3"]):
        if python is None or not Path(python).exists():
            continue
        asked = subprocess.run([python, "-c", _VERSION], capture_output=True, text=True)
        if asked.returncode == 0:
            return SimGrid(python, asked.stdout.split()[-1])
    return None
