"""Golden files on our public strategies and compressors: the largest deviation of each array.

What a file needs is told by `algorithm`, `reference` and the hyperparameters in its `meta`, never
by its name.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from experiments.errors import unknown
from experiments.validate.golden.case import Case
from experiments.validate.row import Row

ALGORITHMS = {
    "DeMo": "demo",
    "DiLoCo": "diloco",
    "StreamingDiLoCo": "diloco",
    "diloco": "diloco",
    "int8 ring all-reduce": "int8_ring",
    "choco": "gossip",
    "PowerSGD": "power_sgd",
    "averaging protocols under failures": "moshpit",
    "plain": "gossip",
    "compressor primitives": "primitives",
    "Muon (inner optimizer of MuLoCo)": "muon",
    "NoLoCo": "noloco",
    "SparseLoCo/CCLoco": "sparse_loco",
    "sparta": "sparta",
    "push-sum mixing": "push_sum",
    "asynchronous local SGD server": "async_diloco",
}
"""`algorithm` of `meta`, and the module here whose `rows(case)` replays it; case matters."""


def judge(path: str | Path) -> list[Row]:
    """Replay a file: a row for each array that is compared, and for each that nothing was made of.

    Raises:
        ValueError: the file is not of the format, or of an algorithm that is not known; or it has
            no array that is compared.
    """
    case = Case(path)
    algorithm = str(case.given("algorithm"))
    if algorithm not in ALGORITHMS:
        raise ValueError(
            unknown(
                f"{path}: meta.algorithm={algorithm!r}", "algorithm", algorithm, list(ALGORITHMS)
            )
        )
    module = importlib.import_module(f"experiments.validate.golden.{ALGORITHMS[algorithm]}")
    if not (rows := list(module.rows(case))):
        raise ValueError(f"{path}: has no array of {algorithm!r} that is compared")
    return rows + [case.not_compared(name) for name in case.unread]
